"""Table "Transforms", the part of torch.export, ONNX, AOTInductor, torch.jit and torch.fx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import normal
from layers import LAYERS, every
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.testing import assert_close

import torch_convbp as bp

TABLE = "Transforms"
WITHOUT = "without torch_convbp"


def row(name: str, **options: Any) -> pytest.MarkDecorator:
    return pytest.mark.cell(TABLE, name, **options)


def input_of(layer: str, by: int = 0) -> Tensor:
    """An input that is larger in every dimension but the channels."""
    size = (n if d == 1 else n + by for d, n in enumerate(LAYERS[layer].input_size))
    return normal(tuple(size), torch.float32, by + 1)


def any_size(input: Tensor) -> tuple[dict[int, Any], ...]:
    return ({d: Dim.DYNAMIC for d in range(input.dim()) if d != 1},)


def any_batch(input: Tensor) -> tuple[dict[int, Any], ...]:
    return ({0: Dim.DYNAMIC},)


def exported(
    layer: str, sizes: Callable[[Tensor], Any] = any_size, strict: bool = False
) -> ExportedProgram:
    input = input_of(layer)
    module = LAYERS[layer].make(torch.float32).eval()
    return torch.export.export(module, (input,), dynamic_shapes=sizes(input), strict=strict)


def torchs(layer: str) -> nn.Module:
    return LAYERS[layer].torchs(torch.float32).eval()


def operators(program: ExportedProgram) -> list[Any]:
    return [
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]


def are_ours(targets: list[Any]) -> list[bool]:
    return [target.namespace == "torch_convbp" for target in targets]


# --- torch.export ---------------------------------------------------------------------------


@row("torch.export: keeps the operator, any batch, height and width")
@every()
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(layer: str, strict: bool) -> None:
    program = exported(layer, strict=strict)
    assert all(are_ours(operators(program))) and operators(program)
    for by in (0, 4):
        assert_close(program.module()(input_of(layer, by)), torchs(layer)(input_of(layer, by)))


@row("torch.export: the program's gradients")
@every()
def test_training_an_exported_program(layer: str) -> None:
    module = exported(layer).module()
    results = []
    for step in (module, torchs(layer)):
        leaves = [input_of(layer, 2).requires_grad_(), *step.parameters()]
        output = step(leaves[0])
        delta = normal(tuple(output.shape), output.dtype, 9)
        results.append(torch.autograd.grad(output, leaves, delta))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@row("torch.export: decomposed to ATen (bp.decompositions())")
@every()
def test_decomposed(layer: str) -> None:
    program = exported(layer).run_decompositions(bp.decompositions())
    assert not any(are_ours(operators(program))) and operators(program)
    for by in (0, 4):
        assert_close(program.module()(input_of(layer, by)), torchs(layer)(input_of(layer, by)))


@row("torch.export: decomposed to core ATen")
@every()
def test_core_aten(layer: str) -> None:
    table = torch.export.default_decompositions()
    table.update(bp.decompositions())
    program = exported(layer).run_decompositions(table)
    targets = operators(program)
    assert targets and all(torch.Tag.core in target.tags for target in targets), targets
    assert_close(program.module()(input_of(layer, 4)), torchs(layer)(input_of(layer, 4)))


# --- in another process ---------------------------------------------------------------------

# Runs each file given to it, and writes what came of that: None, or the error.
RUN = """
import json, sys, torch
if sys.argv[1] == "with":
    import torch_convbp
results = {}
for folder in sys.argv[2:]:
    try:
        if sys.argv[1] == "package":
            program = torch._inductor.aoti_load_package(folder + "/package.pt2")
        else:
            program = torch.export.load(folder + "/program.pt2").module()
        input, expected = torch.load(folder + "/example.pt")
        torch.testing.assert_close(program(input), expected)
        results[folder] = None
    except Exception as error:
        results[folder] = str(error)
assert (sys.argv[1] == "with") == ("torch_convbp" in sys.modules)
print(json.dumps(results))
"""


def in_a_fresh_process(how: str, folders: list[Path], **environment: str) -> dict[str, Any]:
    """Each folder's error, None where there was none; under "" what was logged."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, how, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {Path(folder).name: error for folder, error in results.items()} | {"": done.stderr}
