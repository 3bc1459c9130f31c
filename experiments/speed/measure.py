"""Measures one operator of one case on all sides: errors, then times, then peak memory."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from experiments.speed import implementations
from experiments.speed.cases import Case
from experiments.speed.floors import Plan, plan
from experiments.speed.implementations import Setup
from experiments.speed.peak import peak_bytes
from experiments.speed.results import FORCED, TORCH, Row
from experiments.speed.timing import ATTEMPTS, measure


def measure_all(options: argparse.Namespace) -> Iterator[Row]:
    for case in options.cases:
        for layout in options.layouts:
            for operator in options.operators:
                yield measure_row(case, operator, make_setup(options, layout), options)


def make_setup(options: argparse.Namespace, layout: str) -> Setup:
    names = ["torch"]
    if options.device == "cuda":
        names.append("benchmarked")
    if options.compile:
        names.append("compiled")
    if options.suite == "activations" and not options.sweep:
        names.append("apart")
    names += ["auto", *FORCED] if options.sweep else ["ours"]
    if options.compile:
        names.append("ours_compiled")
    return Setup(
        layout,
        tuple(names),
        options.algorithm or "auto",
        options.threads,
        options.seed,
        options.device,
        options.precision,
        options.graphs,
    )


def measure_row(case: Case, operator: str, setup: Setup, options: argparse.Namespace) -> Row:
    work = implementations.work(case, operator, setup)

    def prepare(side: str) -> None:
        implementations.switch(side, setup)

    errors: dict[str, float] = {}
    plans: dict[str, Plan] = {}
    for side, run in list(work.runs.items()):  # a copy: the loop deletes
        prepare(side)
        planned = None if side in TORCH else plan(case, operator, setup)
        if planned:
            if side == "winograd" and planned == plans["direct"]:  # there is no other algorithm
                del work.runs[side]
                continue
            plans[side] = planned
        errors[side] = work.error(run())
    measured = measure(
        work.runs,
        prepare,
        options.repeats,
        options.seconds,
        attempts=1 if options.quick else ATTEMPTS,
        device=options.device,
    )
    names = list(work.runs)
    del work  # its tensors make room for the processes that measure memory
    peaks: dict[str, int | None] = {
        # A compiler's memory is not what a call takes.
        side: None
        if options.quick or side in ("compiled", "ours_compiled")
        else peak_bytes(case, operator, setup, side)
        for side in names
    }
    operations, bytes = case.work(operator)
    bytes *= setup.dtype.itemsize / 4  # the case counts in float32
    return Row(case.name, setup.layout, operator, operations, bytes, measured, errors, peaks, plans)
