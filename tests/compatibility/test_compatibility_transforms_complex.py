"""Complex numbers: convolutions and dense layers as torch's; pools refuse them, as torch's do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import in_layout
from layers import LAYERS, Layer, every
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from twins import as_function, assert_close, compare

import torch_convbp as bp

pytestmark = [
    pytest.mark.every_device,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # torch's own
]

f = bp.functional
OF_COMPLEX_NUMBERS = {
    "conv2d": LAYERS["conv2d"],
    # torch has no derivative of silu of complex numbers.
    "conv2d + activation": Layer(
        lambda: bp.ConvBP2d(4, 6, 3, padding=1, activation="tanh"),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh()),
        (3, 4, 6, 7),
    ),
    "linear": LAYERS["linear"],
}


def complex_normal(*size: int, seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(size, generator=generator, dtype=torch.complex128, device="cpu")
    return numbers.to(torch.get_default_device(), dtype)


def complex_gradients(module: nn.Module, input: Tensor) -> tuple[Tensor, ...]:
    output = module(input)
    loss = (output * output.conj() * output.real).real.sum()
    return output, *torch.autograd.grad(loss, (input, *module.parameters()))


@pytest.mark.cell("Transforms", "complex dtypes")
@every(*OF_COMPLEX_NUMBERS)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
def test_outputs_and_gradients(layer: str, dtype: torch.dtype) -> None:
    def compute(module: nn.Module, input: Tensor) -> Any:
        # A part that is no multiple of the other; lazily conjugated, as torch keeps it.
        shifted = torch.complex(input.real, input.real.flip(-1)).conj()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.complex(parameter.real, parameter.real.flip(0).sin()))
        return complex_gradients(module, shifted.detach().requires_grad_())

    compare(OF_COMPLEX_NUMBERS[layer], compute, dtype)


@pytest.mark.cell("Transforms", "complex dtypes")
@every(*OF_COMPLEX_NUMBERS)
def test_derivatives(layer: str) -> None:
    """Both modes, their second order, and batches of them."""
    module = OF_COMPLEX_NUMBERS[layer].make(torch.complex128)
    size = (1, *OF_COMPLEX_NUMBERS[layer].input_size[1:])
    input = complex_normal(*size, seed=1).requires_grad_()
    leaves = (input, *(p.detach().requires_grad_() for p in module.parameters()))
    call = as_function(module)
    assert gradcheck(call, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.cell("Transforms", "complex dtypes")
@every(*OF_COMPLEX_NUMBERS)
def test_vmap(layer: str) -> None:
    def compute(module: nn.Module, input: Tensor) -> Any:
        inputs = torch.stack([input, input.flip(-1) * 1j, input + 2j])
        weights = [torch.stack([p, p * 1j, p + 1]) for p in module.parameters()]
        none = (None,) * len(weights)
        call = as_function(module)
        return (
            torch.vmap(call, (0, *none))(inputs, *module.parameters()),
            torch.vmap(call)(inputs, *weights),
        )

    compare(OF_COMPLEX_NUMBERS[layer], compute, torch.complex128)


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("input_layout", ["contiguous", "channels_last"])
def test_memory_format(input_layout: str, weight_layout: str) -> None:
    results = []
    for conv in (f.conv2d, F.conv2d):
        input = in_layout(complex_normal(2, 4, 6, 7, seed=1), input_layout).requires_grad_()
        weight = in_layout(complex_normal(6, 2, 3, 3, seed=2), weight_layout).requires_grad_()
        output = conv(input, weight, groups=2, padding=1)
        results.append((output, *torch.autograd.grad(output.abs().sum(), (input, weight))))
    assert_close(*results)
    assert [t.stride() for t in results[0]] == [t.stride() for t in results[1]]


EMPTY = {
    "no images": ((0, 3, 8, 8), (4, 3, 3, 3)),
    "no channels": ((2, 0, 7, 7), (4, 0, 3, 3)),
    "no channels, no batch": ((0, 7, 7), (4, 0, 3, 3)),
}


@pytest.mark.cell("Transforms", "complex dtypes", column="conv2d")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", EMPTY)
def test_gradients_of_nothing(name: str, layout: str) -> None:
    """Of no images there is nothing to sum, of no channels only the bias."""
    input, weight = (complex_normal(*size, seed=1) for size in EMPTY[name])
    if input.dim() == 4:
        input, weight = in_layout(input, layout), in_layout(weight, layout)
    leaves = tuple(t.requires_grad_() for t in (input, weight, complex_normal(4, seed=2)))
    output = f.conv2d(*leaves)
    assert torch.equal(output, leaves[2][:, None, None].expand(output.shape))
    delta = complex_normal(*output.shape, seed=3)
    grads = torch.autograd.grad(output, leaves, delta)
    assert [g.shape for g in grads] == [t.shape for t in leaves]
    assert not grads[0].any() and not grads[1].any()
    torch.testing.assert_close(
        grads[2], delta.sum([d for d in range(delta.dim()) if d != delta.dim() - 3])
    )

    def loss(input: Tensor) -> Tensor:
        return f.conv2d(input, *leaves[1:]).abs().sum()

    assert torch.func.grad(loss)(input.detach()).shape == input.shape


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_an_image_without_a_batch_and_padding_same() -> None:
    input, weight = complex_normal(3, 6, 7, seed=1), complex_normal(4, 3, 2, 3, seed=2)
    assert_close(f.conv2d(input, weight, padding="same"), F.conv2d(input, weight, padding="same"))


def test_meta() -> None:
    layer = bp.ConvBP2d(3, 4, 3, device="meta", dtype=torch.complex64)
    output = layer(torch.empty(2, 3, 8, 8, device="meta", dtype=torch.complex64))
    assert (output.shape, output.dtype) == ((2, 4, 6, 6), torch.complex64)


@pytest.mark.cell("Transforms", "complex dtypes")
@every(*OF_COMPLEX_NUMBERS)
def test_autocast_leaves_them_alone(layer: str) -> None:
    def compute(module: nn.Module, input: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return complex_gradients(module, input)

    compare(OF_COMPLEX_NUMBERS[layer], compute, torch.complex64)


def test_compile() -> None:
    layer = bp.ConvBP2d(3, 4, 3, dtype=torch.complex64)
    input = complex_normal(2, 3, 8, 8, seed=1, dtype=torch.complex64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_close(compiled(input), layer(input))


def test_convert() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64), nn.Tanh(), nn.Flatten(),
                          nn.Linear(36, 2, dtype=torch.complex64))  # fmt: skip
    input = complex_normal(2, 3, 5, 5, seed=1, dtype=torch.complex64)
    expected = complex_gradients(model, input.requires_grad_())
    bp.convert(model, dense=True, fuse_activations=True)
    assert type(model[0]) is bp.ConvBP2d and type(model[3]) is bp.LinearBP
    assert_close(complex_gradients(model, input), expected)


@pytest.mark.parametrize("name", bp.activations.TABLE)
def test_activations(name: str) -> None:
    """Those that torch has of complex numbers; its own error for the others."""
    input, weight = complex_normal(1, 2, 5, 5, seed=1), complex_normal(3, 2, 3, 3, seed=2)
    row = bp.activations.TABLE[name]
    try:
        expected = row.g(F.conv2d(input, weight), *row.parameters.values())
    except NotImplementedError as error:
        for ours, tensors in (
            (f.conv2d, (input, weight)),
            (f.linear, (X[0, 0], W[0, 0, :, :1] * X[0, 0, 0])),
        ):
            with pytest.raises(NotImplementedError, match=re.escape(str(error))):
                ours(*tensors, activation=name)
    else:
        assert_close(f.conv2d(input, weight, activation=name), expected)


X, W = complex_normal(2, 4, 6, 6, seed=1), complex_normal(6, 2, 3, 3, seed=2)
ERRORS: dict[str, tuple[Any, ...]] = {
    "real_weight": (
        (X, W.real),
        r"input type \(ComplexDouble\) and weight type \(Double\) should be",
    ),
    "real_input": (
        (X.real, W),
        r"input type \(Double\) and weight type \(ComplexDouble\) should be",
    ),
    "real_bias": ((X, W, torch.ones(6)), r"input type \(ComplexDouble\) and bias type \(Float\)"),
    "bias_size": ((X, W, X[0, 0, 0, :5]), r"bias to be 1-dimensional with 6 elements, but got .*5"),
    "channels": ((X[:, :3], W), r"expected input\[2, 3, 6, 6\] to have 4 channels, but got 3"),
    "devices": ((X, W.to("meta")), "same device, but got weight on meta and input on cpu"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    arguments, text = ERRORS[name]
    with pytest.raises(RuntimeError, match=text):
        f.conv2d(*arguments, groups=2)
    with pytest.raises(RuntimeError):
        F.conv2d(*arguments, groups=2)


@pytest.mark.cell("Transforms", "complex dtypes", refused=True)
@every("max_pool2d", "avg_pool2d")
def test_pools_refuse(layer: str) -> None:
    input = LAYERS[layer].input(dtype=torch.complex64)
    for module in (LAYERS[layer].make(), LAYERS[layer].torchs()):
        with pytest.raises(RuntimeError, match=f"\"{layer}\" not implemented for 'ComplexFloat'"):
            module(input)


def test_gradient_functions_and_recordings_refuse() -> None:
    with pytest.raises(RuntimeError, match='"conv2d_input_grad" not implemented for \'ComplexD'):
        f.conv2d_input_grad((2, 4, 8, 8), W, X, groups=2)
    with pytest.raises(RuntimeError, match='"conv2d_weight_grad" not implemented for \'ComplexD'):
        f.conv2d_weight_grad(X, (6, 2, 3, 3), X, groups=2)
    model = nn.Sequential(bp.LinearBP(2, 3, dtype=torch.complex64))
    with (
        pytest.raises(ValueError, match="layer 0 has complex parameters"),
        bp.record_error_signals(model),
    ):
        pass
