"""The layers of two copies of a model, and each layer by itself: times, errors, memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import statistics
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from torch_convbp.activations import TABLE, Activation
from torch_convbp.comparison.result import Row, Side
from torch_convbp.comparison.running import (
    Autocast,
    Clock,
    Step,
    Times,
    autocast_as,
    fill_randomly,
    in_turn,
    least_median,
    map_tensors,
    strided_copy,
    tensors_in,
)
from torch_convbp.convert import OURS, revert
from torch_convbp.modules import AvgPoolBP2d, ConvBP2d, LinearBP, MaxPoolBP2d

__all__ = ["Call", "Pair", "copy_of", "make_torchs", "pairs", "record", "row"]


# --- copies


def copy_of(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy that has the very tensors in ``shared``. Of a tensor that autograd computed, such as
    the weight of torch.nn.utils.weight_norm, the copy has the values."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for inner in module.modules():
        for tensor in vars(inner).values():
            if isinstance(tensor, Tensor) and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def make_torchs(model: nn.Module) -> None:
    """bp.revert, also for layers with an activation: a hook computes the activation then."""
    for layer in model.modules():
        if isinstance(layer, (ConvBP2d, LinearBP)) and (g := layer.activation):
            layer.activation = None
            layer.register_forward_hook(functools.partial(_activate, g), prepend=True)
    revert(model)


def _activate(g: Activation, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return TABLE[g.name].g(output, *g.parameters)


class Pair(NamedTuple):
    """A layer in both copies."""

    torch: nn.Module
    ours: nn.Module


def pairs(theirs: nn.Module, ours: nn.Module) -> dict[str, Pair]:
    """The layers that are torch's in one copy and ours in the other, by name."""
    layers, kinds = dict(theirs.named_modules()), tuple(OURS.values())
    both = {name: Pair(layers[name], layer) for name, layer in ours.named_modules()}
    return {
        name: pair
        for name, pair in both.items()
        if isinstance(pair.ours, kinds) and not isinstance(pair.torch, kinds)
    }


# --- what a layer gets in a step


@dataclasses.dataclass
class Call:
    """Calls of a layer in one step that are alike: what the layer gets."""

    name: str
    clock: Clock
    args: Any
    kwargs: Any
    autocast: Autocast
    needs_grad: bool
    calls: int = 0
    backwards: int = 0
    delta: Tensor | None = None  # output's gradient: strides as in the step, random numbers

    def receive(self, delta: Tensor) -> None:
        self.backwards += 1
        if self.delta is None:
            # Random numbers: before batch normalisation, gradients of biases are zero.
            self.delta = fill_randomly(strided_copy(delta))

    def forward(self, layer: nn.Module) -> tuple[list[Tensor], float]:
        """Outputs, and seconds."""
        with torch.set_grad_enabled(self.needs_grad), autocast_as([self.autocast]):
            output, seconds = self.clock(lambda: layer(*self.args, **self.kwargs))
        numbers = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
        return numbers, seconds

    def backward(self, layer: nn.Module, outputs: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """Gradients of input and parameters, and seconds."""
        if self.delta is None:
            return [], 0.0
        arguments = [*tensors_in((self.args, self.kwargs)), *layer.parameters()]
        wanted = [tensor for tensor in arguments if tensor.requires_grad]
        output = next(output for output in outputs if output.requires_grad)
        grads, seconds = self.clock(
            lambda: torch.autograd.grad(output, wanted, self.delta, allow_unused=True)
        )
        return [grad for grad in grads if grad is not None], seconds

    def times(self, layer: nn.Module) -> Times:
        """Seconds of all calls in a step."""
        outputs, forward = self.forward(layer)
        _, backward = self.backward(layer, outputs)
        return self.calls * forward, self.backwards * backward

    def saved_bytes(self, layer: nn.Module) -> int:
        parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> None:
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()

        with saved_tensors_hooks(pack, lambda nothing: nothing):
            self.forward(layer)
        return self.backwards * sum(found[address] for address in found.keys() - parameters)


def record(layers: Mapping[str, nn.Module], model: nn.Module, step: Step) -> list[Call]:
    """The calls of the layers in one step of the model, in their order."""
    calls: dict[Any, Call] = {}
    running: dict[int, list[Call]] = defaultdict(list)  # by thread: DataParallel has several

    def before(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        tensors, needs_grad = tensors_in((args, kwargs)), torch.is_grad_enabled()
        autocast = Autocast.now(tensors[0].device.type if tensors else "cpu")
        alike = ((t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors)
        key = (name, autocast, needs_grad, *alike)
        if key not in calls:
            own_args, own_kwargs = map_tensors(strided_copy, (args, kwargs))
            calls[key] = Call(name, step.clock, own_args, own_kwargs, autocast, needs_grad)
        calls[key].calls += 1
        running[threading.get_ident()].append(calls[key])

    def after(layer: nn.Module, args: Any, output: Any) -> None:
        call = running[threading.get_ident()].pop()
        for tensor in [t for t in tensors_in(output) if t.requires_grad][:1]:
            tensor.register_hook(call.receive)

    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # a part may be compiled, and would not call hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in layers.items():
            hook = functools.partial(before, name)
            begin = layer.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
            stack.callback(begin.remove)
            stack.callback(layer.register_forward_hook(after).remove)
        step(model)
    return list(calls.values())


# --- a layer by itself


def row(call: Call, pair: Pair, seconds: float) -> Row:
    """Measures both sides of a layer."""
    layers = pair._asdict()
    errors = _errors(call, layers)
    runs = {side: functools.partial(call.times, layer) for side, layer in layers.items()}
    taken = in_turn(runs, seconds)
    sides = {}
    for side, layer in layers.items():
        forward, backward = zip(*taken[side], strict=True)
        ms = 1e3 * statistics.median(forward), 1e3 * statistics.median(backward)
        sides[side] = Side(*ms, call.saved_bytes(layer), *errors[side])
    ratios = [sum(a) / sum(b) for a, b in zip(taken["torch"], taken["ours"], strict=True)]
    shape = tuple(tensors_in((call.args, call.kwargs))[0].shape)
    least = least_median(ratios)
    return Row(call.name, _kind(pair.ours), shape, call.calls, **sides, least_ratio=least)


def _errors(call: Call, layers: Mapping[str, nn.Module]) -> dict[str, tuple[float, float]]:
    """Errors of the output and of the gradients, by side."""
    exact_call, exact = _in_float64(call, layers["torch"])
    true_outputs, _ = exact_call.forward(exact)
    true_grads, _ = exact_call.backward(exact, true_outputs)
    errors = {}
    for side, layer in layers.items():
        fresh = _with_state_of(layer, layers["torch"])
        outputs, _ = call.forward(fresh)
        grads, _ = call.backward(fresh, outputs)
        errors[side] = _error(outputs, true_outputs), _error(grads, true_grads)
    return errors


def _with_state_of(layer: nn.Module, other: nn.Module) -> nn.Module:
    """A copy whose buffers, which spectral_norm changes in each call, are those of ``other``."""
    copied = copy_of(layer, layer.parameters())
    with torch.no_grad():
        for buffer, value in zip(copied.buffers(), other.buffers(), strict=True):
            buffer.copy_(value)
    return copied


def _in_float64(call: Call, layer: nn.Module) -> tuple[Call, nn.Module]:
    """The call and the layer in float64, or in complex128."""
    arguments = (call.args, call.kwargs, call.delta)
    is_complex = any(t.is_complex() for t in [*tensors_in(arguments), *layer.parameters()])
    dtype = torch.complex128 if is_complex else torch.float64

    def widened(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

    args, kwargs, delta = map_tensors(widened, arguments)
    off = call.autocast._replace(enabled=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Complex modules are a new feature")
        exact = copy_of(layer).to(dtype)
    return dataclasses.replace(call, args=args, kwargs=kwargs, delta=delta, autocast=off), exact


def _error(values: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest difference over largest entry, of the tensor where that is worst."""
    worst = 0.0
    for a, b in zip(values, truth, strict=True):
        if b.numel() and (difference := (a - b).abs().max().item()):  # NaN is one too
            error = difference / (b.abs().max().item() or math.nan)
            worst = error if error != error else max(worst, error)
    return worst


def _kind(layer: Any) -> str:
    """As in "conv 64 3x3 s2 relu"."""
    if isinstance(layer, LinearBP):
        words = ["linear", str(layer.out_features)]
    else:
        pool = {MaxPoolBP2d: "maxpool", AvgPoolBP2d: "avgpool"}.get(type(layer))
        words = [pool] if pool else ["conv", str(layer.out_channels)]
        words.append("x".join(map(str, _height_width(layer.kernel_size))))
        for letter, name in {"s": "stride", "d": "dilation", "g": "groups"}.items():
            height, width = _height_width(getattr(layer, name, 1))
            if (height, width) != (1, 1):
                words.append(f"{letter}{height}" + (f"x{width}" if width != height else ""))
    if g := getattr(layer, "activation", None):
        words.append(str(g))
    return " ".join(words)


def _height_width(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
