"""Who may import whom in experiments/: public names of torch_convbp, and the rooms below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from imports import chains, imports, is_private

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
BELOW = {
    "common": [],
    "training": ["common"],
    "parity": ["common", "training"],
    "speed": ["common"],
    "documents": ["common"],
}
TEXTS = {
    file.relative_to(EXPERIMENTS).as_posix(): file.read_text(encoding="utf-8")
    for file in sorted(EXPERIMENTS.rglob("*.py"))
}


def imported(text: str) -> list[str]:
    """All that is imported, and what is asked of ``bp``, as dotted names."""
    tree = ast.parse(text)
    asked = [chain for chain in chains(tree) if chain.startswith("bp.")]
    names = [name for name, _ in imports(tree)]
    return names + [name.replace("bp.", "torch_convbp.", 1) for name in asked]


def private(text: str) -> list[str]:
    """Names of torch_convbp with an underscore, and what would hide one."""
    return [
        name
        for name in imported(text)
        if name.startswith("torch_convbp") and (is_private(name) or name.endswith(".*"))
    ]


def upward(room: str, text: str) -> list[str]:
    """Imports of a room that is not below; relative ones are not looked through."""
    allowed = tuple(f"experiments.{name}." for name in [room, *BELOW[room]])
    return [
        name
        for name in imported(text)
        if name.startswith((".", "experiments")) and not f"{name}.".startswith(allowed)
    ]


def test_experiments_use_public_names() -> None:
    found = {name: private(text) for name, text in TEXTS.items()}
    assert not {name: names for name, names in found.items() if names}


def test_a_room_knows_those_below() -> None:
    inside = {name: text for name, text in TEXTS.items() if "/" in name}
    assert {name.partition("/")[0] for name in inside} == BELOW.keys()
    found = {name: upward(name.partition("/")[0], text) for name, text in inside.items()}
    assert not {name: names for name, names in found.items() if names}


@pytest.mark.parametrize(
    "text",
    [
        "from torch_convbp import _probe",
        "from torch_convbp import info, _probe as probe",
        "from torch_convbp._probe import cuda_missing",
        "from torch_convbp.info import *",
        "import torch_convbp._probe",
        "def f():\n    bp.backends._CPU()",
    ],
)
def test_a_private_name_is_seen(text: str) -> None:
    assert private(text)


def test_what_is_right_is_left_alone() -> None:
    assert not private("import torch_convbp as bp\nbp.__version__\nbp.backends.cpu.capability()")
    assert not upward("parity", "from experiments.common import html\nimport torch")
    assert upward("common", "from experiments.parity import lockstep")
    assert upward("speed", "from experiments.parity.lockstep import Row")
    assert upward("training", "from ..parity import lockstep")
    assert upward("documents", "from experiments import train")
