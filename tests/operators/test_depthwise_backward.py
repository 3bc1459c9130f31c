"""The backward pass of a depthwise layer as one operator: what it gives, and where it is called.

On a GPU that is one pass over memory (its kernel without one: tests/native/cuda). Here the
layers' tests call it on the CPU too, which does the four equations in it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS, Case, in_layout, integers, normal, parameters
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from twins import Calls

import torch_convbp as bp
from torch_convbp.ops import depthwise as depthwise_ops

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp


def depthwise(name: str, channels: int, **geometry) -> Case:
    return Case(name, in_channels=channels, out_channels=channels, groups=channels, **geometry)


# Kernels that are compiled for a GPU, off the sizes of their tiles; and others, which are not.
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
    depthwise("batch_0", 3, batch=0),
]  # fmt: skip


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise_ops, "ONE_PASS_ON", {"cpu", "cuda"})


def tensors(case: Case, dtype: torch.dtype, make=integers) -> list[Tensor]:
    """grad, what a forward pass kept, input, weight."""
    sizes = case.output_size, case.output_size, case.input_size, case.weight_size
    return [make(size, dtype, seed) for seed, size in enumerate(sizes, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(CASES))
@pytest.mark.parametrize("activation", ["", "relu"])
def test_the_operator(case: Case, activation: str, layout: str, dtype: torch.dtype) -> None:
    grad, kept, input, weight = tensors(case, torch.float64)
    delta = grad * (kept > 0) if activation else grad
    leaves = [t.clone().requires_grad_() for t in (input, weight)]
    top, bottom, left, right = case.padding
    p = F.conv2d(F.pad(leaves[0], (left, right, top, bottom)), leaves[1], None, case.stride, 0,
                 case.dilation, case.groups)  # fmt: skip
    expected = *torch.autograd.grad(p, leaves, delta), delta.sum((0, 2, 3))
    grad, kept, input, weight = (
        in_layout(t.to(dtype), layout) for t in tensors(case, torch.float64)
    )
    ours = ops.depthwise_backward(
        grad, kept if activation else None, input, weight, *case.geometry, activation, []
    )
    for found, wanted in zip(ours, expected, strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, wanted.to(dtype))


# What needs a gradient -> what the backward pass runs with an activation, and without.
ONE_PASS = ["depthwise_backward"]
WANTED = {
    "everything": ((1, 1, 1), ONE_PASS, ONE_PASS),
    "frozen_bias": ((1, 1, 0), ONE_PASS, ONE_PASS),
    "no_bias": ((1, 1, None), ONE_PASS, ONE_PASS),
    "frozen_input": ((0, 1, 1), ["error_signal_bias_grad", "conv2d_weight_grad"],
                     ["conv2d_weight_bias_grad"]),
    "frozen_weight": ((1, 0, 0), ["error_signal", "conv2d_input_grad"], ["conv2d_input_grad"]),
}  # fmt: skip


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("wanted", WANTED)
def test_a_layer(everywhere: None, wanted: str, activation: str | None) -> None:
    needs, with_activation, without = WANTED[wanted]
    case = CASES[0]
    sizes = case.input_size, case.weight_size, (case.out_channels,)
    leaves = [
        None if need is None else normal(size, torch.float64, seed).requires_grad_(bool(need))
        for seed, (size, need) in enumerate(zip(sizes, needs, strict=True), 1)
    ]
    output = bp.functional.conv2d(*leaves, padding=1, groups=case.groups, activation=activation)
    grad = normal(case.output_size, torch.float64, 4)
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    with Calls() as calls:
        ours = torch.autograd.grad(output, asked, grad)
    assert calls.names == (without if activation is None else with_activation)
    expected = F.conv2d(*leaves, padding=1, groups=case.groups)
    if activation is not None:
        expected = getattr(F, activation)(expected)
    for found, wanted_grad in zip(ours, torch.autograd.grad(expected, asked, grad), strict=True):
        torch.testing.assert_close(found, wanted_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_dense_layer_does_not_call_it(everywhere: None, activation: str | None) -> None:
    input = integers((2, 1, 5, 5), torch.float32, 1).requires_grad_()  # one channel is no group
    weight = integers((1, 1, 3, 3), torch.float32, 2).requires_grad_()
    output = bp.functional.conv2d(input, weight, activation=activation).sum()
    with Calls() as calls:
        output.backward()
    assert "depthwise_backward" not in calls.names


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
def test_gradcheck(everywhere: None, activation: str | None) -> None:
    leaves = [
        normal(size, torch.float64, seed).requires_grad_()
        for seed, size in enumerate(((2, 3, 5, 4), (3, 1, 3, 3), (3,)), 1)
    ]

    def layer(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return bp.functional.conv2d(a, w, b, 2, 1, groups=3, activation=activation)

    assert gradcheck(layer, leaves, check_forward_ad=True)
    assert gradgradcheck(layer, leaves)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_every_sample(everywhere: None, activation: str | None) -> None:
    """torch.func's vmap of grad, against a loop."""
    a, w = normal((4, 3, 6, 5), torch.float64, 1), normal((3, 1, 3, 3), torch.float64, 2)

    def loss(a: Tensor, w: Tensor) -> Tensor:
        return bp.functional.conv2d(a, w, groups=3, activation=activation).square().sum()

    grads = torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(a, w)
    loop = [torch.func.grad(loss, (0, 1))(one, w) for one in a]
    for found, wanted in zip(grads, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("in_dims", [(0, 0, None, None), (None, 1, 2, 0), (2, None, None, 1)],
                         ids=str)  # fmt: skip
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    case, indices = CASES[1], 2

    def batched(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
        dim = in_dims[seed - 1]
        return integers(size if dim is None else (*size[:dim], indices, *size[dim:]), dtype, seed)

    def operator(*arguments: Tensor) -> tuple[Tensor, ...]:
        return ops.depthwise_backward(*arguments, *case.geometry, "relu", [])

    arguments = tensors(case, torch.float64, batched)
    ours = torch.vmap(operator, in_dims)(*arguments)
    for i in range(indices):
        one = [t if d is None else t.select(d, i) for t, d in zip(arguments, in_dims, strict=True)]
        for found, wanted in zip(ours, operator(*one), strict=True):
            assert torch.equal(found[i], wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["", "relu"])
@pytest.mark.parametrize("case", parameters([CASES[0], CASES[6], CASES[-1]]))
def test_opcheck(case: Case, activation: str, layout: str) -> None:
    grad, kept, *others = (
        in_layout(t, layout).requires_grad_() for t in tensors(case, torch.float32, normal)
    )
    arguments = grad, kept if activation else None, *others, *case.geometry, activation, []
    torch.library.opcheck(ops.depthwise_backward.default, arguments)


def test_what_is_recorded(everywhere: None) -> None:
    """The error signal too, which nothing else needs."""
    layer = bp.ConvBP2d(4, 4, 3, padding=1, groups=4, activation="relu")
    input = normal((2, 4, 6, 5), torch.float32, 1).requires_grad_()
    with bp.record_error_signals(layer, keep="tensors") as signals, Calls() as calls:
        output = layer(input)
        output.square().sum().backward()
    assert calls.names[-2:] == ["depthwise_backward", "error_signal"]
    (record,) = signals[""]
    assert torch.equal(record.delta, ops.error_signal(2 * output, output, "relu", []))
    assert torch.equal(record.weight_grad, layer.weight.grad)


def test_compiled(everywhere: None) -> None:
    layer = bp.ConvBP2d(4, 4, 3, padding=1, groups=4, activation="relu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input = normal((2, 4, 6, 5), torch.float32, 1)
    layer(input).square().sum().backward()  # not in one pass: the input needs no gradient
    expected, layer.weight.grad = layer.weight.grad, None
    loss = compiled(input.requires_grad_()).square().sum()
    with Calls() as calls:
        loss.backward()
    assert calls.names == ONE_PASS
    assert torch.equal(layer.weight.grad, expected)
