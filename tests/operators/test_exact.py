"""Whole numbers: every convolution operator exactly as torch's float64, not one bit apart.

Sums stay below 2^24 and so exact in float32; both sides round to the element type once. Every
layout, element type, algorithm and instruction set, over SMALL and RAGGED; over GRID in the slow
part. Before each computation a convolution of NaN leaves NaN in the kernels' working memory, and
fresh memory is NaN: what is read without having been written shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import GRID, RAGGED, SMALL, Case, in_every_way, in_layout, integers, parameters
from memory import poisoned
from torch import Tensor

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]
ops = torch.ops.torch_convbp
Results = dict[str, Tensor]


def operators(case: Case, input: Tensor, weight: Tensor, bias: Tensor, delta: Tensor) -> Results:
    """Every operator; delta is dL/da behind a relu, and dL/dp where there is none."""
    geometry = case.geometry
    a, p = ops.conv2d_activation_pair(input, weight, bias, *geometry, "relu", [])
    weight_grad, bias_grad = ops.conv2d_weight_bias_grad(input, case.weight_size, delta, *geometry)
    error_signal, its_bias_grad = ops.error_signal_bias_grad(delta, a, "relu", [])
    return {
        "conv2d": ops.conv2d(input, weight, bias, *geometry),
        "conv2d without bias": ops.conv2d(input, weight, None, *geometry),
        "conv2d_activation": ops.conv2d_activation(input, weight, bias, *geometry, "relu", []),
        "activation of the pair": a,
        "pre-activation of the pair": p,
        "error_signal": ops.error_signal(delta, a, "relu", []),
        "error signal, with the bias gradient": error_signal,
        "bias gradient, with the error signal": its_bias_grad,
        "conv2d_input_grad": ops.conv2d_input_grad(case.input_size, weight, delta, *geometry),
        "conv2d_weight_grad": ops.conv2d_weight_grad(input, case.weight_size, delta, *geometry),
        "weight gradient, with the bias gradient": weight_grad,
        "bias gradient, with the weight gradient": bias_grad,
    }


def in_torchs_words(
    case: Case, input: Tensor, weight: Tensor, bias: Tensor, delta: Tensor
) -> Results:
    """The same; the input is padded first, so that every padding can be said."""
    leaves = [t.clone().requires_grad_() for t in (input, weight, bias)]
    top, bottom, left, right = case.padding
    padded = F.pad(leaves[0], (left, right, top, bottom))
    if case.in_channels:
        p = F.conv2d(padded, *leaves[1:], case.stride, 0, case.dilation, case.groups)
    else:  # no channels, no products: the bias is left
        p = leaves[2][:, None, None].expand(case.output_size)
    grads = torch.autograd.grad(p, leaves, delta, materialize_grads=True)
    input_grad, weight_grad, bias_grad = grads
    p = p.detach()
    error_signal = delta * (p > 0)
    return {
        "conv2d": p,
        "conv2d without bias": p - bias[:, None, None],
        "conv2d_activation": p.relu(),
        "activation of the pair": p.relu(),
        "pre-activation of the pair": p,
        "error_signal": error_signal,
        "error signal, with the bias gradient": error_signal,
        "bias gradient, with the error signal": error_signal.sum((0, 2, 3)),
        "conv2d_input_grad": input_grad,
        "conv2d_weight_grad": weight_grad,
        "weight gradient, with the bias gradient": weight_grad,
        "bias gradient, with the weight gradient": bias_grad,
    }


def tensors(case: Case, make: Callable[..., Tensor] = integers) -> list[Tensor]:
    sizes = case.input_size, case.weight_size, (case.out_channels,), case.output_size
    return [make(size, torch.float64, seed) for seed, size in enumerate(sizes, 1)]


@functools.lru_cache(maxsize=2)  # the parameters of one case follow each other
def expected_and_share(case: Case) -> tuple[Results, float]:
    """torch's results; of the elements that some product reaches, the share that is not 0."""
    expected = in_torchs_words(case, *tensors(case))
    ones = tensors(case, lambda size, dtype, seed: torch.ones(size, dtype=dtype))
    reached = in_torchs_words(case, *ones)
    shares = [
        (result[reached[name] != 0] != 0).double().mean().item()
        for name, result in expected.items()
        if reached[name].count_nonzero() > 50  # of fewer, all may be 0 by chance
    ]
    return expected, min(shares, default=1.0)


def check(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> float:
    expected, share = expected_and_share(case)
    input, weight, bias, delta = (t.to(dtype) for t in tensors(case))
    arguments = [in_layout(t, layout) for t in (input, weight)] + [bias, in_layout(delta, layout)]
    with poisoned(algorithm):
        assert torch.empty(3).isnan().all(), "this torch no longer fills fresh memory with NaN"
        if algorithm != "plain":  # those loops have no working memory
            operators(case, *(torch.full_like(t, torch.nan) for t in arguments))
        actual = operators(case, *arguments)
    assert actual.keys() == expected.keys()
    for name, result in actual.items():
        assert result.dtype == dtype, name
        assert torch.equal(result, expected[name].to(dtype)), name
    return share


@in_every_way(SMALL)
def test_small(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    check(case, layout, dtype, algorithm)


@in_every_way(RAGGED)
def test_ragged(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    assert check(case, layout, dtype, algorithm) > 0.3


LARGE = [  # results of more than 8 MB, behind an activation too: not left in the caches
    Case("first_layer", in_channels=3, out_channels=64, size=(133, 131), padding=(1, 1, 1, 1)),
    Case("depthwise", in_channels=64, out_channels=64, groups=64, size=(133, 131), kernel=(3, 3),
         padding=(1, 1, 1, 1)),
    Case("depthwise_half_lines", in_channels=72, out_channels=72, groups=72, size=(123, 121),
         kernel=(3, 3), padding=(1, 1, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(LARGE))
def test_ragged_past_the_caches_float32(case: Case) -> None:
    check(case, "channels_last", torch.float32, "direct")


@pytest.mark.slow
@in_every_way(GRID)
def test_grid(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    assert check(case, layout, dtype, algorithm) > 0.3
