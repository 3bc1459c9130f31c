"""The operators against the reference, against torch, and against themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    LAYOUTS,
    RAGGED,
    SMALL,
    Case,
    in_layout,
    integers,
    normal,
    parameters,
    small,
)
from rounding import Bounds
from torch import Tensor
from twins import assert_same

import torch_convbp as bp
from torch_convbp import reference

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp

Results = dict[str, Tensor]


def run_operators(
    case: Case, input: Tensor, weight: Tensor, bias: Tensor, delta: Tensor
) -> Results:
    weight_grad, bias_grad = ops.conv2d_weight_bias_grad(
        input, case.weight_size, delta, *case.geometry
    )
    alone = ops.conv2d_weight_grad(input, case.weight_size, delta, *case.geometry)
    assert torch.equal(alone, weight_grad), "the weight gradient depends on the bias's"
    return {
        "conv2d": ops.conv2d(input, weight, bias, *case.geometry),
        "conv2d_input_grad": ops.conv2d_input_grad(case.input_size, weight, delta, *case.geometry),
        "conv2d_weight_grad": weight_grad,
        "bias_grad": bias_grad,
    }


def torch_results(
    case: Case, input: Tensor, weight: Tensor, bias: Tensor, delta: Tensor
) -> Results:
    """What torch computes; the input is padded first, so that every padding can be said."""
    input, weight, bias = (t.detach().clone().requires_grad_() for t in (input, weight, bias))
    top, bottom, left, right = case.padding
    padded = F.pad(input, (left, right, top, bottom))
    output = F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.groups)
    grads = torch.autograd.grad(output, (input, weight, bias), delta)
    names = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad", "bias_grad")
    return dict(zip(names, (output.detach(), *grads), strict=True))


def tensors(case: Case, make: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (
        make(case.input_size, dtype, seed=1),
        make(case.weight_size, dtype, seed=2),
        make((case.out_channels,), dtype, seed=3),
        make(case.output_size, dtype, seed=4),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(SMALL))
def test_exactly_the_reference(case: Case, layout: str) -> None:
    """Whole numbers in float64: the lecture's sums, to the last bit, in any memory layout."""
    input, weight, bias, delta = tensors(case, integers, torch.float64)
    geometry = reference.Geometry(*case.geometry)
    w, b = reference.flip(weight), -bias[:, None]
    b = torch.cat([b, torch.zeros_like(b).expand(-1, max(case.weight_size[1] - 1, 0))], 1)
    filter_grad = reference.filter_grad(input, delta, case.kernel, geometry)
    expected = {
        "conv2d_input_grad": reference.input_grad(case.size, w, delta, geometry),
        "conv2d_weight_grad": reference.flip(filter_grad),
        "bias_grad": -reference.bias_grad(delta, 1)[:, 0],
    }
    if case.in_channels:
        expected["conv2d"] = reference.pre_activation(input, w, b, geometry)
    else:  # no pair (o, k) to carry a bias: what is left of L2 is the bias itself
        expected["conv2d"] = bias[None, :, None, None].expand(case.output_size)
    actual = run_operators(
        case, in_layout(input, layout), in_layout(weight, layout), bias, in_layout(delta, layout)
    )
    assert_same([actual[name] for name in expected], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", parameters([c for c in SMALL + RAGGED if c.in_channels]))
def test_close_to_torch(case: Case, dtype: torch.dtype) -> None:
    """Real numbers: the distance to torch's float64 result is rounding, and nothing else.

    rounding.py says how much.
    """
    arguments = tensors(case, normal, dtype)
    actual = run_operators(case, *arguments)
    exact = torch_results(case, *(t.double() for t in arguments))
    magnitude = torch_results(case, *(t.double().abs() for t in arguments))
    for name, result in actual.items():
        operator = "conv2d_weight_grad" if name == "bias_grad" else name
        bounds = Bounds.of(dtype, case.reduction(operator))
        tolerance = bounds.sum(magnitude[name], exact[name])
        error = (result.double() - exact[name]).abs()
        assert bool((error <= tolerance).all()), f"{name}: {(error - tolerance).max():.3g} too far"


# torch pads a contiguous copy first where the padding is asymmetric: no format to compare with.
@pytest.mark.parametrize("case", parameters([c for c in SMALL if c.in_channels and c.symmetric]))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("which", ["input", "weight", "both"])
def test_memory_format_is_torchs(case: Case, layout: str, which: str) -> None:
    """Strides of the output and both gradients, by input's and weight's format."""
    case = small(case.name, batch=max(case.batch, 1))
    input, weight, bias, delta = tensors(case, normal, torch.float32)
    if which in ("input", "both"):
        input = in_layout(input, layout)
    if which in ("weight", "both"):
        weight = in_layout(weight, layout)
    results = []
    for conv2d in (bp.functional.conv2d, F.conv2d):
        a, w = (t.detach().clone().requires_grad_() for t in (input, weight))
        assert a.stride() == input.stride()
        padding = (case.padding[0], case.padding[2])
        output = conv2d(a, w, bias, case.stride, padding, case.dilation, case.groups)
        grads = torch.autograd.grad(output, (a, w), delta)
        results.append([layout_of(t) for t in (output, *grads)])
    assert results[0] == results[1]


def layout_of(tensor: torch.Tensor) -> list[int | None]:
    """Strides, but for dimensions of size one: what torch writes there depends on the machine."""
    return [s if n > 1 else None for n, s in zip(tensor.shape, tensor.stride(), strict=True)]


def with_activations(case: Case, *arguments: Tensor) -> Results:
    """The operators, and the fused ones with an activation that keeps a and one that keeps p."""
    input, weight, bias, delta = arguments
    results = run_operators(case, *arguments)
    a = ops.conv2d_activation(input, weight, bias, *case.geometry, "tanh", [])
    pair = ops.conv2d_activation_pair(input, weight, bias, *case.geometry, "silu", [])
    results |= {"tanh": a, "silu": pair[0], "before silu": pair[1]}
    results |= zip(("delta", "its sum"), ops.error_signal_bias_grad(delta, a, "tanh", []))  # noqa: B905
    return results


# plain knows neither threads nor batches.
ALL_KERNELS = pytest.mark.parametrize(
    "case, dtype, algorithm",
    [
        pytest.param(
            case,
            dtype,
            algorithm,
            id=f"{case.name}-{str(dtype).removeprefix('torch.')}-{algorithm}",
            marks=[pytest.mark.slow] if algorithm == "plain" else [],
        )
        for case in RAGGED
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for algorithm in ("direct", "winograd", "plain")
        if algorithm != "winograd" or (case.has_winograd and dtype != torch.float64)
    ],
)


@ALL_KERNELS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_at_any_thread_count(
    case: Case, layout: str, dtype: torch.dtype, algorithm: str
) -> None:
    input, weight, bias, delta = tensors(case, normal, dtype)
    arguments = [in_layout(t, layout) for t in (input, weight)] + [bias, in_layout(delta, layout)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            with bp.backends.cpu.flags(conv_algorithm=algorithm):
                results.append(with_activations(case, *arguments))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same(other, results[0])


# What belongs to a sample, that is all but the gradients of weight and bias.
OF_A_SAMPLE = ("conv2d", "conv2d_input_grad", "tanh", "silu", "before silu", "delta")


@pytest.mark.usefixtures("one_thread")
@ALL_KERNELS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_has_the_same_bits_in_any_batch(
    case: Case, layout: str, dtype: torch.dtype, algorithm: str
) -> None:
    """Alone, among copies of itself, and at each end of a batch of others."""
    case = replace(case, batch=1)
    input, weight, bias, delta = tensors(case, normal, dtype)
    others = tensors(replace(case, batch=4), lambda *a, seed: normal(*a, seed=seed + 9), dtype)
    weight = in_layout(weight, layout)

    def results(before: int, copies: int, behind: int) -> Results:
        """Of the last of the copies."""
        batch = replace(case, batch=before + copies + behind)
        around = [
            in_layout(torch.cat([o[:before], *[t] * copies, o[4 - behind :]]), layout)
            for t, o in ((input, others[0]), (delta, others[3]))
        ]
        every = with_activations(batch, around[0], weight, bias, around[1])
        return {name: every[name][before + copies - 1] for name in OF_A_SAMPLE}

    with bp.backends.cpu.flags(conv_algorithm=algorithm):
        alone = results(0, 1, 0)
        for batch in ((0, 2, 0), (0, 1, 4), (4, 1, 0), (1, 3, 2)):
            assert_same(results(*batch), alone)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's copy
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "valid", "same"], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (2, 5)], ids=str)
def test_padding_as_torch_takes_it(padding, kernel) -> None:
    input = integers((2, 3, 9, 8), torch.float32, seed=1)
    weight = integers((4, 3, *kernel), torch.float32, seed=2)
    arguments = {"padding": padding, "dilation": (2, 1)}
    expected = F.conv2d(input, weight, None, **arguments)
    assert torch.equal(bp.functional.conv2d(input, weight, None, **arguments), expected)
    delta = integers(tuple(expected.shape), torch.float32, seed=3)
    input.requires_grad_(), weight.requires_grad_()
    grads = torch.autograd.grad(F.conv2d(input, weight, None, **arguments), (input, weight), delta)
    functional = bp.functional
    assert torch.equal(
        functional.conv2d_input_grad(input.shape, weight, delta, **arguments), grads[0]
    )
    assert torch.equal(
        functional.conv2d_weight_grad(input, weight.shape, delta, **arguments), grads[1]
    )


def test_unbatched() -> None:
    input = integers((3, 9, 8), torch.float32, seed=1)
    weight = integers((4, 3, 3, 3), torch.float32, seed=2)
    bias = integers((4,), torch.float32, seed=3)
    output = bp.functional.conv2d(input, weight, bias, 2, 1)
    assert torch.equal(output, F.conv2d(input, weight, bias, 2, 1))
    delta = integers(tuple(output.shape), torch.float32, seed=4)
    input_grad = bp.functional.conv2d_input_grad(input.shape, weight, delta, 2, 1)
    assert torch.equal(
        input_grad,
        bp.functional.conv2d_input_grad((1, *input.shape), weight, delta[None], 2, 1)[0],
    )
    assert input_grad.shape == input.shape
    assert torch.equal(
        bp.functional.conv2d_weight_grad(input, weight.shape, delta, 2, 1),
        bp.functional.conv2d_weight_grad(input[None], weight.shape, delta[None], 2, 1),
    )


def test_gradient_functions_take_torchs_arguments() -> None:
    """Same argument order as torch.nn.grad."""
    input = integers((2, 4, 9, 8), torch.float32, seed=1)
    weight = integers((6, 2, 3, 3), torch.float32, seed=2)
    delta = integers((2, 6, 4, 8), torch.float32, seed=3)
    geometry = ((2, 1), (1, 2), (2, 2), 2)
    assert torch.equal(
        bp.functional.conv2d_input_grad(input.shape, weight, delta, *geometry),
        torch.nn.grad.conv2d_input(input.shape, weight, delta, *geometry),
    )
    assert torch.equal(
        bp.functional.conv2d_weight_grad(input, weight.shape, delta, *geometry),
        torch.nn.grad.conv2d_weight(input, weight.shape, delta, *geometry),
    )


@pytest.mark.parametrize("algorithm", ["direct", "plain"])
def test_non_finite_numbers_reach_what_they_meet(algorithm: str) -> None:
    """An infinite or undefined pixel spoils the results that read it, and no other."""
    case = small("padding", in_channels=3, out_channels=5)
    for value in (float("inf"), float("nan")):
        input, weight, _, _ = tensors(case, integers, torch.float32)
        input[0, 1, 3, 3] = value
        with bp.backends.cpu.flags(conv_algorithm=algorithm):
            output = bp.functional.conv2d(input, weight, padding=1)
        reads = torch.zeros(7, 6, dtype=torch.bool)
        reads[2:5, 2:5] = True
        assert output[1].isfinite().all()
        assert output[0][:, ~reads].isfinite().all()
        assert not output[0, :, 3, 3].isfinite().any() or bool((weight[:, 1, 1, 1] == 0).any())
        assert torch.equal(output.isfinite(), F.conv2d(input, weight, padding=1).isfinite())


def test_strides_of_size_1_dimensions_matter_to_nobody() -> None:
    """oneDNN crashed on some of these."""
    input = integers((2, 64, 1, 1), torch.float32, 1)
    weight = integers((3, 64, 125, 1), torch.float32, 2)
    for geometry in ({"padding": (62, 62)}, {"padding": (63, 62)}, {"stride": 2, "padding": 62}):
        for strides in ((64, 1, 64, 64), (64, 1, 0, 0), (64, 1, 2**40, 7)):
            results = []
            for x in (input, torch.as_strided(input, input.shape, strides)):
                leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
                output = bp.functional.conv2d(*leaves, **geometry)
                delta = integers(tuple(output.shape), torch.float32, 3)
                results.append([output.detach(), *torch.autograd.grad(output, leaves, delta)])
            assert_same(*results)
            assert all(result.any() for result in results[0])


def test_small_sums_in_low_precision_are_exact() -> None:
    """torch has given 1 here."""
    for dtype in (torch.bfloat16, torch.float16):
        ones = torch.ones(1, 1, 2, 2, dtype=dtype)
        assert bp.functional.conv2d(ones, ones).item() == 4


@pytest.mark.parametrize("algorithm", ["direct", "plain"])
def test_infinite_weights_at_the_border(algorithm: str) -> None:
    """Where a deviation of docs/compatibility.md is: padding that is multiplied makes NaN."""
    picture, weight = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0] = torch.inf
    with bp.backends.cpu.flags(conv_algorithm=algorithm):
        output = bp.functional.conv2d(picture, weight, padding=1)
        grad = bp.functional.conv2d_input_grad(picture.shape, weight, picture, padding=1)
    multiplied = torch.zeros(8, 8, dtype=torch.bool)  # where the filter's corner meets padding
    if algorithm == "direct":
        multiplied[0] = multiplied[:, 0] = True
    assert torch.equal(output[0, 0].isnan(), multiplied)
    assert torch.equal(grad[0, 0].isnan(), multiplied.flip(0, 1))
    assert not torch.nn.grad.conv2d_input(picture.shape, weight, picture, padding=1).isnan().any()


IMAGES, FILTERS = (2, 64, 32, 32), (64, 64, 3, 3)
# name: (setting, dtype, size of the input, of the weight, geometry, algorithm)
CHOSEN = {
    "3x3": ("auto", torch.float32, IMAGES, FILTERS, (1, 1), "winograd"),
    "3x3_stride_2": ("auto", torch.float32, IMAGES, FILTERS, (2, 1), "winograd"),
    "3x3_same": ("auto", torch.float32, IMAGES, FILTERS, (1, "same"), "winograd"),
    "3x3_bfloat16": ("auto", torch.bfloat16, IMAGES, FILTERS, (1, 1), "winograd"),
    "3x3_float64": ("auto", torch.float64, IMAGES, FILTERS, (1, 1), "direct"),
    "3x3_direct": ("direct", torch.float32, IMAGES, FILTERS, (1, 1), "direct"),
    "3x3_reference": ("reference", torch.float32, IMAGES, FILTERS, (1, 1), "reference"),
    "3x3_plain": ("plain", torch.float32, IMAGES, FILTERS, (1, 1), "plain"),
    "5x5": ("auto", torch.float32, IMAGES, (64, 64, 5, 5), (1, 2), "winograd"),
    "5x5_stride_2": ("auto", torch.float32, IMAGES, (64, 64, 5, 5), (2, 2), "direct"),
    "first": ("auto", torch.float32, (2, 3, 32, 32), (64, 3, 3, 3), (1, 1), "direct"),
    "1x1": ("auto", torch.float32, IMAGES, (64, 64, 1, 1), (), "pointwise"),
    "depthwise": ("auto", torch.float32, IMAGES, (64, 1, 3, 3), (1, 1, 1, 64), "depthwise"),
    "grouped": ("auto", torch.float32, IMAGES, (64, 4, 3, 3), (1, 1, 1, 16), "grouped"),
}


@pytest.mark.parametrize("operator", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_algorithm(name: str, layout: str, operator: str) -> None:
    setting, dtype, input_size, weight_size, geometry, expected = CHOSEN[name]
    input = in_layout(torch.zeros(input_size, dtype=dtype), layout)
    weight = torch.zeros(weight_size, dtype=dtype, requires_grad=True)
    products = F.conv2d(input, weight, None, *geometry).numel() * weight[0].numel()
    with bp.backends.cpu.flags(conv_algorithm=setting):
        choose = partial(bp.backends.cpu.chosen_algorithm, operator=operator)
        chosen = choose(input, weight, *geometry)
        assert choose(input[0].contiguous(), weight, *geometry).name == expected
    assert chosen.name == expected
    if expected == "winograd":
        assert 0 < chosen.multiply_adds < products
    else:
        assert chosen.multiply_adds == products


def test_chosen_algorithm_of_a_stem() -> None:
    """7x7 with stride 2: minimal filtering but for the input gradient, which no stem needs."""
    input, weight = torch.zeros(2, 3, 64, 64), torch.zeros(64, 3, 7, 7)
    chosen = {
        operator: bp.backends.cpu.chosen_algorithm(input, weight, 2, 3, operator=operator)
        for operator in ("forward", "input_grad", "weight_grad")
    }
    names = {operator: algorithm.name for operator, algorithm in chosen.items()}
    assert names == {"forward": "winograd", "input_grad": "direct", "weight_grad": "winograd"}
    # 11 tiles of 3x3 results an axis (32 / 3), 121 points.
    assert chosen["forward"].multiply_adds == 2 * 11 * 11 * 121 * 3 * 64


def test_conv_algorithm_switch() -> None:
    cpu = bp.backends.cpu
    assert cpu.conv_algorithm == "auto"
    for name in ("reference", "plain"):  # its first name
        with cpu.flags(conv_algorithm=name):
            assert cpu.conv_algorithm == name
        assert cpu.conv_algorithm == "auto"
    with pytest.raises(RuntimeError, match=r'conv_algorithm: expected .* but got "fast"'):
        cpu.conv_algorithm = "fast"
    assert cpu.conv_algorithm == "auto"
