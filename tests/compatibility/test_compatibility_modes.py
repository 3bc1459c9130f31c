"""The layers within torch's modes: autocast, inference mode, tensors without numbers, memory
formats, determinism.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import in_layout, normal
from layers import LAYERS, WITH_PARAMETERS, every
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from twins import assert_close, compare, gradients

import torch_convbp as bp

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]


# The two compute with the same rounded numbers and sum in float32: their outputs differ in the last
# place, and what is made of them by a few such differences.
def error_of(dtype: torch.dtype) -> float:
    return 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.cell("Transforms", "autocast")
@every()
def test_autocast(layer: str, dtype: torch.dtype) -> None:
    """dtypes of the output, of its gradient and of all others; float64 is left alone."""

    def compute(module: nn.Module, input: Tensor) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            output = module(input)
        output.retain_grad()
        output.float().pow(3).sum().backward()
        return output, output.grad, input.grad, [p.grad for p in module.parameters()]

    compare(layer, compute, torch.float32, error_of(dtype))

    def wide(module: nn.Module, input: Tensor) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return gradients(module, input)

    compare(layer, wide)


@pytest.mark.cell("Transforms", "autocast")
@every(*WITH_PARAMETERS)
def test_autocasts_weight_cache(layer: str) -> None:
    """torch keeps the cast weight while autocast lasts; that must never show."""
    module, dtype = LAYERS[layer].make(torch.float32), torch.bfloat16
    input = LAYERS[layer].input(dtype=torch.float32)
    parameters = list(module.parameters())
    with torch.autocast("cpu", dtype=dtype):
        with torch.no_grad():
            module(input)
        # The cast weight of a forward pass without gradients has none to give.
        grads = torch.autograd.grad(module(input).float().pow(3).sum(), parameters)
        with torch.no_grad():
            before = module(input)
            parameters[0].mul_(2)
            after = module(input)
    assert all(grad.any() and grad.dtype == torch.float32 for grad in grads)
    assert not torch.equal(before, after)

    def shared(module: nn.Module, input: Tensor) -> Any:
        """One weight, used twice."""
        results = []
        for cache in (True, False):
            with torch.autocast("cpu", dtype=dtype, cache_enabled=cache):
                loss = module(input).float().sin().sum() + module(input + 1).float().cos().sum()
            results.append(torch.autograd.grad(loss, tuple(module.parameters())))
        return results

    compare(layer, shared, torch.float32, error_of(dtype))


@pytest.mark.cell("Transforms", "GradScaler")
@every()
def test_grad_scaler(layer: str) -> None:
    """Scaled losses; a step whose gradients overflow is left out, and the scale is halved."""

    def train(module: nn.Module, input: Tensor) -> Any:
        leaves = [input, *module.parameters()]
        optimizer = torch.optim.SGD(leaves, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        scales = []
        for step in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = (module(input).float() - 1).square().mean()
            scaled = scaler.scale(loss)
            (scaled * torch.inf if step == 2 else scaled).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(leaves, 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        assert scales == [256.0, 512.0, 256.0, 256.0, 512.0]
        return leaves

    compare(layer, train, torch.float32, error_of(torch.float16))


@pytest.mark.cell("Transforms", "inference_mode")
@every()
def test_inference_mode(layer: str) -> None:
    module, input = LAYERS[layer].make(), LAYERS[layer].input()
    with torch.inference_mode():
        output, made_here = module(input), input * 1
        again = module(made_here)
    assert output.is_inference() and again.is_inference() and not output.requires_grad
    assert torch.equal(output, module(input)) and torch.equal(again, output)
    # Outside, such a tensor serves where nothing is kept of it.
    if any(True for _ in module.parameters()):
        for layer_to_ask in (module, LAYERS[layer].torchs()):
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backw"):
                layer_to_ask(made_here)
    else:
        assert torch.equal(module(made_here), output)


def described(tensors: Any) -> list[Any]:
    return [(t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors]


@pytest.mark.cell("Transforms", "meta tensors")
@every()
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_meta(layer: str, layout: str) -> None:
    module, input = LAYERS[layer].make(), formatted(LAYERS[layer].input(), layout)
    expected = described(gradients(module, input.requires_grad_()))
    results = gradients(module.to("meta"), input.detach().to("meta").requires_grad_())
    assert all(t.is_meta for t in results)
    assert described(results) == expected


@pytest.mark.cell("Transforms", "fake tensors")
@every()
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fake(layer: str, layout: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    module, input = LAYERS[layer].make(), formatted(LAYERS[layer].input(), layout)
    expected = described(gradients(module, input.requires_grad_()))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        results = gradients(module, mode.from_tensor(input))
    assert all(isinstance(t, FakeTensor) and t.device.type == "cpu" for t in results)
    assert described(results) == expected


def formatted(tensor: Tensor, layout: str) -> Tensor:
    return in_layout(tensor, layout) if tensor.dim() == 4 else tensor


@pytest.mark.cell("Transforms", "channels_last")
@every()
@pytest.mark.parametrize(
    ("input_layout", "weight_layout"),
    list(itertools.product(["contiguous", "channels_last"], repeat=2)),
)
def test_channels_last(layer: str, input_layout: str, weight_layout: str) -> None:
    """Values, and strides of output and gradients. A dense layer has no channels: its input has
    four dimensions here, and what torch does with their strides."""
    chosen, strides = LAYERS[layer], []

    def compute(module: nn.Module, input: Tensor) -> Any:
        if layer == "linear":
            input = normal((2, 3, 4, chosen.input_size[1]), input.dtype, 1)
        if weight_layout == "channels_last":
            module = module.to(memory_format=torch.channels_last)
        input = in_layout(input.detach(), input_layout).requires_grad_()
        results = gradients(module, input)
        strides.append([t.stride() for t in results])
        return results

    compare(layer, compute)
    assert strides[0] == strides[1]


@pytest.fixture
def deterministic() -> Iterator[None]:
    memory = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = memory


@pytest.mark.cell("Transforms", "deterministic algorithms")
@every()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_deterministic(layer: str, dtype: torch.dtype, layout: str, deterministic: None) -> None:
    """Fresh memory is filled with NaN: not one is left, and no bit is another."""
    module, input = LAYERS[layer].make(dtype), formatted(LAYERS[layer].input(dtype=dtype), layout)
    input.requires_grad_()
    assert torch.empty(3).isnan().all()
    filled = gradients(module, input)
    torch.use_deterministic_algorithms(False)
    assert_close(filled, gradients(module, input), error=0.0)


# --- what sees every function ------------------------------------------------------------------


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.cell("Transforms", "TorchFunctionMode sees the operator")
@every()
def test_function_mode(layer: str) -> None:
    module, input = LAYERS[layer].make(), LAYERS[layer].input()
    with Seen() as seen:
        output = module(input)
    name = layer.replace("conv2d + ", "conv2d_")
    assert f"torch_convbp.{name}.default" in seen.names
    assert torch.equal(output, module(input))


class Differentiated(TorchFunctionMode):
    """Asks every operator of ours for a derivative, though what called it wants none."""

    def __init__(self) -> None:
        super().__init__()
        self.grads: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func).startswith("torch_convbp."):
            with torch.enable_grad():
                leaf = args[0].detach().requires_grad_()
                output = func(leaf, *args[1:], **(kwargs or {}))
                self.grads += torch.autograd.grad(output.sum(), leaf)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_function_mode_may_differentiate(activation: str | None) -> None:
    module = bp.ConvBP2d(4, 6, 3, activation=activation)
    input = normal((2, 4, 7, 6), torch.float32, 0).requires_grad_()
    (expected,) = torch.autograd.grad(module(input).sum(), input)
    with torch.no_grad(), Differentiated() as mode:
        module(input)
    assert len(mode.grads) == 1 and torch.equal(mode.grads[0], expected)
