"""The operators written in torch's own: the same numbers, shapes and strides as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SMALL, Case, in_layout, integers, normal, parameters, small
from pool_cases import SMALL as POOLS
from pool_cases import Case as Pool
from pool_cases import average_case, distinct
from pool_cases import small as small_pool
from torch import Tensor

import torch_convbp as bp
from torch_convbp.activations import TABLE

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp
LAYOUTS = ["contiguous", "channels_last"]


def check(operator: Any, *arguments: Any, exact: bool = True, **options: Any) -> Any:
    """Both give the same; returns what the operator gives."""
    results = [
        function(*arguments, **options)
        for function in (operator.default, bp.decompositions()[operator.default])
    ]
    pairs = [results] if isinstance(results[0], Tensor) else zip(*results, strict=True)
    for ours, theirs in pairs:
        bound = {"rtol": 0, "atol": 0} if exact else {}
        torch.testing.assert_close(theirs, ours, **bound, equal_nan=True)
        assert strides(theirs) == strides(ours)
    return results[0]


def strides(tensor: Tensor) -> list[int]:
    """Those that mean something."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in sizes if size > 1 and tensor.numel()]


def test_every_operator_is_written() -> None:
    names = {
        n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if "torch_convbp::" in n
    }
    public = {name for name in names if not name.startswith("_")}
    assert public == {operator._schema.name.split("::")[1] for operator in bp.decompositions()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(SMALL))
def test_convolutions(case: Case, layout: str) -> None:
    a, w, d = (
        in_layout(integers(size, torch.float32, seed), layout)
        for seed, size in enumerate((case.input_size, case.weight_size, case.output_size))
    )
    bias = integers((case.out_channels,), torch.float32, 4)
    check(ops.conv2d, a, w, bias, *case.geometry)
    check(ops.conv2d, a, w, None, *case.geometry)
    check(ops.conv2d_activation, a, w, bias, *case.geometry, "relu", [])
    check(ops.conv2d_activation_pair, a, w, None, *case.geometry, "leaky_relu", [-2.0])
    for options in ({}, {"memory_format": torch.contiguous_format}):
        check(ops.conv2d_input_grad, list(case.input_size), w, d, *case.geometry, **options)
        for operator in (ops.conv2d_weight_grad, ops.conv2d_weight_bias_grad):
            check(operator, a, list(case.weight_size), d, *case.geometry, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TABLE)
def test_activations(name: str, layout: str) -> None:
    row = name, list(TABLE[name].parameters.values())
    p, grad = (in_layout(normal((2, 3, 5, 4), torch.float64, seed), layout) for seed in (1, 2))
    a = check(ops.activation, p, *row, exact=False)
    kept = a if TABLE[name].saves_output else p
    for operator in (ops.error_signal, ops.error_signal_bias_grad):
        check(operator, grad, kept, *row, exact=False)
        check(operator, grad.bfloat16(), kept.bfloat16(), *row, exact=False)


def test_linear() -> None:
    check(ops.linear, *(integers(size, torch.float32, 1) for size in ((2, 3, 4), (5, 4), (5,))))


WITH_EMPTY_WINDOWS = Pool(
    "empty_windows", (2, 3, 3, 2), (2, 2), (1, 1), padding=(1, 1), dilation=(3, 3)
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", ["distinct", "equal", "nan", "lowest"])
@pytest.mark.parametrize(
    "case", parameters([*POOLS, small_pool("offsets_of_4_bytes"), WITH_EMPTY_WINDOWS])
)
def test_max_pooling(case: Pool, values: str, layout: str) -> None:
    input = distinct(case.size, torch.float32)
    if values == "nan":
        input[..., ::3] = torch.nan
    elif values != "distinct":
        input = torch.full_like(input, {"equal": 1.0, "lowest": -torch.inf}[values])
    input = in_layout(input, layout)
    output, offset = check(ops.max_pool2d, input, *case.max_geometry)
    delta = in_layout(integers(tuple(output.shape), torch.float32, 3), layout)
    for format in (None, torch.contiguous_format):
        check(
            ops.max_pool2d_input_grad, list(case.size), delta, offset, *case.max_geometry,
            memory_format=format,
        )  # fmt: skip
    check(ops.max_pool2d_gather, input, offset, *case.max_geometry)


def test_windows_without_a_position_inside() -> None:
    case = WITH_EMPTY_WINDOWS
    output, offset = ops.max_pool2d(torch.ones(case.size), *case.max_geometry)
    assert (offset == 255).all() and (output == -torch.inf).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [(True, None), (False, None), (True, 7)], ids=str)
@pytest.mark.parametrize("case", parameters(POOLS))
def test_average_pooling(case: Pool, options: tuple[Any, ...], layout: str) -> None:
    case = average_case(case)
    input = in_layout(normal(case.size, torch.float64, 1), layout)
    output = check(ops.avg_pool2d, input, *case.average_geometry, *options, exact=False)
    delta = in_layout(normal(tuple(output.shape), torch.float64, 2), layout)
    for format in (None, torch.contiguous_format):
        check(
            ops.avg_pool2d_input_grad, list(case.size), delta, *case.average_geometry, *options,
            memory_format=format, exact=False,
        )  # fmt: skip


SHORT: dict[str, Callable[[Tensor], Any]] = {
    "conv2d": lambda t: check(
        ops.conv2d, t, t[:, :, :2, :2], None, *small("slides").geometry, exact=False
    ),
    "max_pool2d": lambda t: check(ops.max_pool2d, t, *small_pool("overlapping").max_geometry),
    "avg_pool2d": lambda t: check(ops.avg_pool2d, t, [2, 2], [2, 2], [0, 0], False, True, None,
                                  exact=False),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHORT)
def test_short_floats(name: str, dtype: torch.dtype) -> None:
    assert SHORT[name](normal((2, 2, 7, 7), dtype, 1)) is not None


def test_sums_of_short_floats_run_in_float32() -> None:
    """The deltas of 400 windows go to one position: in bfloat16 their sum would stop at 256."""
    input = torch.zeros(1, 1, 20, 20, dtype=torch.bfloat16)
    input[0, 0, 10, 10] = 1
    geometry = [20, 20], [1, 1], [10, 10], [1, 1], False
    output, offset = ops.max_pool2d(input, *geometry)
    grad = check(
        ops.max_pool2d_input_grad, [1, 1, 20, 20], torch.ones_like(output), offset, *geometry
    )
    assert grad.max() == 400
