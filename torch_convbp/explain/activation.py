"""The activations g a page can show: g as torch computes it, and g' in closed form.

The closed form is what L3 multiplies with in the lecture's loops; torch's autograd differentiates g
by itself, the package's operator has an L3 of its own, and the page compares the three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_convbp import activations
from torch_convbp.explain.mathml import Math, fraction, power, row, word
from torch_convbp.ops import elementwise as elementwise_ops

SLOPE = 0.125  # of leaky_relu: more than usual, to be seen in the pictures; exact in binary


class Activation(NamedTuple):
    """g and g', element by element, and how both are written."""

    name: str
    g: Callable[[Tensor], Tensor]
    g_prime: Callable[[Tensor], Tensor]
    g_text: Math
    g_prime_text: Math

    def by_package(self, p: Tensor) -> Tensor:
        """g by this package's own operator, whose backward pass is its own L3."""
        if self.name == "identity":
            return self.g(p)  # a layer without an activation
        slope = f"({SLOPE})" if self.name == "leaky_relu" else ""
        row = activations.parse("explain", self.name + slope)
        assert row is not None
        return elementwise_ops.activation(p, *row)


def _silu_prime(p: Tensor) -> Tensor:
    sigma = torch.sigmoid(p)
    return sigma * (1 + p * (1 - sigma))


_MAX = word("max")
_EXP = power("e", "-p")
_TANH = row(word("tanh"), "p")
_WHERE = word(" where ")
_ELSE = word(", else ")

ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation(
            "relu",
            F.relu,
            lambda p: (p > 0).to(p.dtype),
            row(_MAX, "(0,p)"),
            row("1", _WHERE, "p>0", _ELSE, "0"),
        ),
        Activation(
            "leaky_relu",
            lambda p: F.leaky_relu(p, SLOPE),
            lambda p: torch.where(p > 0, 1.0, SLOPE).to(p.dtype),
            row(_MAX, "(p/8,p)"),
            row("1", _WHERE, "p>0", _ELSE, "1/8"),
        ),
        Activation(
            "tanh",
            torch.tanh,
            lambda p: 1 - torch.tanh(p) ** 2,
            _TANH,
            row("1−", power(word("tanh"), "2"), "p"),
        ),
        Activation(
            "sigmoid",
            torch.sigmoid,
            lambda p: torch.sigmoid(p) * (1 - torch.sigmoid(p)),
            fraction("1", row("1+", _EXP)),
            row("g(p)(1−g(p))"),
        ),
        Activation(
            "softplus",
            F.softplus,
            torch.sigmoid,
            row(word("log"), "(1+", power("e", "p"), ")"),
            fraction("1", row("1+", _EXP)),
        ),
        Activation(
            "silu",
            F.silu,
            _silu_prime,
            row("pσ(p)"),
            row("σ(p)(1+p(1−σ(p)))"),
        ),
        Activation(
            "identity",
            lambda p: p.clone(),
            torch.ones_like,
            row("p"),
            row("1"),
        ),
    )
}
