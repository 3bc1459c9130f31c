"""A sum whose terms may be missing, as gradients are that nobody asked for."""

from __future__ import annotations

from torch import Tensor


def sum_present(*terms: Tensor | None) -> Tensor | None:
    """Sum of the terms that are not None."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total
