"""``python -m torch_convbp.explain``: see the package's own words, or ``--help``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from unicodedata import combining

from torch_convbp.explain import layer, page, picture
from torch_convbp.explain.activation import ACTIVATIONS
from torch_convbp.explain.errors import UsageError
from torch_convbp.explain.steps import Step, by_loops, compare

PROGRAM = "python -m torch_convbp.explain"
MOST_FILTERS = 4
SEED = 33  # the boat's errors have both signs in both output maps


def main(arguments: list[str] | None = None) -> int:
    """Write the page; return 0 where all computations agree, 1 where not, 2 for a usage error."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    try:
        check_place(args.output)
        shown = picture.from_file(args.picture, args.size) if args.picture else picture.built_in()
        built = layer.build(shown, args.filters, ACTIVATIONS[args.activation], args.seed)
        values = by_loops(built)
        steps = compare(built, values)
        command = shlex.join([*PROGRAM.split(), *given])
        write(args.output, page.build(built, values, steps, command))
    except UsageError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    tell(steps)
    print(f"\nThe page is {args.output.resolve()}")
    return 0 if all(step.agrees for step in steps) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; argparse ends the program where one is wrong."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Takes one small layer through the lecture's L1 to L6, compares each step with "
        "torch's autograd, and writes it all on one HTML page.",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="a picture of your own (needs Pillow or torchvision); by default a small boat",
    )
    parser.add_argument(
        "--size",
        type=whole_number(picture.SMALLEST, 32),
        default=16,
        metavar="N",
        help="pixels of the longer side your picture is made small to (default 16)",
    )
    parser.add_argument(
        "--filters",
        type=filter_names,
        default=("vertical", "corner"),
        metavar="NAME,...",
        help=f"one to {MOST_FILTERS} of {', '.join((*layer.FILTERS, layer.RANDOM))} "
        "(default vertical,corner): an output map each",
    )
    parser.add_argument("--activation", choices=tuple(ACTIVATIONS), default="relu", help="g")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=SEED,
        metavar="N",
        help=f"draws biases, target and random filters (default {SEED})",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("explain.html"), metavar="FILE", help="the page"
    )
    args = parser.parse_args(arguments)
    if args.picture and args.picture.resolve() == args.output.resolve():
        parser.error("argument --output: the page would take the place of the picture")
    return args


def whole_number(least: int, most: int):  # type: ignore[no-untyped-def]
    """Return the type of an option that is a whole number between two others."""

    def parsed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, got {text!r}"
            )
        return value

    return parsed


def filter_names(text: str) -> tuple[str, ...]:
    """Return the names of a list such as vertical,corner."""
    names = tuple(name.strip() for name in text.split(","))
    known = (*layer.FILTERS, layer.RANDOM)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"expected names of {', '.join(known)}, got {name!r}")
    if len(names) > MOST_FILTERS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_FILTERS}, got {len(names)}")
    return names


def check_place(path: Path) -> None:
    """See that a file can have this name, before anything is computed."""
    if path.is_dir():
        raise UsageError(f"--output: {path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"--output: {path} cannot be written (there is no folder {path.parent})")


def write(path: Path, text: str) -> None:
    """Write a file in one move, so that a page is there as a whole or not at all."""
    draft = path.with_name(path.name + ".part")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be written ({error.strerror})") from None


def tell(steps: Sequence[Step]) -> None:
    """Print a line for each step."""
    print(f"{'':5}{'':12}{'shape':>14}{'bp - loops':>13}{'torch - loops':>15}{'allowed':>11}")
    for step in steps:
        shape = " x ".join(map(str, step.loops.shape))
        ours, torchs, _ = step.differences
        verdict = "agrees" if step.agrees else "DIFFERS"
        print(
            f"{step.equation:5}{padded(step.symbol, 12)}{shape:>14}{ours:13.1e}{torchs:15.1e}"
            f"{step.allowed:11.1e}  {verdict}"
        )


def padded(text: str, width: int) -> str:
    """Fill up to a width on the screen, where a tilde above a letter takes none."""
    return text + " " * (width - sum(not combining(letter) for letter in text))


if __name__ == "__main__":
    sys.exit(main())
