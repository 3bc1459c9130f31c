"""The lecture, literally: L1 to L8 in slow, readable torch.

The executable specification, in float64. Parameters are the lecture's own: the filters w_ok before
flipping, and one bias b_ok, subtracted, for each pair of maps. Sums of a convolution are loops over
positions and taps. Only explain imports this file in the package; tests and docs compare the
operators with it.

Notation: a [N, K, H, W] are the maps of the layer below; w [O, K / groups, R, S]; b [O, K /
groups]; p and delta [N, O, M, N'] belong to this layer. N is the batch; an output map is M x N'
(height, width). The slides have stride 1, no padding, no dilation and one group; the rest follows
from one identity: output (m, n) meets input

    (m * stride - padding + r * dilation,  n * stride - padding + s * dilation)

at tap (r, s), within o's own group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_convbp.lecture import flip


class Geometry(NamedTuple):
    """How the filter moves: (height, width), and padding as (top, bottom, left, right)."""

    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0, 0, 0)
    dilation: Sequence[int] = (1, 1)
    groups: int = 1


SLIDES = Geometry()


def output_size(
    input_size: Sequence[int], filter_size: Sequence[int], geometry: Geometry = SLIDES
) -> tuple[int, int]:
    """(M, N') of a layer with maps of input_size (H, W) and filters of filter_size (R, S)."""
    top, bottom, left, right = geometry.padding
    padded = (input_size[0] + top + bottom, input_size[1] + left + right)
    return tuple(  # type: ignore[return-value]
        (padded[i] - geometry.dilation[i] * (filter_size[i] - 1) - 1) // geometry.stride[i] + 1
        for i in range(2)
    )


def meetings(
    input_size: Sequence[int],
    filter_size: Sequence[int],
    size: Sequence[int],
    geometry: Geometry,
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Every (m, n, r, s, i, j): output (m, n) meets input (i, j) at tap (r, s)."""
    top, _, left, _ = geometry.padding
    for m in range(size[0]):
        for n in range(size[1]):
            for r in range(filter_size[0]):
                for s in range(filter_size[1]):
                    i = m * geometry.stride[0] - top + r * geometry.dilation[0]
                    j = n * geometry.stride[1] - left + s * geometry.dilation[1]
                    if 0 <= i < input_size[0] and 0 <= j < input_size[1]:
                        yield m, n, r, s, i, j


def pre_activation_pairs(a: Tensor, w: Tensor, b: Tensor, geometry: Geometry = SLIDES) -> Tensor:
    """L1: p_ok[m, n] = sum_{r,s} a_k[m + r, n + s] w̃_ok[r, s] - b_ok.

    Returns [N, O, K / groups, M, N'], one map for each pair of an output and an input map.
    """
    a, w, b = a.double(), flip(w.double()), b.double()
    size = output_size(a.shape[2:], w.shape[2:], geometry)
    outputs, per_group = w.shape[:2]
    p = torch.zeros(a.shape[0], outputs, per_group, *size, dtype=torch.float64)
    for m, n, r, s, i, j in meetings(a.shape[2:], w.shape[2:], size, geometry):
        for o in range(outputs):
            first = o // (outputs // geometry.groups) * per_group  # o's own group
            p[:, o, :, m, n] += a[:, first : first + per_group, i, j] * w[o, :, r, s]
    return p - b[:, :, None, None]


def pre_activation(a: Tensor, w: Tensor, b: Tensor, geometry: Geometry = SLIDES) -> Tensor:
    """L2, first half: p_o = sum_k p_ok."""
    return pre_activation_pairs(a, w, b, geometry).sum(2)


def activation(p: Tensor, g: Callable[[Tensor], Tensor]) -> Tensor:
    """L2, second half: a_o = g(p_o)."""
    return g(p)


def error_signal(p: Tensor, activation_grad: Tensor, g_prime: Callable[[Tensor], Tensor]) -> Tensor:
    """L3: delta_o = g'(p_o) ⊙ dL/da_o."""
    return g_prime(p) * activation_grad


def filter_grad(
    a: Tensor, delta: Tensor, filter_size: Sequence[int], geometry: Geometry = SLIDES
) -> Tensor:
    """L4: dL/dw̃_ok[r, s] = sum_{m,n} delta_o[m, n] a_k[m + r, n + s], and dL/dw = flip(dL/dw̃).

    Returns dL/dw, [O, K / groups, R, S].
    """
    a, delta = a.double(), delta.double()
    outputs, per_group = delta.shape[1], a.shape[1] // geometry.groups
    grad = torch.zeros(outputs, per_group, *filter_size, dtype=torch.float64)
    for m, n, r, s, i, j in meetings(a.shape[2:], filter_size, delta.shape[2:], geometry):
        for o in range(outputs):
            first = o // (outputs // geometry.groups) * per_group
            maps = a[:, first : first + per_group, i, j]
            grad[o, :, r, s] += (delta[:, o, m, n, None] * maps).sum(0)
    return flip(grad)


def bias_grad(delta: Tensor, per_group: int) -> Tensor:
    """L5: dL/db_ok = -sum_{m,n} delta_o[m, n], the same for every k. Returns [O, K / groups]."""
    return -delta.double().sum((0, 2, 3))[:, None].expand(-1, per_group)


def input_grad(
    input_size: Sequence[int], w: Tensor, delta: Tensor, geometry: Geometry = SLIDES
) -> Tensor:
    """L6: dL/da_k[i, j] = sum_o sum_{m,n: m+r=i, n+s=j} delta_o[m, n] w̃_ok[r, s].

    input_size is (H, W). Returns [N, K, H, W].
    """
    w, delta = flip(w.double()), delta.double()
    outputs, per_group = w.shape[:2]
    grad = torch.zeros(
        delta.shape[0], per_group * geometry.groups, *input_size, dtype=torch.float64
    )
    for m, n, r, s, i, j in meetings(input_size, w.shape[2:], delta.shape[2:], geometry):
        for o in range(outputs):
            first = o // (outputs // geometry.groups) * per_group
            grad[:, first : first + per_group, i, j] += delta[:, o, m, n, None] * w[o, :, r, s]
    return grad


def dense(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """L7: p_i = sum_j W_ij a_j - b_i. a [N, J], w [I, J], b [I]; returns [N, I]."""
    a, w, b = a.double(), w.double(), b.double()
    p = torch.zeros(a.shape[0], w.shape[0], dtype=torch.float64)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            p[:, i] += w[i, j] * a[:, j]
    return p - b


def dense_grads(a: Tensor, w: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L7: dL/da_j = sum_i delta_i W_ij, dL/dW_ij = delta_i a_j, dL/db_i = -delta_i.

    dL/dW and dL/db are summed over the batch. delta [N, I]; returns [N, J], [I, J], [I].
    """
    a, w, delta = a.double(), w.double(), delta.double()
    a_grad, w_grad = torch.zeros_like(a), torch.zeros_like(w)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            a_grad[:, j] += delta[:, i] * w[i, j]
            w_grad[i, j] = (delta[:, i] * a[:, j]).sum()
    return a_grad, w_grad, -delta.sum(0)


class Windows(NamedTuple):
    """How a pooling window moves: (height, width) each."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)


def window(w: Windows, size: Sequence[int], m: int, n: int) -> list[tuple[int, int]]:
    """The positions of window (m, n) that lie inside maps of that size (H, W)."""
    return [
        (i, j)
        for r in range(w.kernel[0])
        for s in range(w.kernel[1])
        for i in [m * w.stride[0] - w.padding[0] + r * w.dilation[0]]
        for j in [n * w.stride[1] - w.padding[1] + s * w.dilation[1]]
        if 0 <= i < size[0] and 0 <= j < size[1]
    ]


def max_pool(a: Tensor, w: Windows, size: Sequence[int]) -> Tensor:
    """L8: the largest value of each window. a [N, C, H, W], size (M, N')."""
    out = torch.zeros(*a.shape[:2], *size, dtype=torch.float64)
    for m in range(size[0]):
        for n in range(size[1]):
            values = [a[:, :, i, j].double() for i, j in window(w, a.shape[2:], m, n)]
            out[:, :, m, n] = torch.stack(values).max(0).values
    return out


def max_pool_input_grad(a: Tensor, delta: Tensor, w: Windows) -> Tensor:
    """L8: the error signal passes back to the position that won its window, the first of equals."""
    grad = torch.zeros_like(a, dtype=torch.float64)
    for m in range(delta.shape[2]):
        for n in range(delta.shape[3]):
            positions = window(w, a.shape[2:], m, n)
            for b in range(a.shape[0]):
                for c in range(a.shape[1]):
                    i, j = max(positions, key=lambda ij: float(a[b, c, ij[0], ij[1]]))
                    grad[b, c, i, j] += delta[b, c, m, n].double()
    return grad


def average_pool(a: Tensor, w: Windows, size: Sequence[int]) -> Tensor:
    """L8: the mean over each window, its padding counted as zeros."""
    out = torch.zeros(*a.shape[:2], *size, dtype=torch.float64)
    for m in range(size[0]):
        for n in range(size[1]):
            for i, j in window(w, a.shape[2:], m, n):
                out[:, :, m, n] += a[:, :, i, j].double() / (w.kernel[0] * w.kernel[1])
    return out


def average_pool_input_grad(input_size: Sequence[int], delta: Tensor, w: Windows) -> Tensor:
    """L8: the error signal is spread evenly over its window. input_size is (H, W)."""
    grad = torch.zeros(*delta.shape[:2], *input_size, dtype=torch.float64)
    for m in range(delta.shape[2]):
        for n in range(delta.shape[3]):
            for i, j in window(w, input_size, m, n):
                grad[:, :, i, j] += delta[:, :, m, n].double() / (w.kernel[0] * w.kernel[1])
    return grad
