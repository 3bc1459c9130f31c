"""What a Function saves for backward: the tensors that the requested gradients need, and no None,
which tools that draw or measure the graph do not expect among saved tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def save_present(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves the tensors that are not None."""
    ctx.save_for_backward(*[tensor for tensor in tensors if tensor is not None])
    ctx.is_present = [tensor is not None for tensor in tensors]


def saved_or_none(ctx: Any) -> list[Any]:
    """The arguments of ``save_present``, for backward; jvp reads what save_for_forward saved."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if present else None for present in ctx.is_present]
