"""Whole numbers: pooling and its backward passes exactly as torch's float64 (see test_exact.py).

Averages divide by a power of two, so that the quotients are exact too.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from cases import in_every_way, in_layout, integers
from memory import poisoned
from pool_cases import GRID, RAGGED, SMALL, Case, average_case, average_results, max_results
from torch import Tensor

import torch_convbp as bp

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]


def results(pools, case: Case, input: Tensor, delta: Tensor, average_delta: Tensor) -> list[Tensor]:
    """Output, indices and gradient of the largest; output and gradient of the average."""
    return [
        *max_results(pools.max_pool2d, case, input, delta),
        *average_results(pools.avg_pool2d, average_case(case), input, average_delta,
                         divisor_override=4),
    ]  # fmt: skip


def tensors(case: Case) -> list[Tensor]:
    sizes = case.size, case.output_size, average_case(case).output_size
    return [integers(size, torch.float64, seed) for seed, size in enumerate(sizes, 1)]


@functools.lru_cache(maxsize=2)  # the parameters of one case follow each other
def expected_and_share(case: Case) -> tuple[list[Tensor], float]:
    """torch's results; of the elements that are in a window, the share that is not 0."""
    expected = results(F, case, *tensors(case))
    output, indices, gradient, average, average_gradient = expected
    reached = average_results(
        F.avg_pool2d, average_case(case), *(torch.ones_like(t) for t in tensors(case)[::2])
    )
    shares = [
        (output != 0).double().mean().item(),
        (average[reached[0] != 0] != 0).double().mean().item(),
        (average_gradient[reached[1] != 0] != 0).double().mean().item(),
    ]
    assert gradient.any() and indices.any()
    return expected, min(shares)


def check(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    if case.size[0] and min(case.size[2:]) > 1:
        expected, share = expected_and_share(case)
        assert share > 0.3
    else:
        expected = results(F, case, *tensors(case))
    arguments = [in_layout(t.to(dtype), layout) for t in tensors(case)]
    with poisoned(algorithm):
        results(bp.functional, case, *(torch.full_like(t, torch.nan) for t in arguments))
        actual = results(bp.functional, case, *arguments)
    for result, exact in zip(actual, expected, strict=True):
        assert torch.equal(result, exact if exact.dtype == torch.int64 else exact.to(dtype))
        assert result.dtype == (torch.int64 if exact.dtype == torch.int64 else dtype)


@in_every_way(SMALL + RAGGED)
def test_small_and_ragged(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    check(case, layout, dtype, algorithm)


@pytest.mark.slow
@in_every_way(GRID)
def test_grid(case: Case, layout: str, dtype: torch.dtype, algorithm: str) -> None:
    check(case, layout, dtype, algorithm)
