"""The command line of ``python -m experiments.speed``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.common.arguments import available_cpus, positive, run_name, whole
from experiments.speed.cases import DEFAULT_OPERATORS, OPERATORS, SUITES, parse

LAYOUTS = ("NCHW", "channels_last")
ALGORITHMS = ("auto", "direct", "winograd", "plain")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
ISAS = ("sse41", "avx", "avx2", "avx512_core")
# glibc then keeps freed memory in the process: only the first use of a page is a page fault.
NO_PAGE_FAULTS = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}
# Variables that change what is measured where a user has set them: the caption names them.
TELLING = ("TORCH_CONVBP_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", *NO_PAGE_FAULTS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.speed",
        description="Time torch_convbp against torch, all sides in turn in one process on the "
        "same tensors, and measure each side's error against float64. Writes report.html, "
        "table.md, results.json, ratios.png and roofline.png into a folder. Exit status: 0, "
        "measured; 2, the arguments are not usable; 130, interrupted.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to time")
    what.add_argument("--suite", choices=SUITES, default="core", help="(default: %(default)s)")
    what.add_argument(
        "--shapes",
        metavar="NAME,...",
        help="these instead of the suite's: of any suite, or any shape written as 64x64x32-128k3s2 "
        "(more in experiments/speed/cases.py)",
    )
    what.add_argument(
        "--operators",
        metavar="NAME,...",
        help="of forward, input gradient, weight gradient, layer (forward with bias and "
        "activation), block (its forward and backward pass); pooling: forward, backward",
    )
    what.add_argument("--layout", choices=LAYOUTS, help="(default: both)")
    what.add_argument(
        "--batch", type=whole(1), metavar="N", help="pictures in a batch (default: the case's)"
    )
    sides = parser.add_argument_group("the sides")
    sides.add_argument(
        "--compile", action="store_true", help="torch.compile of torch's blocks and networks too"
    )
    sides.add_argument("--algorithm", choices=ALGORITHMS, help="torch_convbp's (default: auto)")
    sides.add_argument(
        "--sweep",
        action="store_true",
        help="auto beside direct and winograd: did auto choose the fastest?",
    )
    sides.add_argument(
        "--isa-of-torch", choices=ISAS, help="the most oneDNN may use (default: all there is)"
    )
    sides.add_argument(
        "--no-page-faults",
        action="store_true",
        help="let the C library keep freed memory in the process, for all sides",
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    how.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the tensors; tf32: float32 whose products a GPU may round to TF32 (default: "
        "%(default)s)",
    )
    how.add_argument(
        "--graphs", action="store_true", help="every call recorded and replayed as a CUDA graph"
    )
    how.add_argument(
        "--threads",
        type=whole(1, available_cpus()),
        default=available_cpus(),
        metavar="N",
        help="threads, on as many CPUs (default: the CPUs this process may use)",
    )
    how.add_argument(
        "--repeats", type=whole(1), metavar="N", help="samples of each (default: 31; quick: 5)"
    )
    how.add_argument(
        "--seconds",
        type=positive,
        metavar="S",
        help="after which no more samples are taken of one operator, if there are 5 (default: 4; "
        "quick: 1)",
    )
    how.add_argument(
        "--quick",
        action="store_true",
        help="few samples, no second attempt where the machine was disturbed, no peak memory",
    )
    how.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="of all tensors")
    out = parser.add_argument_group("where to write")
    out.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="(default: runs)"
    )
    out.add_argument("--name", type=run_name, help="of the folder (default: time and suite)")
    out.add_argument(
        "--write",
        type=Path,
        metavar="FILE.md",
        help="also put the table between <!-- speed: TITLE --> and <!-- end of speed --> there, "
        "the pictures into images/ beside it; TITLE is the suite and what departs from the usual",
    )
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options, with ``cases`` and ``operators`` found; unusable ones end the program."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    check_device(parser, options)
    if options.sweep and options.algorithm:
        parser.error("argument --sweep: runs every algorithm; --algorithm goes without it")
    if options.sweep and options.compile:
        parser.error("argument --sweep: compares algorithms of torch_convbp; leave --compile out")
    names = options.shapes.split(",") if options.shapes else SUITES[options.suite].split()
    try:
        options.cases = [parse(name, options.batch) for name in names]
    except ValueError as error:
        parser.error(f"argument --shapes: {error}")
    known = options.cases[0].operators
    if any(case.operators != known for case in options.cases):
        parser.error("argument --shapes: convolutions, poolings and networks need a run each")
    if "backward" in known and (options.sweep or options.compile):
        parser.error("argument --shapes: a pooling has one algorithm and no compiled side")
    usual = OPERATORS.get(options.suite, DEFAULT_OPERATORS)
    wanted = usual if "block" in known else known
    if options.operators:
        wanted = tuple(options.operators.split(","))
    for operator in wanted:
        if operator not in known:
            parser.error(f"argument --operators: expected of {', '.join(known)}, got {operator!r}")
    options.title = title(options)
    options.operators = wanted
    options.layouts = (options.layout,) if options.layout else LAYOUTS
    options.repeats = options.repeats or (5 if options.quick else 31)
    options.seconds = options.seconds or (1.0 if options.quick else 4.0)
    if options.write:
        check_block(parser, options)
    return options


def check_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.device == "cpu":
        if options.precision == "tf32" or options.graphs:
            parser.error("argument --device: TF32 and CUDA graphs are --device cuda's")
        return
    from experiments.common.machine import cuda_missing

    # cuda_missing() loads torch, which reads its variables when it is loaded: not before.
    if missing := cuda_missing():
        parser.error(f"argument --device: cuda cannot be timed: {missing}")
    if options.sweep or options.algorithm not in (None, "auto", "plain"):
        parser.error(
            "argument --device: on cuda the algorithms are auto and plain, without --sweep"
        )
    if options.graphs and options.compile:
        parser.error("argument --graphs: a compiled side records its own; leave --compile out")


def title(options: argparse.Namespace) -> str:
    """What was measured in few words: the name of the table in a document."""
    plural = "s" if options.threads > 1 else ""
    words = {
        options.suite: True,
        "some shapes": options.shapes,
        f"batch {options.batch}": options.batch,
        str(options.operators and options.operators.replace(",", " and ")): options.operators,
        str(options.layout): options.layout,
        str(options.algorithm): options.algorithm not in (None, "auto"),
        "algorithms": options.sweep,
        "compiled": options.compile,
        f"oneDNN at most {str(options.isa_of_torch).upper()}": options.isa_of_torch,
        "without page faults": options.no_page_faults,
        f"{options.threads} thread{plural}": options.threads != available_cpus(),
        "on a GPU": options.device == "cuda",
        options.precision: options.precision != "float32",
        "as CUDA graphs": options.graphs,
        "quick": options.quick,
    }
    return ", ".join(word for word, said in words.items() if said)


def check_block(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Find out before hours of measuring that the table has no place to go."""
    try:
        text = options.write.read_text()
    except OSError as error:
        parser.error(f"argument --write: {options.write} cannot be read ({error.strerror})")
    begin = f"<!-- speed: {options.title} -->"
    if begin not in text or "<!-- end of speed -->" not in text.partition(begin)[2]:
        parser.error(
            f"argument --write: {options.write} has no lines {begin} and <!-- end of speed -->"
        )


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The variables that must be set before torch is loaded, and are not."""
    wanted = dict(NO_PAGE_FAULTS) if options.no_page_faults else {}
    if options.isa_of_torch:
        wanted["ONEDNN_MAX_CPU_ISA"] = options.isa_of_torch.upper()
    return {name: value for name, value in wanted.items() if os.environ.get(name) != value}


def restart_with(variables: dict[str, str], arguments: list[str]) -> None:
    """Run the same command in place of this process, with these variables set."""
    command = [sys.executable, "-m", "experiments.speed", *arguments]
    os.execve(sys.executable, command, os.environ | variables)
