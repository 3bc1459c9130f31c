"""L1 to L6 of one layer, computed three times, and compared.

The three: the lecture's loops (torch_convbp.reference), this package's operators under autograd,
and torch's own convolution and activation under autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_convbp import functional, lecture, reference
from torch_convbp.explain.layer import Layer

UNIT_ROUNDOFF = 2.0**-53
# Roundings between p and delta: those of g, g', a - t and their product, counted generously.
POINTWISE = 16


@dataclass(frozen=True)
class Step:
    """One quantity of the lecture, three times, without the batch dimension.

    ``terms`` is the number of products (or summands) in each entry, ``allowed`` what two orders of
    summation may differ by.
    """

    equation: str
    symbol: str
    loops: Tensor
    ours: Tensor
    torchs: Tensor
    terms: int
    allowed: float

    @property
    def differences(self) -> tuple[float, float, float]:
        """Largest differences: ours from the loops, torch's from the loops, ours from torch's."""
        pairs = ((self.ours, self.loops), (self.torchs, self.loops), (self.ours, self.torchs))
        return tuple((x - y).abs().max().item() for x, y in pairs)  # type: ignore[return-value]

    @property
    def agrees(self) -> bool:
        """Whether the three have one shape and differ by no more than rounding."""
        same_shape = self.loops.shape == self.ours.shape == self.torchs.shape
        return same_shape and all(d <= self.allowed for d in self.differences)  # NaN does not


@dataclass(frozen=True)
class Values:
    """What one pass forward and back puts out.

    p_pairs [1, O, K, M, N'], a map of M x N' for each pair of an output and an input map; p, a,
    a_grad and delta [1, O, M, N']; flipped_grad (of w̃) and w_grad [O, K, R, S]; b_grad [O, K];
    input_grad [1, K, H, W].
    """

    p_pairs: Tensor
    p: Tensor
    a: Tensor
    a_grad: Tensor
    delta: Tensor
    flipped_grad: Tensor
    w_grad: Tensor
    b_grad: Tensor
    input_grad: Tensor


def loss(a: Tensor, target: Tensor) -> Tensor:
    """L = 1/2 sum (a - t)^2, so that dL/da = a - t."""
    return ((a - target) ** 2).sum() / 2


def by_loops(layer: Layer) -> Values:
    """The lecture, equation by equation."""
    pairs = reference.pre_activation_pairs(layer.a, layer.w, layer.b)  # L1
    p = pairs.sum(2)  # L2
    a = reference.activation(p, layer.activation.g)
    a_grad = a - layer.target
    delta = reference.error_signal(p, a_grad, layer.activation.g_prime)  # L3
    w_grad = reference.filter_grad(layer.a, delta, layer.w.shape[2:])  # L4
    b_grad = reference.bias_grad(delta, layer.w.shape[1])  # L5
    input_grad = reference.input_grad(layer.a.shape[2:], layer.w, delta)  # L6
    flipped_grad = lecture.flip(w_grad)
    return Values(pairs, p, a, a_grad, delta, flipped_grad, w_grad, b_grad, input_grad)


def by_autograd(
    layer: Layer, conv2d: Callable[..., Tensor], g: Callable[[Tensor], Tensor]
) -> Values:
    """The same with a conv2d and a g of torch's kind: one backward pass gives every gradient.

    The leaves are the lecture's own w and b, so autograd finds the flip and the sign by itself.
    """
    input, w, b = (t.clone().requires_grad_() for t in (layer.a, layer.w, layer.b))
    weight, bias = lecture.to_torch(w, b)
    p = conv2d(input, weight, bias)
    a = g(p)
    for kept in (weight, p, a):
        kept.retain_grad()
    loss(a, layer.target).backward()
    gradients = (a.grad, p.grad, weight.grad, w.grad, b.grad, input.grad)
    assert all(grad is not None for grad in gradients)
    forward = (pairs_by_groups(layer, conv2d), p.detach(), a.detach())
    return Values(*forward, *gradients)  # type: ignore[arg-type]


def pairs_by_groups(layer: Layer, conv2d: Callable[..., Tensor]) -> Tensor:
    """p_ok before the sum over k, as one convolution with a group for each map k."""
    weight = lecture.flip(layer.w).transpose(0, 1).flatten(0, 1)[:, None]
    pairs = conv2d(layer.a, weight, -layer.b.T.flatten(), groups=layer.w.shape[1])
    return pairs.unflatten(1, layer.w.shape[1::-1]).transpose(1, 2)


def one_filters_share(layer: Layer, delta: Tensor, o: int) -> Tensor:
    """The summand of L6 that filter o contributes to dL/da. Returns [K, H, W]."""
    own = slice(o, o + 1)
    return reference.input_grad(layer.a.shape[2:], layer.w[own], delta[:, own])[0]


def compare(layer: Layer, loops: Values) -> list[Step]:
    """Every step of the lecture, with what the three computations give; ``loops`` is by_loops's.

    Two orders of summing D products differ by at most about 2 D u A, where A is the largest sum of
    their absolute values; A is computed with the loops, on absolute values. p is exact (see
    ``picture``), so from L3 on D counts the sum at hand, and the roundings of delta itself.
    """
    ours = by_autograd(layer, functional.conv2d, layer.activation.by_package)
    torchs = by_autograd(layer, F.conv2d, layer.activation.g)
    outputs, maps, *filter_size = layer.w.shape
    positions, taps = loops.p[0, 0].numel(), layer.w[0, 0].numel()

    a, w, b = layer.a.abs(), layer.w.abs(), layer.b.abs()
    steepest = max(1.0, layer.activation.g_prime(loops.p).abs().max().item())
    error = (loops.a.abs() + layer.target.abs()).max() * steepest
    delta = torch.full_like(loops.delta, error.item())
    size = layer.a.shape[2:]
    scales = {
        "p_pairs": reference.pre_activation_pairs(a, w, -b),
        "p": reference.pre_activation(a, w, -b),
        "a": loops.a,
        "a_grad": error,
        "delta": error,
        "flipped_grad": reference.filter_grad(a, delta, filter_size),
        "b_grad": reference.bias_grad(delta, maps),
        "input_grad": reference.input_grad(size, w, delta),
    }
    scales["w_grad"] = scales["flipped_grad"]

    def step(equation: str, name: str, symbol: str, terms: int, extra: int) -> Step:
        three: list[Tensor] = [getattr(way, name) for way in (loops, ours, torchs)]
        if name not in ("flipped_grad", "w_grad", "b_grad"):  # the others have a batch of one
            three = [values[0] for values in three]
        scale = scales[name].abs().max().item()
        allowed = 2 * (terms + extra) * UNIT_ROUNDOFF * scale
        return Step(equation, symbol, three[0], three[1], three[2], terms, allowed)

    return [
        step("L1", "p_pairs", "p_ok", taps + 1, 0),
        step("L2", "p", "p_o", maps * (taps + 1), 0),
        step("L2", "a", "a_o", 1, POINTWISE),
        step("loss", "a_grad", "∂L/∂a_o", 1, POINTWISE),
        step("L3", "delta", "δ_o", 1, POINTWISE),
        step("L4", "flipped_grad", "∂L/∂w̃_ok", positions, POINTWISE),
        step("L4", "w_grad", "∂L/∂w_ok", positions, POINTWISE),
        step("L5", "b_grad", "∂L/∂b_ok", positions, POINTWISE),
        step("L6", "input_grad", "∂L/∂a_k", outputs * taps, POINTWISE),
    ]
