"""An output may be changed in place wherever torch's may, and no None is saved for backward."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import Tensor

import torch_convbp as bp

f = bp.functional
CONV = ((2, 3, 5, 6), (4, 3, 3, 3), (4,))


def activated(torchs: Callable[..., Tensor], name: str) -> tuple[Any, Any]:
    """torch's function followed by g, and ours with g as an argument."""
    g = getattr(F, name)
    ours = getattr(f, torchs.__name__)
    return lambda *tensors: g(torchs(*tensors)), functools.partial(ours, activation=name)


def both(name: str, **arguments: Any) -> tuple[Any, ...]:
    return tuple(functools.partial(getattr(m, name), **arguments) for m in (F, f))


# torch's function and ours, and the tensors' sizes.
CALLS: dict[str, tuple[Any, Any, tuple[tuple[int, ...], ...]]] = {
    "linear": (*both("linear"), ((5, 3), (4, 3), (4,))),
    "linear, vector": (*both("linear"), ((3,), (4, 3), (4,))),
    "linear, 3-D": (*both("linear"), ((2, 5, 3), (4, 3), (4,))),
    "linear, 3-D without a bias": (*both("linear"), ((2, 5, 3), (4, 3))),
    "linear, 4-D": (*both("linear"), ((2, 2, 5, 3), (4, 3), (4,))),
    "linear + silu": (*activated(F.linear, "silu"), ((2, 5, 3), (4, 3), (4,))),
    "linear + relu": (*activated(F.linear, "relu"), ((2, 5, 3), (4, 3), (4,))),
    "conv2d": (*both("conv2d"), CONV),
    "conv2d, unbatched": (*both("conv2d"), ((3, 5, 6), *CONV[1:])),
    "conv2d, empty": (*both("conv2d"), ((0, 3, 5, 6), *CONV[1:])),
    "conv2d, depthwise": (*both("conv2d", groups=3), ((2, 3, 5, 6), (3, 1, 3, 3), (3,))),
    "conv2d, 1x1": (*both("conv2d"), ((2, 3, 5, 6), (4, 3, 1, 1), (4,))),
    "conv2d + relu": (*activated(F.conv2d, "relu"), CONV),
    "conv2d + gelu": (*activated(F.conv2d, "gelu"), CONV),
    "max_pool2d": (*both("max_pool2d", kernel_size=2), ((2, 3, 6, 6),)),
    "max_pool2d, unbatched": (*both("max_pool2d", kernel_size=2), ((3, 6, 6),)),
    "max_pool2d, 1x1": (*both("max_pool2d", kernel_size=1), ((2, 3, 6, 6),)),
    "avg_pool2d": (*both("avg_pool2d", kernel_size=2), ((2, 3, 6, 6),)),
    "avg_pool2d, unbatched": (*both("avg_pool2d", kernel_size=2), ((3, 6, 6),)),
    "avg_pool2d, 1x1": (*both("avg_pool2d", kernel_size=1), ((2, 3, 6, 6),)),
}


def change_part(output: Tensor) -> Tensor:
    output[..., :1].mul_(3)
    return output


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "add_": lambda output: output.add_(1),
    "mul_": lambda output: output.mul_(2),
    "relu_": lambda output: output.relu_(),
    "unsqueeze_": lambda output: output.unsqueeze_(0),
    "copy_": lambda output: output.copy_(torch.ones_like(output)),
    "a part": change_part,
}


def results(call: Any, tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> Any:
    """The changed output and the gradients, or the kind of error."""
    tensors = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    try:
        output = change(call(*tensors))
        leaves = [t for t in tensors if t.requires_grad]
        return output.detach(), torch.autograd.grad(output.pow(3).sum(), leaves)
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)


@pytest.mark.parametrize("name", CALLS)
def test_output_changed_in_place(name: str) -> None:
    torchs, ours, sizes = CALLS[name]
    tensors = [normal(size, torch.float64, seed) for seed, size in enumerate(sizes)]
    for needed in itertools.product((False, True), repeat=len(tensors)):
        for tensor, needs in zip(tensors, needed, strict=True):
            tensor.requires_grad_(needs)
        for what, change in CHANGES.items() if any(needed) else ():
            expected, got = (results(call, tensors, change) for call in (torchs, ours))
            assert isinstance(got, bool) == isinstance(expected, bool), (needed, what, got)
            torch.testing.assert_close(got, expected, msg=lambda m, w=what: f"{w}: {m}")


def skip_unless_shown(node: Any) -> None:
    try:
        node.next_functions  # noqa: B018
    except RuntimeError:
        pytest.skip(f"torch {torch.__version__} does not show the graph of these Functions")


@pytest.mark.parametrize("name", CALLS)
def test_no_none_is_saved(name: str) -> None:
    """Tools that draw or measure a graph read saved_tensors of each node."""
    _, ours, sizes = CALLS[name]
    tensors = [normal(size, torch.float64, seed) for seed, size in enumerate(sizes)]
    for needed in itertools.product((False, True), repeat=len(tensors)):
        if not any(needed):
            continue
        for tensor, needs in zip(tensors, needed, strict=True):
            tensor.requires_grad_(needs)
        nodes, seen = [ours(*tensors).grad_fn], 0
        while nodes:
            node = nodes.pop()
            skip_unless_shown(node)
            nodes += [next_node for next_node, _ in node.next_functions if next_node is not None]
            if hasattr(node, "saved_tensors"):
                seen += 1
                assert all(isinstance(saved, Tensor) for saved in node.saved_tensors)
        assert seen, "no Function of ours in the graph"


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
def test_no_none_is_saved_for_second_derivatives(needed: tuple[bool, bool]) -> None:
    input, weight, delta = (
        normal(size, torch.float64, seed)
        for seed, size in enumerate([(2, 3, 5, 6), (4, 3, 3, 3), (2, 4, 3, 4)])
    )
    for tensor, needs in zip((input, weight, delta), (needed[0], *needed), strict=True):
        tensor.requires_grad_(needs)
    for gradient in (
        f.conv2d_input_grad(input.shape, weight, delta),
        f.conv2d_weight_grad(input, weight.shape, delta),
    ):
        saved: Any = gradient.grad_fn
        skip_unless_shown(saved)
        assert all(isinstance(tensor, Tensor) for tensor in saved.saved_tensors)
