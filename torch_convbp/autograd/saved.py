"""What a Function saves for backward: the tensors that the requested gradients need, and no None,
which tools that draw or measure the graph do not expect among saved tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def save_present(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves the tensors that are not None."""
    present = [tensor for tensor in tensors if tensor is not None]
    ctx.save_for_backward(*present)
    # None where all are present, as a rule.
    ctx.is_present = None
    if len(present) < len(tensors):
        ctx.is_present = [tensor is not None for tensor in tensors]


def saved_or_none(ctx: Any) -> Sequence[Any]:
    """The arguments of ``save_present``, for backward; jvp reads what save_for_forward saved."""
    if ctx.is_present is None:
        return ctx.saved_tensors
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if present else None for present in ctx.is_present]
