"""Pooling (L8): against the lecture, against torch, against its own plain loops."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from cases import DTYPES, LAYOUTS, in_layout, integers, normal, parameters
from pool_cases import (
    RAGGED,
    SMALL,
    Case,
    average_case,
    average_results,
    distinct,
    max_results,
    small,
)
from rounding import Bounds
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from twins import assert_same, kept

import torch_convbp as bp
from torch_convbp import reference

pytestmark = pytest.mark.every_device

f = bp.functional
ops = torch.ops.torch_convbp


# --- values ---------------------------------------------------------------------------------


# What ceil_mode adds is not in the lecture.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters([c for c in SMALL if not c.ceil and c.size[0]]))
def test_exactly_the_reference(case: Case, layout: str) -> None:
    windows = reference.Windows(case.kernel, case.stride, case.padding, case.dilation)
    input = in_layout(integers(case.size, torch.float64, seed=1), layout)
    delta = in_layout(integers(case.output_size, torch.float64, seed=2), layout)
    output, _, input_grad = max_results(f.max_pool2d, case, input, delta)
    assert torch.equal(output, reference.max_pool(input, windows, case.output_size[2:]))
    assert torch.equal(input_grad, reference.max_pool_input_grad(input, delta, windows))

    case = average_case(case)
    windows = windows._replace(dilation=(1, 1))
    taps = case.kernel[0] * case.kernel[1]
    input = input * taps  # what each is divided by: the quotients are whole numbers
    delta = in_layout(integers(case.output_size, torch.float64, seed=2) * taps, layout)
    output, input_grad = average_results(f.avg_pool2d, case, input, delta)
    assert torch.equal(output, reference.average_pool(input, windows, case.output_size[2:]))
    expected = reference.average_pool_input_grad(case.size[2:], delta, windows)
    assert torch.equal(input_grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(SMALL + RAGGED))
def test_max_is_exactly_torchs(case: Case, layout: str, dtype: torch.dtype) -> None:
    """Values, winners and gradients, with ties, NaN and infinities among the inputs."""
    delta = in_layout(integers(case.output_size, dtype, seed=2), layout)
    for kind in ("ties", "nan", "inf"):
        input = integers(case.size, dtype, seed=1)
        where = normal(case.size, torch.float32, seed=3) > 0
        if kind != "ties":
            input[where] = float("nan") if kind == "nan" else -float("inf")
        actual = max_results(f.max_pool2d, case, in_layout(input, layout), delta)
        expected = max_results(F.max_pool2d, case, input, delta)
        assert_same(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"count_include_pad": False}, {"divisor_override": -3}],
                         ids=["padding_counts", "padding_does_not", "divisor"])  # fmt: skip
@pytest.mark.parametrize("case", parameters([average_case(c) for c in SMALL + RAGGED]))
def test_average_is_close_to_torchs(case: Case, options: Any, dtype: torch.dtype) -> None:
    """A sum of n numbers and a division err by at most n + 1 roundings of its magnitude."""
    input, delta = normal(case.size, dtype, seed=1), normal(case.output_size, dtype, seed=2)
    exact = average_results(F.avg_pool2d, case, input.double(), delta.double(), **options)
    positive = {**options, "divisor_override": abs(options.get("divisor_override", 0)) or None}
    magnitude = average_results(
        F.avg_pool2d, case, input.double().abs(), delta.double().abs(), **positive
    )
    bounds = Bounds.of(dtype, case.kernel[0] * case.kernel[1] + 1)
    for layout in LAYOUTS:
        actual = average_results(
            f.avg_pool2d, case, in_layout(input, layout), in_layout(delta, layout), **options
        )
        for ours, exactly, size in zip(actual, exact, magnitude, strict=True):
            assert ours.shape == exactly.shape and ours.dtype == dtype
            error = (ours.double() - exactly).abs()
            assert bool((error <= bounds.sum(size, exactly)).all())


def test_windows_with_nothing_inside() -> None:
    """A dilation can step over a small input, and torch's gradient then write beyond its memory."""
    input = torch.ones(1, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    for layout in ("contiguous", "channels_last"):
        output, indices = f.max_pool2d(
            in_layout(input, layout), (2, 1), 1, (1, 0), (2, 1), return_indices=True
        )
        assert torch.equal(output, torch.full((1, 2, 1, 3), -float("inf"), dtype=torch.float64))
        assert torch.equal(indices, torch.full((1, 2, 1, 3), -1))
        (grad,) = torch.autograd.grad(output.clamp(min=0).sum(), input)
        assert not grad.any()


@pytest.mark.parametrize("case", parameters([small("overlapping"), small("ceil"), small("spp")]))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_is_torchs(case: Case, layout: str) -> None:
    input = in_layout(normal(case.size, torch.float32, seed=1), layout)
    for delta_layout in ("contiguous", "channels_last"):
        delta = in_layout(normal(case.output_size, torch.float32, seed=2), delta_layout)
        for ours, theirs in (
            (max_results(f.max_pool2d, case, input, delta),
             max_results(F.max_pool2d, case, input, delta)),
            (average_results(f.avg_pool2d, case, input, delta),
             average_results(F.avg_pool2d, case, input, delta)),
        ):  # fmt: skip
            for a, b in zip(ours, theirs, strict=True):
                sizes = zip(a.shape, a.stride(), b.stride(), strict=True)
                assert all(n == 1 or s == t for n, s, t in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(RAGGED))
def test_same_bits_at_any_thread_count_and_in_any_batch(
    case: Case, layout: str, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    average = average_case(case)
    tensors = [
        in_layout(normal((5, *size[1:]), dtype, seed), layout)
        for seed, size in enumerate((case.size, case.output_size, average.output_size))
    ]

    def results(first: int, last: int) -> list[Tensor]:
        input, delta, average_delta = (t[first:last] for t in tensors)
        return [
            *max_results(f.max_pool2d, case, input, delta),
            *average_results(f.avg_pool2d, average, input, average_delta),
        ]

    set_threads(1)
    expected = results(0, 5)
    for first, last in ((2, 3), (0, 3), (2, 5), (1, 4)):
        assert_same(results(first, last), [t[first:last] for t in expected])
    for count in (2, 3, 7):
        set_threads(count)
        assert_same(results(0, 5), expected)


def test_unbatched() -> None:
    input, delta = normal((3, 7, 6), torch.float32, 1), normal((3, 4, 3), torch.float32, 2)
    for layout in ("contiguous", "channels_last"):
        a = in_layout(input[None], layout)[0].requires_grad_()
        for ours, theirs in ((f.max_pool2d, F.max_pool2d), (f.avg_pool2d, F.avg_pool2d)):
            results = []
            for pool in (ours, theirs):
                output = pool(a, (2, 3), 2, (1, 1))
                results.append([output, *torch.autograd.grad(output, a, delta)])
            for x, y in zip(*results, strict=True):
                torch.testing.assert_close(x, y)
    ours = f.max_pool2d(input, 2, return_indices=True)
    assert all(map(torch.equal, ours, F.max_pool2d(input, 2, return_indices=True)))


def test_arguments_as_torch_takes_them() -> None:
    input = normal((2, 3, 9, 8), torch.float32, seed=1)
    for arguments in (
        (2,), ((2, 3),), ([3],), (3, 2), (3, None, 1), (3, [], 1), (3, (2,), (1, 0)),
        (torch.Size([3, 2]), 1),
    ):  # fmt: skip
        assert torch.equal(f.max_pool2d(input, *arguments), F.max_pool2d(input, *arguments))
        torch.testing.assert_close(f.avg_pool2d(input, *arguments), F.avg_pool2d(input, *arguments))
    assert torch.equal(f.max_pool2d(input, np.int64(2)), F.max_pool2d(input, 2))


def test_indices_feed_max_unpool() -> None:
    input = distinct((2, 3, 8, 6))
    output, indices = f.max_pool2d(input, 2, return_indices=True)
    restored = F.max_unpool2d(output, indices, 2)
    assert torch.equal(restored[restored != 0].sort()[0], output.flatten().sort()[0])


def test_only_the_offsets_are_kept() -> None:
    """One byte an output for the largest, nothing for the average; not the input."""
    input = normal((2, 4, 8, 8), torch.float32, seed=1).requires_grad_()
    for call, name, expected in (
        (lambda: f.max_pool2d(input, 2), "MaxPool2d", [(torch.uint8, (2, 4, 4, 4))]),
        (lambda: f.max_pool2d(input, (16, 16), padding=8), "MaxPool2d",
         [(torch.int32, (2, 4, 1, 1))]),
        (lambda: f.avg_pool2d(input, 2), "AvgPool2d", []),
    ):  # fmt: skip
        output, tensors = kept(call)
        assert output.grad_fn.name() == f"{name}Backward"
        assert [(t.dtype, tuple(t.shape)) for t in tensors] == expected
    assert not f.max_pool2d(input, 2, return_indices=True)[1].requires_grad


def test_offsets_of_another_pooling_reach_no_foreign_memory() -> None:
    """The operators may be called with any offsets: what is none of the window's counts nothing."""
    size, geometry = (1, 5, 6, 7), ((3, 2), (2, 2), (1, 1), (2, 1), False)
    output_size = ops.max_pool2d(torch.ones(size), *geometry)[0].shape
    for offset in (*range(0, 9), 100, 254, 255):
        for layout in ("contiguous", "channels_last"):
            delta = in_layout(torch.ones(output_size), layout)
            offsets = torch.full(output_size, offset, dtype=torch.uint8)
            results = []
            for algorithm in ("auto", "plain"):
                with bp.backends.cpu.flags(conv_algorithm=algorithm):
                    grad = ops.max_pool2d_input_grad(size, delta, offsets, *geometry)
                    results.append(grad)
            gathered = ops.max_pool2d_gather(torch.ones(size), offsets, *geometry)
            assert torch.equal(*results)
            assert grad.sum() == gathered.sum()
            assert bool(grad.any()) == (offset < 6)


# --- derivatives ----------------------------------------------------------------------------

GRADIENT_CASES = [
    Case(name=case.name, size=(1, 2, min(case.size[2], 6), min(case.size[3], 6)),
         kernel=case.kernel, stride=case.stride, padding=case.padding, dilation=case.dilation,
         ceil=case.ceil)
    for case in SMALL
    if case.name not in ("batch_0", "gaps", "dilation_and_everything")
]  # fmt: skip


def operators(case: Case) -> dict[str, tuple[Callable[..., Tensor], Tensor]]:
    """Each operator as a function of the tensor it is differentiable in."""
    input = distinct(case.size).requires_grad_()
    offset = ops.max_pool2d(input, *case.max_geometry)[1]
    delta = normal(tuple(offset.shape), torch.float64, 2).requires_grad_()
    average = (*case.average_geometry, False, None)
    shares = normal(average_case(case).output_size, torch.float64, 3).requires_grad_()
    return {
        "max_pool2d": (lambda a: ops.max_pool2d(a, *case.max_geometry)[0], input),
        "max_pool2d_input_grad": (
            lambda d: ops.max_pool2d_input_grad(case.size, d, offset, *case.max_geometry), delta
        ),
        "max_pool2d_gather": (
            lambda a: ops.max_pool2d_gather(a, offset, *case.max_geometry), input
        ),
        "avg_pool2d": (lambda a: ops.avg_pool2d(a, *average), input),
        "avg_pool2d_input_grad": (
            lambda d: ops.avg_pool2d_input_grad(case.size, d, *average), shares
        ),
    }  # fmt: skip


OPERATORS = list(operators(small("slides")))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("case", parameters(GRADIENT_CASES))
def test_gradcheck(case: Case, operator: str) -> None:
    """First and second derivatives, backward and forward mode, of every operator."""
    function, tensor = operators(case)[operator]
    assert gradcheck(
        function, (tensor,), check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True,
    )  # fmt: skip
    assert gradgradcheck(function, (tensor,), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("in_dims", [(0, None), (2, 1), (None, 0)], ids=str)
def test_vmap(in_dims: tuple[int | None, int | None]) -> None:
    """Every operator, over an activation and over offsets, against a loop."""
    case, indices = small("dilation_and_everything"), 3
    every = distinct((indices, *case.size))
    offsets = ops.max_pool2d(every.flatten(0, 1), *case.max_geometry)[1].unflatten(0, (indices, -1))
    deltas = integers(tuple(offsets.shape), torch.float64, seed=2)
    average = (*case.average_geometry, True, None)
    shares = integers((indices, *average_case(case).output_size), torch.float64, seed=3)

    def check(function: Callable[..., Any], *tensors: Tensor) -> None:
        dims = in_dims[: len(tensors)]
        if all(dim is None for dim in dims):
            return
        placed = [t[0] if d is None else t.movedim(0, d) for t, d in zip(tensors, dims)]  # noqa: B905
        loop = [
            function(*(t if d is None else t.select(d, i) for t, d in zip(placed, dims)))  # noqa: B905
            for i in range(indices)
        ]
        assert torch.equal(torch.vmap(function, in_dims=dims)(*placed), torch.stack(loop))

    g = case.max_geometry
    check(lambda a: ops.max_pool2d(a, *g)[0], every)
    check(lambda a: f.max_pool2d(a, *g, return_indices=True)[1], every)
    check(lambda d, o: ops.max_pool2d_input_grad(case.size, d, o, *g), deltas, offsets)
    check(lambda a, o: ops.max_pool2d_gather(a, o, *g), every, offsets)
    check(lambda a: ops.avg_pool2d(a, *average), every)
    check(lambda d: ops.avg_pool2d_input_grad(case.size, d, *average), shares)


def test_compiled_with_ceil_mode() -> None:
    """Whether a last window starts outside depends on the size, dynamic though it is."""
    model = nn.Sequential(bp.MaxPoolBP2d(3, 2, 1, ceil_mode=True), bp.AvgPoolBP2d(2, 3, 1, True))

    def loss(a: Tensor) -> Tensor:
        return model(a).tanh().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((9, 8), (12, 15), (17, 14), (10, 11)):
        a = normal((2, 4, height, width), torch.float32, height).requires_grad_()
        (actual,) = torch.autograd.grad(compiled(a), a)
        torch.testing.assert_close(actual, torch.autograd.grad(loss(a), a)[0])
    torch.compiler.reset()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["ceil_and_padding", "dilation", "batch_0", "offsets_of_4_bytes"])
def test_opcheck(name: str, operator: str, layout: str) -> None:
    """torch's own check: schema, derivative registration, fake kernel and its strides, AOT."""
    case = small(name)
    input = in_layout(distinct(case.size, torch.float32), layout).requires_grad_()
    offset = ops.max_pool2d(input, *case.max_geometry)[1]
    delta = in_layout(normal(tuple(offset.shape), torch.float32, 2), layout).requires_grad_()
    average = (*case.average_geometry, True, None)
    shares = normal(average_case(case).output_size, torch.float32, 3).requires_grad_()
    arguments = {
        "max_pool2d": (input, *case.max_geometry),
        "max_pool2d_input_grad": (case.size, delta, offset, *case.max_geometry),
        "max_pool2d_gather": (input, offset, *case.max_geometry),
        "avg_pool2d": (input, *average),
        "avg_pool2d_input_grad": (case.size, shares, *average),
    }[operator]
    checked = torch.library.opcheck(getattr(ops, operator).default, arguments)
    assert set(checked.values()) == {"SUCCESS"}


# --- errors ---------------------------------------------------------------------------------


def x(*size: int, **kwargs: Any) -> Tensor:
    return torch.ones(size or (2, 3, 8, 8), **kwargs)


# name: (arguments, keywords, exception, text): for both pools.
BOTH: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "kernel_0": ((x(), 0, 1), {}, RuntimeError,
        r"kernel size should be greater than zero, but got kernel_size=\[0, 0\]"),
    "kernel_negative": ((x(), (2, -1), 1), {}, RuntimeError, r"kernel size .*\[2, -1\]"),
    "kernel_3": ((x(), (3, 3, 3)), {}, RuntimeError,
        r"pool2d: kernel_size must either be a single int, or a tuple of two ints"),
    "kernel_none": ((x(), None), {}, TypeError, r"argument 'kernel_size' .* got None"),
    "kernel_float": ((x(), 2.5), {}, TypeError, r"argument 'kernel_size' .* got 2.5"),
    "kernel_text": ((x(), "2"), {}, TypeError, r"argument 'kernel_size' .* got '2'"),
    "kernel_absurd": ((x(), 2**40, 1), {}, RuntimeError, r"kernel_size is too large"),
    "kernel_beyond_64_bits": ((x(), 2**63), {}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'kernel_size': .* 64-bit ints, but got 92233720368547"),
    "stride_beyond_64_bits": ((x(), 2, -(2**63) - 1), {}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'stride'"),
    "kernel_beyond_input": ((x(), 9), {}, RuntimeError,
        r"input size: \(3x8x8\). Calculated output size: \(3x0x0\). Output size is too small"),
    "stride_0": ((x(), 2, 0), {}, RuntimeError, r"stride should not be zero, .*stride=\[0, 0\]"),
    "stride_negative": ((x(), 2, (1, -1)), {}, RuntimeError, r"stride should be greater .*\[1, -1"),
    "stride_3": ((x(), 2, (1, 1, 1)), {}, RuntimeError, r"pool2d: stride must either"),
    "stride_float": ((x(), 2, 1.5), {}, TypeError, r"argument 'stride' .* got 1.5"),
    "padding_negative": ((x(), 2, 1, -1), {}, RuntimeError,
        r"pad must be non-negative, but got padding=\[-1, -1\]"),
    "padding_beyond_half": ((x(), (2, 3), 1, (1, 2)), {}, RuntimeError,
        r"pad should be at most half of effective kernel size, but got padding=\[1, 2\]"),
    "padding_3": ((x(), 2, 1, (1, 1, 1)), {}, RuntimeError, r"pool2d: padding must either"),
    "padding_text": ((x(), 3, 1, "same"), {}, TypeError, r"argument 'padding' .* got 'same'"),
    "ceil_mode_text": ((x(), 2), {"ceil_mode": "no"}, TypeError,
        r"argument 'ceil_mode' must be bool, not str"),
    "no_channels": ((x(2, 0, 8, 8), 2), {}, RuntimeError,
        r"tensor with optional 0 dim batch size for input, but got:\[2, 0, 8, 8\]"),
    "no_rows": ((x(2, 3, 0, 8), 2), {}, RuntimeError, r"but got:\[2, 3, 0, 8\]"),
    "input_2d": ((x(8, 8), 2), {}, (RuntimeError, IndexError), r"input of size: \[8, 8\]"),
    "input_5d": ((x(1, 2, 3, 8, 8), 2), {}, RuntimeError, r"input of size: \[1, 2, 3, 8, 8\]"),
    "booleans": ((x(dtype=torch.bool), 2), {}, NotImplementedError, r"not implemented for 'Bool'"),
    "complex": ((x(dtype=torch.complex64), 2), {}, NotImplementedError, r"for 'ComplexFloat'"),
    "numpy": ((np.ones((2, 3, 8, 8)), 2), {}, TypeError, r"argument 'input' must be Tensor"),
    "sparse": ((x().to_sparse(), 2), {}, RuntimeError, r"argument 'input' to be a dense tensor"),
}  # fmt: skip
MAX: dict[str, Any] = {
    "dilation_0": ((x(), 2, 1, 0, 0), {}, RuntimeError,
        r"dilation should be greater than zero, but got dilation=\[0, 0\]"),
    "dilation_3": ((x(), 2, 1, 0, (1, 1, 1)), {}, RuntimeError, r"max_pool2d: dilation must"),
    "dilation_float": ((x(), 2, 1, 0, 1.5), {}, TypeError, r"argument 'dilation' .* got 1.5"),
    "dilated_kernel_beyond_input": ((x(), 2, 1, 0, 8), {}, RuntimeError, r"dilation=\[8, 8\]"),
    "padding_beyond_half_undilated": ((x(), 2, 1, 2, 3), {}, RuntimeError,
        r"pad should be smaller than or equal to half of kernel size"),
}  # fmt: skip
AVERAGE: dict[str, Any] = {
    "divisor_beyond_64_bits": ((x(), 2), {"divisor_override": 2**63}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'divisor_override'"),
    "divisor_0": ((x(), 2), {"divisor_override": 0}, RuntimeError, r"divisor must be not zero"),
    "divisor_float": ((x(), 2), {"divisor_override": 1.5}, TypeError,
        r"argument 'divisor_override' .* got 1.5"),
    "count_text": ((x(), 2), {"count_include_pad": "no"}, TypeError,
        r"argument 'count_include_pad' must be bool, not str"),
}  # fmt: skip
ERRORS = {
    **{f"max_{name}": ("max_pool2d", *row) for name, row in {**BOTH, **MAX}.items()},
    **{f"avg_{name}": ("avg_pool2d", *row) for name, row in {**BOTH, **AVERAGE}.items()},
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    """torch's exception, and on fake tensors the same words."""
    function, arguments, keywords, exception, text = ERRORS[name]
    with pytest.raises(exception, match=text) as real:
        getattr(f, function)(*arguments, **keywords)
    with pytest.raises(exception):
        getattr(F, function)(*arguments, **keywords)
    input = arguments[0]
    if exception is RuntimeError and input.layout == torch.strided:
        with pytest.raises(exception) as fake:
            getattr(f, function)(input.to("meta"), *arguments[1:], **keywords)
        assert str(fake.value) == str(real.value)


OTHER_DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool,
    torch.complex64, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1, "ceil_mode": True}], ids=str)
def test_other_dtypes_are_torchs(dtype: torch.dtype, options: Any) -> None:
    """Its numbers or its exception: where there is no gradient there is nothing to be L8."""
    input = torch.arange(2 * 3 * 7 * 5).reshape(2, 3, 7, 5).to(dtype)
    more: dict[str, list[dict[str, Any]]] = {
        "max_pool2d": [{}, {"dilation": 2}, {"return_indices": True}],
        "avg_pool2d": [{}, {"count_include_pad": False}, {"divisor_override": 3}],
    }
    for function, others in more.items():
        for arguments in ({**options, **other} for other in others):
            try:
                expected = getattr(F, function)(input, 3, **arguments)
            except NotImplementedError as error:
                with pytest.raises(NotImplementedError, match=re.escape(str(error))):
                    getattr(f, function)(input, 3, **arguments)
                continue
            ours = getattr(f, function)(input, 3, **arguments)
            if isinstance(expected, Tensor):
                ours, expected = (ours,), (expected,)
            for a, b in zip(ours, expected, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)


GEOMETRY = ((2, 2), (2, 2), (0, 0), (1, 1), False)
AVERAGE_GEOMETRY = ((2, 2), (2, 2), (0, 0), False, True)


def y(*size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(size or (2, 3, 4, 4), dtype=dtype, device=device)


OPERATOR_ERRORS: dict[str, tuple[Callable[[str], Any], str]] = {
    "kernel_1": (lambda d: ops.max_pool2d(x(device=d), (2,), *GEOMETRY[1:]),
        r"expected kernel_size to be a list of 2 values \(height, width\)"),
    "input_3d": (lambda d: ops.avg_pool2d(x(3, 8, 8, device=d), *AVERAGE_GEOMETRY, None),
        r"but got:\[3, 8, 8\]"),
    "input_size_negative": (lambda d: ops.avg_pool2d_input_grad([2, 3, -8, 8], y(device=d),
        *AVERAGE_GEOMETRY, None), r"but got:\[2, 3, -8, 8\]"),
    "divisor_0": (lambda d: ops.avg_pool2d_input_grad([2, 3, 8, 8], y(device=d),
        *AVERAGE_GEOMETRY, 0), r"divisor must be not zero, but got divisor_override=0"),
    "delta_size": (lambda d: ops.avg_pool2d_input_grad([2, 3, 8, 8], y(2, 3, 4, 5, device=d),
        *AVERAGE_GEOMETRY, None),
        r"delta to have the size of the output, \[2, 3, 4, 4\], but got .*\[2, 3, 4, 5\]"),
    "offset_size": (lambda d: ops.max_pool2d_input_grad([2, 3, 8, 8], y(device=d),
        y(2, 3, 4, 5, dtype=torch.uint8, device=d), *GEOMETRY), r"offset to have the size"),
    "offset_dtype": (lambda d: ops.max_pool2d_gather(x(device=d),
        y(dtype=torch.int32, device=d), *GEOMETRY),
        r"Expected offset of type Byte for kernel_size=\[2, 2\], but got Int"),
    "memory_format": (lambda d: ops.avg_pool2d_input_grad([2, 3, 8, 8], y(device=d),
        *AVERAGE_GEOMETRY, None, memory_format=torch.preserve_format),
        r"memory_format to be torch.contiguous_format or torch.channels_last"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATOR_ERRORS)
def test_operator_errors(name: str) -> None:
    call, text = OPERATOR_ERRORS[name]
    messages = []
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=text) as raised:
            call(device)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_window_of_more_positions_than_offsets_can_say() -> None:
    """Where torch computes for a minute."""
    for pool in (f.max_pool2d, f.avg_pool2d):
        with pytest.raises(RuntimeError, match="kernel_size is too large: expected at most 2147"):
            pool(x(), 2**30, 1, 2**29)


def test_mixed_devices() -> None:
    offset = y(dtype=torch.uint8, device="meta")
    with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device.*meta"):
        ops.max_pool2d_gather(x(), offset, *GEOMETRY)
    # That was the fake kernel: the CPU's own sees such a tensor only where it is asked itself.
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError, match="same device, but got offset on another device than"):
        ops.max_pool2d_gather.default.redispatch(cpu, x(), offset, *GEOMETRY)


CONSTRUCTOR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kernel_0": ({"kernel_size": 0}, ValueError, r"kernel_size must be .*got 0"),
    "kernel_float": ({"kernel_size": 2.5}, TypeError, r"kernel_size must be .*got 2.5"),
    "kernel_3": ({"kernel_size": (2, 2, 2)}, ValueError, r"kernel_size must be .*got \(2, 2, 2\)"),
    "stride_0": ({"stride": 0}, ValueError, r"stride must be .*got 0"),
    "padding_negative": ({"padding": -1}, ValueError, r"padding must be .*got -1"),
    "padding_beyond_half": ({"padding": 2}, ValueError, r"padding must be at most half .*got pad"),
    "dilation_0": ({"dilation": 0}, ValueError, r"dilation must be .*got 0"),
    "divisor_0": ({"divisor_override": 0}, ValueError, r"divisor_override must be not zero"),
    "divisor_float": ({"divisor_override": 2.0}, TypeError, r"divisor_override must be an int"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_constructor_errors(name: str) -> None:
    changes, exception, text = CONSTRUCTOR[name]
    classes = [bp.MaxPoolBP2d, bp.AvgPoolBP2d]
    if "dilation" in changes:
        classes.pop()
    if "divisor_override" in changes:
        classes.pop(0)
    for cls in classes:
        with pytest.raises(exception, match=text):
            cls(**{"kernel_size": 3, **changes})


# --- modules --------------------------------------------------------------------------------

MODULES: dict[str, tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = {
    "max": (nn.MaxPool2d, bp.MaxPoolBP2d, {"kernel_size": 2}),
    "max_everything": (nn.MaxPool2d, bp.MaxPoolBP2d, dict(
        kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), return_indices=True,
        ceil_mode=True)),
    "avg": (nn.AvgPool2d, bp.AvgPoolBP2d, {"kernel_size": 2}),
    "avg_everything": (nn.AvgPool2d, bp.AvgPoolBP2d, dict(
        kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), ceil_mode=True,
        count_include_pad=False, divisor_override=5)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    torchs, ours, arguments = MODULES[name]
    theirs, layer = torchs(**arguments), ours(**arguments)
    assert isinstance(layer, torchs)
    assert repr(layer) == repr(theirs).replace(torchs.__name__, ours.__name__)
    assert vars(theirs).keys() == vars(layer).keys()
    assert not layer.state_dict()
    input = distinct((2, 3, 9, 8), torch.float32)
    expected = theirs(input)
    for module in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(module) is ours
        torch.testing.assert_close(module(input), expected)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(input), expected)


def test_autocast_leaves_the_dtype_alone() -> None:
    for dtype in (torch.float32, torch.float16):
        input = normal((1, 2, 6, 6), dtype, 1).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for ours, theirs in ((f.max_pool2d, F.max_pool2d), (f.avg_pool2d, F.avg_pool2d)):
                output = ours(input, 2)
                assert output.dtype == theirs(input, 2).dtype == dtype
                output.sum().backward()
        assert input.grad.dtype == dtype


def test_convert_and_revert() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(),
                          nn.Linear(4, 5))  # fmt: skip
    parameters, kinds = list(model.parameters()), [type(m) for m in model]
    input = normal((1, 3, 7, 8), torch.float32, 1)
    expected = model(input)
    bp.convert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, *kinds[1:]]
    bp.convert(model, pooling=True, dense=True)
    assert [type(m) for m in model] == [
        bp.ConvBP2d, bp.MaxPoolBP2d, bp.AvgPoolBP2d, nn.Flatten, bp.LinearBP,
    ]  # fmt: skip
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for converted in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(converted(input), expected)
    bp.revert(model)
    assert [type(m) for m in model] == kinds


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_trains_on_it() -> None:
    """GoogLeNet, 13 max pools of overlapping windows: float64 outputs and gradients of one step."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=10, init_weights=False, aux_logits=False)
    model = model.double().eval()
    input = normal((1, 3, 64, 64), torch.float64, seed=1).requires_grad_()

    def outputs_and_gradients() -> list[Tensor]:
        output = model(input)
        wanted = (input, *model.parameters())
        return [output.detach(), *torch.autograd.grad(output.square().sum(), wanted)]

    before = outputs_and_gradients()
    pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    bp.convert(model, pooling=True)
    assert len(pools) == 13 and all(type(m) is bp.MaxPoolBP2d for m in pools)
    for a, b in zip(before, outputs_and_gradients(), strict=True):
        assert (a - b).abs().max() <= 1e-10 * a.abs().max()
    bp.revert(model)
    assert all(map(torch.equal, before, outputs_and_gradients()))
