"""The lockstep reading: the same weights and the same batch through both networks.

Every layer's output and every parameter's gradient is compared, in two comparisons. An error is
always max |difference| / max |truth| over one tensor.

``float64``: ConvBP2d against nn.Conv2d.
    Both sum the same n products in another order. Each rounding moves a sum by at most
    u = 2**-53 of its size, so one convolution errs by about sqrt(n) u times the sum of the
    |products|; for terms of mixed sign that sum is about sqrt(n) times the result. So n u is
    the error to expect of one sum, relative to the layer's largest output. Layers hand on to
    first order what they get, and add their own: after several convolutions the lengths add
    up to D, and

        bound = 8 u D.

    D of an output: the sum of K/groups*R*S over the convolutions up to it. D of a gradient: that
    sum over all convolutions, plus O/groups*R*S for each one whose input gradient lies on the
    way back, plus B*M*N for the convolution whose weights these are. The factor 8 covers both
    sides' errors (2) and layers that enlarge a difference, such as a batch norm over few values
    (4). This is a model with its assumptions stated, not a theorem; the margins are shown.
    A wrong index or a lost term typically gives 1e-4 and more, sums in float32 about 1e-7: the
    bound, 1e-14 at the first layer and 1e-10 for the longest sums here, lies far below both.

``float32``: both against the float64 truth of nn.Conv2d.
    Here nn.Conv2d's own error is the yardstick: ConvBP2d's may be

        8 (nn.Conv2d's error + u sqrt(D)),    u = 2**-24,

    where sqrt(D), the random walk of D roundings, is for tensors on which nn.Conv2d is exact
    or lucky. A ReLU or a max-pool whose inputs differ by less than rounding may choose
    differently in float32 than in float64; then gradients jump by a whole pixel's share, on
    whichever side it happens, which says nothing about a convolution. So both float32 networks
    replay the choices of the float64 one (``Choices``), and rounding is all that is left.

``bfloat16``: as float32, in the mixed precision of ``torch.autocast``, where a training is in it.
    u = 2**-8. Sums run in float32 and each layer's result is rounded, so that D counts layers:
    those up to an output, or twice all of them for a gradient.

Where an activation is part of a ConvBP2d, there is no output before the activation to compare; the
layer in its place (``InLayer``) is compared with the activation of the other network. For a replay,
the activation is taken out of the ConvBP2d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.networks import InLayer

if TYPE_CHECKING:
    from collections.abc import Callable

HEADROOM = 8
COMPARISONS = {
    "32-true": ("float64", "float32"),
    "bf16-mixed": ("float64", "float32", "bfloat16"),
}  # for each precision of training; the last one is in this precision itself
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One tensor compared at one step."""

    step: int
    comparison: str
    kind: str  # "output", "loss" or "gradient"
    name: str
    layer: str
    error: float
    torch_error: float
    length: int
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is within what is allowed; an error that is not a number is not."""
        return self.error <= self.allowed


@dataclass
class Lengths:
    """The reduction lengths of one convolution call: output, input gradient, weight gradient."""

    output: int
    input_grad: int
    weight_grad: int


@dataclass
class Call:
    """One call of a layer without children, in the order of execution."""

    name: str
    module_name: str
    layer: str
    output: Tensor
    lengths: Lengths | None = None
    with_activation: bool = False


@dataclass
class Trace:
    """Everything one network did with one batch."""

    loss: Tensor
    calls: list[Call]
    gradients: dict[str, Tensor]
    choices: Choices


class Choices:
    """What every ReLU and max-pool chose, in the order of the calls: to be replayed elsewhere."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def record(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep what this call chose: where a ReLU is open or full, which pixel a pool took."""
        if isinstance(module, nn.ReLU):
            self.made.append(output > 0)
        elif isinstance(module, nn.ReLU6):
            self.made.append(1 * (output > 0) + 1 * (output >= 6))
        elif isinstance(module, nn.MaxPool2d):
            self.made.append(
                F.max_pool2d(
                    inputs[0].detach(),
                    module.kernel_size,
                    module.stride,
                    module.padding,
                    module.dilation,
                    module.ceil_mode,
                    return_indices=True,
                )[1]
            )

    def replayer(self) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor | None]:
        """Return a forward hook that puts the kept choices in the place of a module's own."""
        left = iter(self.made)

        def replay(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if isinstance(module, (nn.ReLU, InLayer)):
                return inputs[0] * next(left)
            if isinstance(module, nn.ReLU6):
                taken = next(left)
                return inputs[0] * (taken == 1) + 6.0 * (taken == 2)
            if isinstance(module, nn.MaxPool2d):
                taken = next(left)
                return inputs[0].flatten(2).gather(2, taken.flatten(2)).view(taken.shape)
            return None

        return replay


def trace(
    net: nn.Module, x: Tensor, y: Tensor, replay: Choices | None = None, mixed: bool = False
) -> Trace:
    """Run forward and backward once, ``mixed`` with bfloat16 or not; keep what every layer gave."""
    found = Trace(torch.empty(0), [], {}, Choices())
    times: dict[str, int] = {}

    def keeper(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            times[name] = times.get(name, 0) + 1
            call_name = name if times[name] == 1 else f"{name} (call {times[name]})"
            lengths = lengths_of(module, output) if isinstance(module, nn.Conv2d) else None
            layer = type(module).__name__
            with_activation = getattr(module, "activation", None) is not None
            found.calls.append(
                Call(call_name, name, layer, output.detach().clone(), lengths, with_activation)
            )
            found.choices.record(module, inputs, output)

        return keep

    replayer = replay.replayer() if replay else None
    for name, module in net.named_modules():
        if any(module.children()):
            continue
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = False
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # another draw in each network would say nothing about a convolution
        if replayer:
            if getattr(module, "activation", None) is not None:
                module.activation = None  # type: ignore[assignment]
            module.register_forward_hook(replayer)
        module.register_forward_hook(keeper(name))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    found.loss = loss.detach()
    for name, parameter in net.named_parameters():
        gradient = parameter.grad
        found.gradients[name] = torch.zeros_like(parameter) if gradient is None else gradient
    return found


def lengths_of(conv: nn.Conv2d, output: Tensor) -> Lengths:
    """Return how many products each of the three sums of a convolution has."""
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return Lengths(
        output=conv.in_channels // conv.groups * taps,
        input_grad=conv.out_channels // conv.groups * taps,
        weight_grad=output.shape[0] * output.shape[2] * output.shape[3],
    )


def output_lengths(calls: list[Call]) -> list[int]:
    """Return D of every output: the lengths of all convolutions up to and including it."""
    total, lengths = 0, []
    for call in calls:
        total += call.lengths.output if call.lengths else 0
        lengths.append(total)
    return lengths


def gradient_lengths(calls: list[Call], parameters: list[str]) -> dict[str, int]:
    """Return D of every parameter's gradient: the way there, the way back, and its own sum."""
    there = sum(call.lengths.output for call in calls if call.lengths)
    back, of_module = 0, {}
    for call in reversed(calls):
        own = call.lengths.weight_grad if call.lengths else 0
        of_module[call.module_name] = there + back + own
        back += call.lengths.input_grad if call.lengths else 0
    return {name: of_module[owner(name)] for name in parameters}


def relative_error(value: Tensor, truth: Tensor, layer: tuple[Tensor, ...] = ()) -> float:
    """Return max |value - truth| / max |truth|, in float64; the latter over a whole ``layer``."""
    if value.shape != truth.shape:
        return math.inf
    difference = (value.double() - truth.double()).abs().max().item()
    scale = max(tensor.abs().max().item() for tensor in (truth, *layer))
    if scale > 0:
        return difference / scale
    return 0.0 if difference == 0 else math.inf


def roundoff(dtype: torch.dtype) -> float:
    """Return the unit roundoff u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def compare(
    step: int,
    build: Callable[[str], nn.Module],
    state: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    channels_last: bool = False,
    precision: str = "32-true",
) -> list[Row]:
    """Compare both networks, with the weights ``state``, on the device of the batch (x, y).

    ``build`` makes the network of a side, "torch" or "bp". The modes are those of training.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def trace_of(side: str, comparison: str, replay: Choices | None = None) -> Trace:
        mixed = comparison == "bfloat16"
        dtype = torch.float32 if mixed else DTYPES[comparison]
        net = build(side)
        net.load_state_dict(state)
        net = net.to(x.device, dtype).to(memory_format=layout).train()
        return trace(net, x.to(dtype=dtype, memory_format=layout), y, replay, mixed)

    truth = trace_of("torch", "float64")
    rows = table(step, "float64", truth, trace_of("bp", "float64"), None)
    for comparison in COMPARISONS[precision][1:]:
        theirs = trace_of("torch", comparison, truth.choices)
        ours = trace_of("bp", comparison, truth.choices)
        rows += table(step, comparison, truth, ours, theirs)
    return rows


def table(step: int, comparison: str, truth: Trace, ours: Trace, theirs: Trace | None) -> list[Row]:
    """Compare every output, the loss and every gradient.

    In less than float64, ``theirs`` is nn.Conv2d's pass in the same precision.
    """
    if [call.name for call in ours.calls] != [call.name for call in truth.calls]:
        raise ValueError("the two networks do not have the same layers")
    lengths = output_lengths(truth.calls)
    gradients = gradient_lengths(truth.calls, list(truth.gradients))
    if comparison == "bfloat16":
        lengths = list(range(1, len(lengths) + 1))
        gradients = dict.fromkeys(gradients, 2 * len(lengths))
    layers = {call.module_name: call.layer for call in ours.calls}
    tensors: list[tuple[str, str, str, int, Any]] = [
        ("output", call.name, call.layer, length, lambda t, i=index: t.calls[i].output)
        for index, (call, length) in enumerate(zip(ours.calls, lengths, strict=True))
        if not call.with_activation
    ]
    tensors.append(("loss", "loss", "", lengths[-1], lambda t: t.loss))
    tensors += [
        ("gradient", name, layers[owner(name)], length, lambda t, n=name: t.gradients[n])
        for name, length in gradients.items()
    ]
    of_layer: dict[str, tuple[Tensor, ...]] = {}
    for name, gradient in truth.gradients.items():
        of_layer[owner(name)] = (*of_layer.get(owner(name), ()), gradient)
    rows = []
    for kind, name, layer, length, of in tensors:
        around = of_layer[owner(name)] if kind == "gradient" else ()
        error = relative_error(of(ours), of(truth), around)
        u = roundoff(DTYPES[comparison])
        if theirs is None:
            torch_error = 0.0
            allowed = HEADROOM * u * max(length, 1)
        else:
            torch_error = relative_error(of(theirs), of(truth), around)
            allowed = HEADROOM * (torch_error + u * math.sqrt(max(length, 1)))
        rows.append(Row(step, comparison, kind, name, layer, error, torch_error, length, allowed))
    return rows


def owner(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]
