"""How far a layer's results may lie from the exact ones: roundings, carried through each step.

Everything here is float64. A sum of n products, rounded in any order, errs by at most about n u
times the sum of the magnitudes, u the accumulator's unit roundoff; a result that is stored rounds
once more, by v, the element type's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Where an activation's slope jumps: there an error of p of any size makes one of the jump's.
KINKS = (0.0, 3.0, -3.0, 6.0, 20.0)
JUMP = 2.0  # no slope jumps by more; nor does a slope between kinks change faster than p


@dataclass(frozen=True)
class Bounds:
    terms: int  # of the longest sum
    u: float
    v: float
    least: float  # what a result below the normal numbers may lose
    stores_partial_sums: bool = False  # as torch's product of matrices does before it adds a bias
    near: float = 0.0  # of the largest sum of magnitudes: what Winograd's algorithm may add to each

    @staticmethod
    def of(
        dtype: torch.dtype, terms: int, stores_partial_sums: bool = False, near: float = 0.0
    ) -> Bounds:
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        eps = [torch.finfo(d).eps / 2 for d in (accumulator, dtype)]
        return Bounds(
            terms, eps[0], eps[1], torch.finfo(dtype).smallest_normal, stores_partial_sums, near
        )

    @property
    def summing(self) -> float:
        """Of a sum, relative to the sum of magnitudes; float64 is compared with itself."""
        summing = 2 * (self.terms + 1) * (self.u + torch.finfo(torch.float64).eps)
        return summing + 2 * self.v * self.stores_partial_sums

    def sum(self, magnitude: Tensor, exact: Tensor) -> Tensor:
        rounding = self.summing * magnitude + 2 * self.v * exact.abs() + self.least
        return rounding + self.of_largest(magnitude)

    def of_largest(self, magnitude: Tensor) -> float:
        return self.near * magnitude.max().item() if self.near and magnitude.numel() else 0.0


def round_off(
    layer: Callable[..., Tensor],
    g: Callable[[Tensor], Tensor] | None,
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    bounds: Bounds,
    wanted: Sequence[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The output of g(layer(input, weight, bias)) and its gradients ("i", "w", "b"); bounds."""
    leaves = {n: t.requires_grad_() for n, t in zip("iwb", tensors, strict=True) if t is not None}
    p = layer(*(leaves.get(n) for n in "iwb"))
    positive = {n: t.detach().abs().requires_grad_() for n, t in leaves.items()}
    magnitude = layer(*(positive.get(n) for n in "iwb"))
    p_error = bounds.sum(magnitude.detach(), p.detach())

    if g is None:
        output, output_error, delta, delta_error = p, p_error, grad, torch.zeros_like(p)
    else:
        output = g(p)
        (delta,) = torch.autograd.grad(output, p, grad, retain_graph=True)
        at = p.detach()
        elementary = 16 * bounds.u * (1 + at.abs()) ** 3  # of g and its slope, some of it cancels
        output_error = 2 * p_error + elementary + 2 * bounds.v * output.detach().abs()
        crossed = torch.stack([(at - kink).abs() for kink in KINKS]).amin(0) <= p_error
        slope_error = JUMP * (p_error + bounds.v + crossed) + elementary
        delta_error = grad.abs() * slope_error + 2 * bounds.v * delta.abs() + bounds.least

    exact = {"output": output.detach()}
    bound = {"output": output_error.detach()}
    if wanted:
        # A gradient sums products of delta: what errs is delta, and the sum.
        spread = delta_error + bounds.summing * (delta.abs() + delta_error)
        gradients = torch.autograd.grad(output, [leaves[n] for n in wanted], grad)
        leaves_of = [positive[n] for n in wanted]
        errors = torch.autograd.grad(magnitude, leaves_of, spread, retain_graph=True)
        sizes = torch.autograd.grad(magnitude, leaves_of, delta.abs() + delta_error)
        for name, gradient, error, size in zip(wanted, gradients, errors, sizes, strict=True):
            error = error + bounds.of_largest(size)
            exact[name] = gradient
            bound[name] = error + 2 * bounds.v * (gradient.abs() + error) + bounds.least
    return exact, bound
