"""The command line of ``python -m experiments.parity``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from experiments.common.arguments import available_cpus, positive, run_name, whole

DATA = ("digits", "cifar10", "cifar100", "folder")
NETWORKS = (
    "lecture",
    "vgg",
    "vgg11",
    "resnet18",
    "resnet20",
    "resnet56",
    "mobilenetv2",
    "wideresnet16_4",
    "convmixer",
)
STEMS = ("torchvision", "cifar")
ACCELERATORS = ("cpu", "gpu", "auto")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Defaults:
    """What a data set asks for unless the command line says otherwise."""

    network: str
    epochs: int
    batch_size: int
    augment: bool
    weight_decay: float = 5e-4


DEFAULTS = {
    "digits": Defaults("resnet20", epochs=4, batch_size=64, augment=False),
    "cifar10": Defaults("resnet20", epochs=10, batch_size=128, augment=True),
    "cifar100": Defaults("resnet20", epochs=15, batch_size=128, augment=True),
    "folder": Defaults("resnet20", epochs=10, batch_size=64, augment=False),
}
LEARNING_RATES = {"lecture": 0.02}
LEARNING_RATE = 0.05


def per_data(field: str) -> str:
    """Say the defaults of one field for the help text."""
    values: dict[object, list[str]] = {}
    for name, defaults in DEFAULTS.items():
        values.setdefault(getattr(defaults, field), []).append(name)
    if len(values) == 1:
        return str(next(iter(values)))
    words = {True: "on", False: "off"}
    return ", ".join(
        f"{words.get(value, value) if isinstance(value, bool) else value} for {' and '.join(names)}"
        for value, names in values.items()
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with all options explained."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.parity",
        description="Build one network twice from one seed, with torch.nn.Conv2d and with "
        "bp.ConvBP2d; compare them layer by layer, train both on the same batches, and say "
        "whether they agree; with --seeds, several times over. Exit status: 0 parity holds, 1 it "
        "does not, 2 the arguments or the data are not usable, 130 interrupted.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--network", choices=NETWORKS, help=f"the network (default: {per_data('network')})"
    )
    what.add_argument(
        "--stem",
        choices=STEMS,
        help="the first layers of resnet18: torchvision's, made for large pictures, or one "
        "3x3 convolution, 16 times the work (default: torchvision)",
    )
    what.add_argument(
        "--data",
        choices=DATA,
        default="digits",
        help="digits: scikit-learn's 1,797 digits, nothing to fetch; cifar10, cifar100: through "
        "torchvision; folder: pictures in train/CLASS/ and test/CLASS/ (default: %(default)s)",
    )
    what.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the data lies (default: data for cifar10 and cifar100; folder needs it)",
    )
    what.add_argument("--download", action="store_true", help="fetch cifar10 or cifar100")
    what.add_argument(
        "--image-size",
        type=whole(16, 512),
        metavar="N",
        help="side to which the pictures of --data folder are resized (default: 32); they are "
        "decoded once and kept in memory",
    )
    what.add_argument(
        "--limit-train", type=whole(2), metavar="N", help="use N training pictures (default: all)"
    )
    what.add_argument(
        "--limit-test", type=whole(1), metavar="N", help="use N test pictures (default: all)"
    )
    what.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help=f"shift and mirror the training pictures (default: {per_data('augment')})",
    )
    how = parser.add_argument_group("how to train")
    how.add_argument(
        "--epochs", type=whole(1), metavar="N", help=f"(default: {per_data('epochs')})"
    )
    how.add_argument(
        "--steps", type=whole(1), metavar="N", help="stop after N steps (default: no limit)"
    )
    how.add_argument(
        "--batch-size",
        type=whole(2),
        metavar="N",
        help=f"pictures in a batch (default: {per_data('batch_size')})",
    )
    rates = "".join(f", {rate} for {name}" for name, rate in LEARNING_RATES.items())
    how.add_argument(
        "--lr",
        type=positive,
        metavar="X",
        help=f"highest learning rate (default: {LEARNING_RATE}{rates})",
    )
    how.add_argument(
        "--seed",
        type=whole(0, 2**31),
        default=0,
        metavar="N",
        help="of weights, order and augmentation (default: %(default)s)",
    )
    how.add_argument(
        "--seeds",
        type=whole(1, 1000),
        metavar="N",
        help="do it all for N seeds, from --seed on (default: 1)",
    )
    how.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        default="cpu",
        help="Lightning's name of what to train on; float32 is strict there, without TF32 "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="32-true",
        help="Lightning's name of the precision of training; bf16-mixed is compared in lockstep "
        "too (default: %(default)s)",
    )
    how.add_argument(
        "--threads",
        type=whole(1, 1024),
        metavar="N",
        help="threads of torch (default: the CPUs this process may use)",
    )
    how.add_argument(
        "--channels-last", action="store_true", help="weights and batches in NHWC memory order"
    )
    out = parser.add_argument_group("what to compare and where to write")
    out.add_argument(
        "--lockstep-steps",
        type=whole(0),
        nargs="+",
        metavar="STEP",
        help="steps before which both networks are compared layer by layer, with the weights "
        "that nn.Conv2d's training then has (default: the first, the middle and the last)",
    )
    out.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run folders are made (default: %(default)s)",
    )
    out.add_argument(
        "--name", type=run_name, help="name of the run folder (default: time, network, data)"
    )
    out.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in folder DIR after the last epoch that both sides ended, with "
        "the options it was begun with; --seeds N gives it more seeds",
    )
    return parser


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the arguments, with the defaults of the data set filled in."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.resume:
        for action in parser._actions:
            given = getattr(args, action.dest, action.default) != action.default
            if given and action.dest not in ("resume", "seeds"):
                parser.error(
                    f"argument {action.option_strings[0]}: --resume takes it from the run folder"
                )
        return parser, args
    args.seeds = args.seeds or 1
    defaults = DEFAULTS[args.data]
    if args.stem and (args.network or defaults.network) != "resnet18":
        parser.error("argument --stem: goes with --network resnet18 only")
    if args.image_size and args.data != "folder":
        parser.error("argument --image-size: goes with --data folder only; the others are 32x32")
    if args.download and args.data not in ("cifar10", "cifar100"):
        parser.error("argument --download: goes with --data cifar10 or cifar100 only")
    if args.root and args.data == "digits":
        parser.error("argument --root: goes with cifar10, cifar100 or folder; digits needs none")
    if args.data == "folder" and not args.root:
        parser.error("argument --root: --data folder needs one with train/ and test/ inside")
    for field in ("network", "epochs", "batch_size", "augment"):
        if getattr(args, field) is None:
            setattr(args, field, getattr(defaults, field))
    args.weight_decay = defaults.weight_decay
    args.stem = args.stem or "torchvision"
    args.image_size = args.image_size or 32
    args.lr = args.lr or LEARNING_RATES.get(args.network, LEARNING_RATE)
    args.threads = args.threads or available_cpus()
    return parser, args
