"""The backward pass of a layer as one operator: what it gives, and where it is called.

On the CPU it is the equations one after the other; on a GPU a depthwise layer's is one pass over
memory (its kernel without a GPU: tests/native/cuda).
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS, Case, in_layout, integers, normal, parameters
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from twins import Calls

import torch_convbp as bp
from torch_convbp.autograd import conv2d as autograd_conv2d

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp


def depthwise(name: str, channels: int, **geometry) -> Case:
    return Case(name, in_channels=channels, out_channels=channels, groups=channels, **geometry)


# Depthwise kernels that are compiled for a GPU, off the sizes of their tiles, and some that are
# not; other layers.
CASES = [
    depthwise("three", 5, size=(9, 11), padding=(1, 1, 1, 1)),
    depthwise("three_strided", 70, size=(19, 9), stride=(2, 2), padding=(1, 1, 1, 1)),
    depthwise("three_without_padding", 4, size=(35, 34)),
    depthwise("five", 66, size=(18, 7), kernel=(5, 5), padding=(2, 2, 2, 2)),
    depthwise("five_strided", 3, size=(40, 70), kernel=(5, 5), stride=(2, 2),
              padding=(1, 2, 2, 1)),
    depthwise("seven", 9, batch=3, size=(14, 14), kernel=(7, 7), padding=(3, 3, 3, 3)),
    depthwise("seven_strided", 2, size=(7, 33), kernel=(7, 7), stride=(2, 2),
              padding=(6, 6, 4, 4)),
    depthwise("padding_beyond_kernel", 4, padding=(3, 3, 5, 5)),
    depthwise("dilated", 4, size=(9, 8), dilation=(2, 2)),
    depthwise("even", 3, kernel=(4, 2), stride=(1, 3)),
    depthwise("depthwise_batch_0", 3, batch=0),
    Case("dense", padding=(1, 1, 1, 1)),
    Case("strided", size=(12, 11), stride=(2, 3), padding=(0, 1, 2, 1)),
    Case("groups", in_channels=8, out_channels=6, groups=2, dilation=(2, 1)),
    Case("one_by_one", in_channels=17, out_channels=9, kernel=(1, 1)),
    Case("batch_0", batch=0),
]  # fmt: skip

# Layers that "auto" computes by minimal filtering, whose bits depend on every step.
WINOGRAD = [
    Case("winograd", in_channels=16, out_channels=24, size=(14, 13), padding=(1, 1, 1, 1)),
    Case("winograd_strided", in_channels=16, out_channels=32, size=(16, 15), stride=(2, 2),
         padding=(1, 1, 1, 1)),
    Case("winograd_five", in_channels=16, out_channels=16, size=(12, 12), kernel=(5, 5)),
]  # fmt: skip


def tensors(case: Case, dtype: torch.dtype, make=integers) -> list[Tensor]:
    """grad, what a forward pass saved, input, weight."""
    sizes = case.output_size, case.output_size, case.input_size, case.weight_size
    return [make(size, dtype, seed) for seed, size in enumerate(sizes, 1)]


def sizes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return case.input_size, case.weight_size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(CASES))
@pytest.mark.parametrize("activation", ["", "relu"])
def test_the_operator(case: Case, activation: str, layout: str, dtype: torch.dtype) -> None:
    grad, saved, input, weight = tensors(case, torch.float64)
    delta = grad * (saved > 0) if activation else grad
    leaves = [t.clone().requires_grad_() for t in (input, weight)]
    top, bottom, left, right = case.padding
    p = F.conv2d(F.pad(leaves[0], (left, right, top, bottom)), leaves[1], None, case.stride, 0,
                 case.dilation, case.groups)  # fmt: skip
    expected = *torch.autograd.grad(p, leaves, delta), delta.sum((0, 2, 3))
    grad, saved, input, weight = (
        in_layout(t.to(dtype), layout) for t in tensors(case, torch.float64)
    )
    ours = ops.conv2d_backward(
        grad, saved if activation else None, input, weight, *sizes(case), *case.geometry,
        activation, [], True,
    )  # fmt: skip
    for found, wanted in zip(ours, expected, strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, wanted.to(dtype))


@pytest.mark.parametrize("asked", list(itertools.product([True, False], repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", parameters([CASES[0], CASES[11], CASES[13], *WINOGRAD]))
def test_same_bits_as_the_equations(
    case: Case, layout: str, activation: str | None, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf_sizes = case.input_size, case.weight_size, (case.out_channels,)
    leaves = [
        in_layout(normal(size, torch.float32, seed), layout if len(size) == 4 else "contiguous")
        .requires_grad_(needs)
        for seed, (size, needs) in enumerate(zip(leaf_sizes, asked, strict=True), 1)
    ]  # fmt: skip
    top, bottom, left, right = case.padding
    assert (top, left) == (bottom, right)
    grad = in_layout(normal(case.output_size, torch.float32, 4), layout)

    def gradients() -> list[Tensor]:
        output = bp.functional.conv2d(
            *leaves, case.stride, (top, left), case.dilation, case.groups, activation=activation
        )
        return torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], grad)

    ours = gradients()
    monkeypatch.setattr(autograd_conv2d, "ONE_OPERATOR", False)
    for found, wanted in zip(ours, gradients(), strict=True):
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()


def test_what_is_not_asked_for_is_none() -> None:
    case = CASES[11]
    grad, saved, input, weight = tensors(case, torch.float32)
    rest = *sizes(case), *case.geometry, "relu", []
    for asked in itertools.product([True, False], repeat=3):
        results = ops.conv2d_backward(
            grad, saved, input if asked[1] else None, weight if asked[0] else None, *rest, asked[2]
        )
        assert tuple(result is not None for result in results) == asked


ONE = ["conv2d_backward"]
# What needs a gradient: input, weight and bias; None for no bias.
WANTED = {
    "everything": (1, 1, 1),
    "frozen_bias": (1, 1, 0),
    "no_bias": (1, 1, None),
    "frozen_input": (0, 1, 1),
    "frozen_weight": (1, 0, 0),
    "bias_alone": (0, 0, 1),
    "weight_alone": (0, 1, 0),
}


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("case", parameters([CASES[0], CASES[11]]))
def test_a_layer(case: Case, wanted: str, activation: str | None) -> None:
    leaf_sizes = case.input_size, case.weight_size, (case.out_channels,)
    leaves = [
        None if need is None else normal(size, torch.float64, seed).requires_grad_(bool(need))
        for seed, (size, need) in enumerate(zip(leaf_sizes, WANTED[wanted], strict=True), 1)
    ]
    output = bp.functional.conv2d(*leaves, padding=1, groups=case.groups, activation=activation)
    grad = normal(case.output_size, torch.float64, 4)
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    with Calls() as calls:
        ours = torch.autograd.grad(output, asked, grad)
    assert calls.names == ONE
    expected = F.conv2d(*leaves, padding=1, groups=case.groups)
    if activation is not None:
        expected = getattr(F, activation)(expected)
    for found, wanted_grad in zip(ours, torch.autograd.grad(expected, asked, grad), strict=True):
        torch.testing.assert_close(found, wanted_grad, rtol=0, atol=1e-12)


def test_what_a_call_of_grad_asks_for() -> None:
    """The weight's gradient alone, of a layer that saved enough for all."""
    input, weight, bias = (
        normal(size, torch.float64, seed).requires_grad_()
        for seed, size in enumerate(((2, 3, 6, 5), (4, 3, 3, 3), (4,)), 1)
    )
    output = bp.functional.conv2d(input, weight, bias, activation="tanh")
    (found,) = torch.autograd.grad(output.sum(), weight)
    (wanted,) = torch.autograd.grad(F.conv2d(input, weight, bias).tanh().sum(), weight)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
def test_gradcheck(activation: str | None) -> None:
    leaves = [
        normal(size, torch.float64, seed).requires_grad_()
        for seed, size in enumerate(((2, 3, 5, 4), (3, 1, 3, 3), (3,)), 1)
    ]

    def layer(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return bp.functional.conv2d(a, w, b, 2, 1, groups=3, activation=activation)

    assert gradcheck(layer, leaves, check_forward_ad=True)
    assert gradgradcheck(layer, leaves)


@pytest.mark.parametrize("activation", ["", "tanh", "gelu"])
def test_gradcheck_of_the_operator(activation: str) -> None:
    case = CASES[11]
    leaves = [t.requires_grad_() for t in tensors(case, torch.float64, normal)]
    if not activation:
        del leaves[1]

    def operator(grad: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        saved = rest[0] if activation else None
        return ops.conv2d_backward(
            grad, saved, *rest[-2:], *sizes(case), *case.geometry, activation, [], True
        )

    assert gradcheck(operator, leaves)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_every_sample(activation: str | None) -> None:
    """torch.func's vmap of grad, against a loop."""
    a, w = normal((4, 3, 6, 5), torch.float64, 1), normal((3, 1, 3, 3), torch.float64, 2)

    def loss(a: Tensor, w: Tensor) -> Tensor:
        return bp.functional.conv2d(a, w, groups=3, activation=activation).square().sum()

    grads = torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(a, w)
    loop = [torch.func.grad(loss, (0, 1))(one, w) for one in a]
    for found, wanted in zip(grads, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("asked", [(1, 1, 1), (1, 0, 0), (0, 1, 1), (0, 0, 1)], ids=str)
@pytest.mark.parametrize("in_dims", [(0, 0, None, None), (None, 1, 2, 0), (2, None, None, 1)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("case", parameters([CASES[1], CASES[13]]))
def test_vmap(case: Case, in_dims: tuple[int | None, ...], asked: tuple[int, ...]) -> None:
    indices = 2

    def batched(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
        dim = in_dims[seed - 1]
        return integers(size if dim is None else (*size[:dim], indices, *size[dim:]), dtype, seed)

    def operator(grad: Tensor, saved: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        results = ops.conv2d_backward(
            grad, saved, input if asked[1] else None, weight if asked[0] else None,
            *sizes(case), *case.geometry, "relu", [], bool(asked[2]),
        )  # fmt: skip
        return tuple(result for result in results if result is not None)

    arguments = tensors(case, torch.float64, batched)
    ours = torch.vmap(operator, in_dims)(*arguments)
    assert len(ours) == sum(asked)
    for i in range(indices):
        one = [t if d is None else t.select(d, i) for t, d in zip(arguments, in_dims, strict=True)]
        for found, wanted in zip(ours, operator(*one), strict=True):
            assert torch.equal(found[i], wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["", "relu"])
@pytest.mark.parametrize("case", parameters([CASES[0], CASES[6], CASES[10], CASES[12]]))
def test_opcheck(case: Case, activation: str, layout: str) -> None:
    grad, saved, *others = (
        in_layout(t, layout).requires_grad_() for t in tensors(case, torch.float32, normal)
    )
    torch.library.opcheck(
        ops.conv2d_backward.default,
        (grad, saved if activation else None, *others, *sizes(case), *case.geometry,
         activation, [], True),
    )  # fmt: skip


@pytest.mark.parametrize("of", ["input", "weight", "both"])
@pytest.mark.parametrize("groups", [1, 4])
def test_strides_that_size_1_leaves_open(of: str, groups: int) -> None:
    """A weight of one channel a group, and a picture of one channel, as .to(channels_last) leaves
    them, are channels_last: for the kernels, for fake tensors and for the equations."""
    channels = groups if groups > 1 else 1
    input = normal((2, channels, 6, 5), torch.float32, 1)
    weight = normal((4, 1, 3, 3), torch.float32, 2)
    if of != "weight":
        input = input.to(memory_format=torch.channels_last)
    if of != "input":
        weight = weight.to(memory_format=torch.channels_last)
    rest = (1, 1), (1, 1, 1, 1), (1, 1), groups
    torch.library.opcheck(
        ops.conv2d.default,
        (input.requires_grad_(), weight.requires_grad_(), None, *rest),
    )
    run = torch.compile(
        lambda: ops.conv2d(input, weight, None, *rest), backend="aot_eager", fullgraph=True
    )
    output = ops.conv2d(input, weight, None, *rest)
    assert run().stride() == output.stride()
    for ours in torch.autograd.grad(output.square().sum(), (input, weight)):
        assert ours.isfinite().all()


def test_recording_takes_the_equations() -> None:
    """One after the other, as the record wants the error signal."""
    layer = bp.ConvBP2d(4, 4, 3, padding=1, groups=4, activation="relu")
    input = normal((2, 4, 6, 5), torch.float32, 1).requires_grad_()
    with bp.record_error_signals(layer, keep="tensors") as signals, Calls() as calls:
        output = layer(input)
        output.square().sum().backward()
    assert calls.names[1:] == ["error_signal_bias_grad", "conv2d_input_grad", "conv2d_weight_grad"]
    (record,) = signals[""]
    assert torch.equal(record.delta, ops.error_signal(2 * output, output, "relu", []))
    assert torch.equal(record.weight_grad, layer.weight.grad)
    recorded, layer.weight.grad = layer.weight.grad, None
    layer(input).square().sum().backward()
    assert torch.equal(layer.weight.grad, recorded)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_compiled(activation: str | None, groups: int) -> None:
    layer = bp.ConvBP2d(4, 4, 3, padding=1, groups=groups, activation=activation)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input = normal((2, 4, 6, 5), torch.float32, 1)
    layer(input).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    loss = compiled(input.requires_grad_()).square().sum()
    with Calls() as calls:
        loss.backward()
    assert calls.names == ONE
    assert torch.equal(layer.weight.grad, expected)
