"""Statistics of a gradient's elements: norm, mean, largest magnitude, and shares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Statistics"]

# Number of squares summed at a time.
ROW = 512


class Statistics(NamedTuple):
    """Statistics of a tensor; norm, mean and max_abs are not finite if an element is not.

    norm is the root of the sum of squares; the shares are of all elements.
    """

    norm: float
    mean: float
    max_abs: float
    share_of_zeros: float
    share_finite: float
    size: int

    @property
    def rms(self) -> float:
        """The root of the mean square: a norm that layers of all sizes share."""
        return self.norm / math.sqrt(self.size) if self.size else math.nan

    @staticmethod
    def of(tensor: Tensor) -> Statistics:
        """The statistics of a tensor, in few passes and with little extra memory."""
        size = tensor.numel()
        if size == 0:
            return Statistics(0.0, math.nan, math.nan, math.nan, math.nan, 0)
        with torch.no_grad():
            values = _in_memory_order(tensor.detach())
            if values.dtype not in (torch.float32, torch.float64):
                values = values.float()
            low, high = (bound.item() for bound in values.aminmax())
            max_abs = max(abs(low), abs(high)) if low == low else math.nan
            # Zeros as numbers: torch counts bools, and non-zeros, much more slowly.
            zeros = torch.eq(values, 0, out=torch.empty_like(values)).mean().item()
            if math.isfinite(max_abs):
                norm, mean = _norm_and_mean(values, max_abs)
                finite = size
            else:
                norm, mean = max_abs, values.mean().item()
                finite = int(torch.isfinite(values).sum())
        return Statistics(norm, mean, max_abs, zeros, finite / size, size)

    @staticmethod
    def of_all(parts: Iterable[Statistics]) -> Statistics:
        """The statistics of several tensors taken together, as if they were one."""
        parts = [part for part in parts if part.size]
        size = sum(part.size for part in parts)
        if len(parts) < 2:
            return parts[0] if parts else Statistics(0.0, *(math.nan,) * 4, 0)

        def mean(name: str) -> float:
            return sum(getattr(part, name) * part.size for part in parts) / size

        return Statistics(
            norm=math.hypot(*(part.norm for part in parts)),
            mean=mean("mean"),
            max_abs=max((part.max_abs for part in parts), key=lambda m: (m != m, m)),
            share_of_zeros=mean("share_of_zeros"),
            share_finite=mean("share_finite"),
            size=size,
        )


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The elements in one dimension: a view where the tensor is dense, of any memory format."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _norm_and_mean(values: Tensor, max_abs: float) -> tuple[float, float]:
    """Norm and mean of finite numbers, of any magnitude."""
    scale = 1.0
    if not 1e-15 < max_abs < 1e12:  # squares, or their sum, would leave float32's range
        scale = max(max_abs, torch.finfo(values.dtype).tiny)
        values = values / scale
    mean = values.mean().item() * scale
    # torch sums the squares of a whole tensor one after the other, and loses digits on the way.
    norm = 0.0
    if whole := values.numel() // ROW * ROW:
        rows = torch.linalg.vector_norm(values[:whole].view(-1, ROW), dim=1)
        norm, values = torch.linalg.vector_norm(rows).item(), values[whole:]
    return math.hypot(norm, torch.linalg.vector_norm(values).item()) * scale, mean
