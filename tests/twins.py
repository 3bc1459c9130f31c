"""Running one of our layers and torch's twin of it the same way, and holding the results together.

A test hands over what is done with a module, or with a module as a function, once; it is done
with both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from layers import LAYERS, Layer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

# A module as a function of its input and its parameters.
Call: TypeAlias = Callable[..., Tensor]

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
