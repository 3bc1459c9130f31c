"""The floor of an operator: the least time that its algorithm could take on this machine.

That is the longer of two times: of the multiply-adds of the chosen algorithm at the most arithmetic
that the machine reached, and of the bytes that must be moved at the most that it reached with a
working set as large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import torch_convbp as bp
from experiments.speed.cases import Case, Network
from experiments.speed.ceilings import Ceiling
from experiments.speed.implementations import MEMORY_FORMATS, Setup

PASSES = {
    "forward": ("forward",),
    "layer": ("forward",),
    "input gradient": ("input_grad",),
    "weight gradient": ("weight_grad",),
    "block": ("forward", "input_grad", "weight_grad"),
}


@dataclass
class Plan:
    algorithm: str
    multiply_adds: float


@dataclass
class Floor:
    seconds: float
    bound: str  # by "arithmetic" or "memory"


def plan(case: Case, operator: str, setup: Setup) -> Plan | None:
    """What torch_convbp does under the present setting; None for a network, which is no single
    problem. On a GPU all arithmetic is direct."""
    if isinstance(case, Network):
        return None
    if case.kind:
        return Plan("pooling", 0.0)
    if setup.device == "cuda":
        return Plan("direct", case.work(operator)[0] / 2)
    sizes = (
        (case.batch, case.channels, case.height, case.width),
        (case.filters, case.channels // case.groups, case.kernel, case.kernel),
    )
    input, weight = (
        torch.empty(size, dtype=setup.dtype, memory_format=MEMORY_FORMATS[setup.layout])
        for size in sizes
    )
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    chosen = [
        bp.backends.cpu.chosen_algorithm(input, weight, *geometry, operator=name)
        for name in PASSES[operator]
        if not (case.first and operator == "block" and name == "input_grad")
    ]
    return Plan(
        " and ".join(dict.fromkeys(c.name for c in chosen)), sum(c.multiply_adds for c in chosen)
    )


def floor(plan: Plan, bytes: float, ceiling: Ceiling) -> Floor:
    arithmetic = 2 * plan.multiply_adds / ceiling.arithmetic
    memory = bytes / ceiling.memory_rate(bytes)
    return max(
        Floor(arithmetic, "arithmetic"), Floor(memory, "memory"), key=lambda floor: floor.seconds
    )
