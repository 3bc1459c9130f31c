"""Running one of our layers and torch's twin of it the same way, and holding the results together.

A test hands over what is done with a module, or with a module as a function, once; it is done
with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from layers import LAYERS, Layer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torch_convbp as bp

# A module as a function of its input and its parameters.
Call: TypeAlias = Callable[..., Tensor]

# test_decompositions.py holds that this table has them all.
OPERATOR_NAMES = {operator._schema.name.split("::")[1] for operator in bp.decompositions()}

# No element of any result sums over more products: a Hessian's row meets 126 pixels of 6 filters.
PRODUCTS = 1000


def as_function(module: nn.Module) -> Call:
    names = [name for name, _ in module.named_parameters()]

    def call(input: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (input,))

    return call


def assert_close(ours: Any, theirs: Any, error: float | None = None) -> None:
    """Of trees of tensors: sizes, dtypes, and values to within rounding, with something in them.

    error is relative to the largest value; by default as many roundings as there are products.
    """
    ours, theirs = tree_leaves(ours), tree_leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), i
        scale = max(1.0, b.detach().abs().max().item())
        relative = PRODUCTS * torch.finfo(b.dtype).eps if error is None else error
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=relative * scale)
    assert any(b.detach().any() for b in theirs), "all zero: the comparison says nothing"


def assert_same(ours: Any, theirs: Any) -> None:
    """Of trees of tensors: sizes, dtypes, and every bit of a number; NaN equals NaN."""
    ours, theirs = tree_leaves(ours), tree_leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"result {i}: {m}"
        )


def compare(
    layer: str | Layer,
    compute: Callable[[nn.Module, Tensor], Any],
    dtype: torch.dtype = torch.float64,
    error: float | None = None,
    **changes: Any,
) -> None:
    """compute(module, input) of our layer and of torch's, from equal numbers."""
    chosen = LAYERS[layer] if isinstance(layer, str) else layer
    results = []
    for module in (chosen.make(dtype), chosen.torchs(dtype)):
        input = chosen.input(dtype=dtype, **changes).requires_grad_()
        results.append(compute(module, input))
    assert_close(*results, error)


def gradients(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    """Output, and the gradients of a loss that is not linear in it by input and parameters."""
    output = module(input)
    return output, *torch.autograd.grad(output.pow(3).sum(), (input, *module.parameters()))


class Calls(TorchDispatchMode):
    """Our operators, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "torch_convbp":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


def kept(call: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> tuple[Any, list[Tensor]]:
    """What call returns, and the tensors kept for its backward pass: each memory once, and not
    that of parameters, which are there anyway."""
    here = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    return result, [tensor for address, tensor in found.items() if address not in here]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the whole memory each of them lies in."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
