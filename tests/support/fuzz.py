"""Draws configurations at random and checks them, shrinking what fails to a small case.

python tests/support/fuzz.py '{"kind":"conv2d","size":[3,3]}'   checks one configuration
python tests/support/fuzz.py --seconds 300   draws new ones for that long
python tests/support/fuzz.py --examples 100000 --seed 7   draws that many, the same every time
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from configurations import ACTIVATIONS, ALGORITHMS, DTYPES, EXACT, KINDS, VALUES, Common, parse
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EXAMPLES_A_ROUND = 1000


class Wrong(AssertionError):
    """A configuration that does not compute what torch does."""

    def __init__(self, configuration: Common, why: BaseException) -> None:
        super().__init__(f"{why}\nreproduce: python tests/support/fuzz.py '{configuration}'")
        self.configuration = configuration


def check(configuration: Common) -> bool:
    """Its own check, whose failure says how to see it again."""
    try:
        return configuration.check()
    except Exception as error:
        raise Wrong(configuration, error) from error


# --- what is drawn --------------------------------------------------------------------------


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def memories(draw: Any, dims: str) -> str:
    """Dense in order, channels_last, or anything."""
    if draw(st.integers(0, 2)) < 2:
        return dims.replace("chw", "hwc") if draw(st.booleans()) else dims
    order = draw(st.permutations(dims))
    return "".join(letter + draw(st.sampled_from(["", "", "2", "3", "*"])) for letter in order)


def channels() -> st.SearchStrategy[int]:
    """Mostly few; some just beyond the blocks the vector kernels work in."""
    return st.one_of(st.integers(1, 5), st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 33]))


COMMON: dict[str, Any] = {
    "dtype": st.sampled_from(DTYPES),
    "algorithm": st.sampled_from(ALGORITHMS),
    "values": st.sampled_from(VALUES),
    "seed": st.integers(0, 99),
}
LAYER: dict[str, Any] = {
    "bias": st.booleans(),
    "activation": st.one_of(st.none(), st.sampled_from([*EXACT, *ACTIVATIONS])),
    "wanted": st.sampled_from(["iwb", "iw", "ib", "wb", "i", "w", "b", ""]),
}
# One in a few is 0, or steps over the whole kernel.
FEW = st.one_of(st.just(1), st.integers(1, 4))
NARROW = st.one_of(st.just(0), st.integers(0, 4))
LENGTHS = st.one_of(st.integers(1, 9), st.integers(1, 9), st.sampled_from([12, 17, 25]))


@st.composite
def convolutions(draw: Any) -> Common:
    groups = draw(st.one_of(st.just(1), st.integers(1, 5)))
    kernel, dilation = draw(pairs(1, 4)), draw(st.tuples(FEW, FEW))
    stride, around = draw(st.tuples(FEW, FEW)), draw(st.tuples(NARROW, NARROW))
    symmetric = draw(st.integers(0, 3)) > 0
    behind = around if symmetric else draw(st.tuples(NARROW, NARROW))
    # The output's size is drawn, and up to a stride that no output reads; now and then the input's.
    extra, out = draw(st.tuples(NARROW, NARROW)), (draw(LENGTHS), draw(LENGTHS))
    size = tuple(
        max(
            1,
            (out[i] - 1) * stride[i] + min(extra[i], stride[i] - 1) + dilation[i] * (kernel[i] - 1)
            + 1 - around[i] - behind[i],
        )
        for i in range(2)
    )  # fmt: skip
    if draw(st.integers(0, 19)) == 0:
        size = draw(pairs(1, 9))
    few = groups == 1
    return KINDS["conv2d"](
        batch=draw(st.integers(0, 3)),
        in_channels=groups * draw(channels() if few else st.integers(1, 5)),
        out_channels=groups * draw(channels() if few else st.integers(1, 5)),
        size=size, kernel=kernel, stride=stride, dilation=dilation, groups=groups,
        padding=(around[0], behind[0], around[1], behind[1]),
        unbatched=draw(st.integers(0, 3)) == 3,
        input_memory=draw(memories("nchw")), weight_memory=draw(memories("nchw")),
        delta_memory=draw(memories("nchw")),
        **{name: draw(strategy) for name, strategy in (COMMON | LAYER).items()},
    )  # fmt: skip


@st.composite
def linears(draw: Any) -> Common:
    rows = draw(st.lists(st.integers(0, 5), max_size=3))
    dims = "nchw"[3 - len(rows) :]
    return KINDS["linear"](
        rows=tuple(rows),
        in_features=draw(st.integers(1, 20)), out_features=draw(st.integers(1, 20)),
        input_memory=draw(memories(dims)), weight_memory=draw(memories("hw")),
        delta_memory=draw(memories(dims)),
        **{name: draw(strategy) for name, strategy in (COMMON | LAYER).items()},
    )  # fmt: skip


@st.composite
def pools(draw: Any) -> Common:
    kernel = draw(pairs(1, 5))
    arguments: dict[str, Any] = {
        "batch": draw(st.integers(0, 3)),
        "channels": draw(channels()),
        "size": draw(pairs(1, 13)),
        "kernel": kernel,
        "stride": draw(st.one_of(st.none(), pairs(1, 4))),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
        "unbatched": draw(st.integers(0, 3)) == 3,
        "wanted": draw(st.booleans()),
        "input_memory": draw(memories("nchw")),
        "delta_memory": draw(memories("nchw")),
        **{name: draw(strategy) for name, strategy in COMMON.items()},
    }
    if draw(st.booleans()):
        return KINDS["max_pool2d"](
            dilation=draw(st.tuples(FEW, FEW)),
            special=draw(st.sampled_from(["", "", "nan", "-inf", "inf"])),
            **arguments,
        )
    return KINDS["avg_pool2d"](
        count_include_pad=draw(st.booleans()),
        divisor_override=draw(st.sampled_from([None, 1, -2, 4, 3, -7])),
        **arguments,
    )


CONFIGURATIONS = st.one_of(convolutions(), pools(), convolutions(), pools(), linears())

# --- searching ------------------------------------------------------------------------------


def search(examples: int, number: int, check: Callable[[Common], object] = check) -> Wrong | None:
    """Checks that many configurations; what fails is shrunk and returned."""

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(CONFIGURATIONS)
    def checked(configuration: Common) -> None:
        check(configuration)

    try:
        checked()
    except Wrong as wrong:
        return wrong
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("configuration", nargs="?", help="one line of JSON: check this one")
    parser.add_argument("--seconds", type=float, help="draw configurations for that long")
    parser.add_argument("--examples", type=int, help="draw that many")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.configuration:
        print("as torch" if check(parse(options.configuration)) else "refused, as by torch")
        return 0
    if options.seconds is None and options.examples is None:
        parser.error("a configuration, --seconds or --examples")
    return fuzz(options.seconds or float("inf"), options.examples or sys.maxsize, options.seed)


def fuzz(seconds: float, examples: int, first: int) -> int:
    """Rounds of new seeds until the time or the number is used up, or something is wrong."""
    current = Path(tempfile.mkdtemp()) / "configuration.json"
    print(f"seed {first}; should this process die, {current} says over what", flush=True)
    counts: Counter[str] = Counter()
    lines: set[int] = set()

    def counted(configuration: Common) -> None:
        line = str(configuration)
        current.write_text(line)
        computed = check(configuration)
        counts[type(configuration).__name__ if computed else "refused by both"] += 1
        lines.add(hash(line))

    start, number, wrong = time.monotonic(), first, None
    while wrong is None and time.monotonic() - start < seconds and counts.total() < examples:
        wrong = search(min(EXAMPLES_A_ROUND, examples - counts.total()), number, counted)
        number += 1
        if (number - first) % 10 == 0:
            print(f"{counts.total()} in {time.monotonic() - start:.0f} s", flush=True)
    took = time.monotonic() - start
    print(f"{counts.total()} configurations, {len(lines)} of them distinct, in {took:.0f} s: "
          + ", ".join(f"{n} {name}" for name, n in counts.most_common()))  # fmt: skip
    if wrong is not None:
        print(f"WRONG\n{wrong}")
        return 1
    print("every one as torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
