"""Layers: subclasses of torch's layers, with the same parameters, initialisation and state_dict."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_convbp import activations, functional
from torch_convbp.activations import Activation, ActivationLike
from torch_convbp.autograd.conv2d import plain_conv2d
from torch_convbp.error_signals import recording
from torch_convbp.layer_geometry import geometry_of, own_padding, without_geometry
from torch_convbp.ops.checks import DTYPES, LARGEST_PARAMETER
from torch_convbp.ops.torch_private import is_plain_call

__all__ = ["AvgPoolBP2d", "ConvBP2d", "LinearBP", "MaxPoolBP2d"]


def _int(name: str, value: Any, least: int | None) -> int:
    """value as an int >= ``least``; nn.Conv2d checks this at the first call, if at all."""
    kinds = {None: "an int", 0: "an int >= 0", 1: "a positive integer"}
    expected = kinds[least]
    message = f"{name} must be {expected}, but got {value!r}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if isinstance(value, bool):
        raise TypeError(message)
    if least is not None and number < least:
        raise ValueError(message)
    return number


def _is_several(value: Any) -> bool:
    """Is value an iterable? Text and 0-dimensional arrays or tensors count as one value."""
    zero_dimensional = getattr(value, "ndim", None) == 0
    text = isinstance(value, (str, bytes, bytearray))
    return isinstance(value, Iterable) and not text and not zero_dimensional


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """An int or an iterable of one or two ints, of at least ``least`` each, as (height, width)."""
    values = tuple(value) if _is_several(value) else (value,)
    try:
        height, *width = (_int(name, v, least) for v in values)
        if len(width) > 1:
            raise ValueError
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        expected = f"an int >= {least} or two of them"
        raise kind(f"{name} must be {expected}, but got {value!r}") from None
    if max([height, *width]) > LARGEST_PARAMETER:
        raise ValueError(f"{name} must be at most {LARGEST_PARAMETER}, but got {value!r}")
    return (height, width[0]) if width else (height, height)


def is_node(layer: nn.Module, input: Any) -> bool:
    """Is torch.fx tracing a model that contains the layer? Then the layer becomes one node, as
    torch.nn's own layers do; torch.fx would trace its forward."""
    return isinstance(input, torch.fx.Proxy) and getattr(input.tracer, "root", None) is not layer


def as_node(layer: nn.Module, input: Any) -> Any:
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (input,), {})


class _Layer(recording.Layer):
    """Base of all layers."""

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this first; its own error would be about an unrelated line.
        raise NotImplementedError(
            f"torch.jit.script does not support {type(self).__name__}: use torch.jit.trace or "
            "torch.export, or torch.nn's layers (torch_convbp.revert(model))"
        )


class _WithActivation(_Layer):
    """A layer that ends with an activation g, or with none.

    ``layer.activation`` takes what the constructor does, and gives an Activation or None.
    """

    # A class attribute, so that converted layers have it too.
    activation: Activation | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation":  # nn.Module would register a module as a child
            value = activations.parse(type(self).__name__, value)
        elif name == "qconfig" and value is not None:  # torch.ao.quantization prepares the model
            warnings.warn(
                f"{type(self).__name__}: torch.ao.quantization looks for torch's classes and "
                "leaves this layer in floating point; call torch_convbp.revert(model) before it",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        # Captum's LRP deletes an attribute of this name when it cleans up.
        if name != "activation":
            super().__delattr__(name)
        elif self.activation is not None:
            raise AttributeError(
                f"the activation {self.activation} of a {type(self).__name__} cannot be deleted: "
                "set it to None"
            )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation}"


class ConvBP2d(_WithActivation, nn.Conv2d):
    """A ``torch.nn.Conv2d`` whose forward and backward pass are L1 to L6 of the lecture.

    The layer *is* an ``nn.Conv2d``: the same arguments, parameters, initial weights from the same
    seed, hooks and state_dict. Only the computation runs on torch_convbp's operators. All padding
    modes work ("zeros", "reflect", "replicate", "circular").

    ``activation`` (keyword only) is what bp.functional.conv2d takes: the layer then computes
    g(conv2d(input)), in one pass.

    A call that nothing watches (a mode, a transform, autocast) does not go through
    bp.functional.conv2d, but straight to the same autograd.Function.

    Shapes: input [N, in_channels, H, W] or [in_channels, H, W]; weight [out_channels,
    in_channels / groups, R, S]; bias [out_channels] or None. dtypes: float32, float64, bfloat16,
    float16, complex.

    Raises:
        TypeError, ValueError: an argument of the constructor is out of range. nn.Conv2d's own
            checks, and checks that it leaves to the first call: kernel_size, stride and dilation
            at least 1, padding at least 0, one or two ints each, out_channels and groups at
            least 1, in_channels at least 0.
        RuntimeError: a dtype that cannot have gradients. The errors of a call are
            bp.functional.conv2d's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        g = activations.parse("ConvBP2d", activation)
        super().__init__(
            _int("in_channels", in_channels, 0),
            _int("out_channels", out_channels, 1),
            _pair("kernel_size", kernel_size, 1),
            _pair("stride", stride, 1),
            padding if isinstance(padding, str) else _pair("padding", padding, 0),
            _pair("dilation", dilation, 1),
            _int("groups", groups, 1),
            bias,
            padding_mode,  # type: ignore[arg-type]  # nn.Conv2d checks it
            device,
            dtype,
        )
        if g is not None:
            self.activation = g

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        return without_geometry(state) if isinstance(state, dict) else state

    # (activation, run) while an enclosing module's call lasts; fusion.py sets it.
    _convbp_fusion: Any = None

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        return super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        g, fusion = self.activation, self._convbp_fusion
        if fusion is not None:
            after, run = fusion
            g = run.activation(after)
        output = self._convolved(input, weight, bias, g)
        if fusion is not None and g is not None:
            run.mark(output, after, g)
        return output

    def _convolved(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, g: Activation | None
    ) -> Tensor:
        is_plain = input is not None and weight is not None and is_plain_call(input, weight, bias)
        if is_plain and input.dim() == 4 and input.dtype in DTYPES:
            # The short way: what the attributes say was checked once.
            geometry = geometry_of(self, weight)
            if geometry is not None:
                return plain_conv2d(input, weight, bias, geometry, g)
        return functional.conv2d(
            input,
            weight,
            bias,
            self.stride,
            own_padding(self),
            self.dilation,
            self.groups,
            activation=g,
        )


class LinearBP(_WithActivation, nn.Linear):
    """A ``torch.nn.Linear`` whose forward and backward pass are L7, with an activation.

    ``activation`` (keyword only) is what bp.functional.linear takes: the layer then computes
    g(linear(input)), in a second pass over the output. The other arguments are nn.Linear's.

    Shapes: input [..., in_features]; weight [out_features, in_features]; bias [out_features] or
    None; output [..., out_features]. dtypes: nn.Linear's, with an activation float32, float64,
    bfloat16, float16.

    Raises:
        TypeError, ValueError: a number of features is no int >= 0, or activation is unknown.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        g = activations.parse("LinearBP", activation)
        super().__init__(
            _int("in_features", in_features, 0),
            _int("out_features", out_features, 0),
            bias,
            device,
            dtype,
        )
        if g is not None:
            self.activation = g

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        return functional.linear(input, self.weight, self.bias, activation=self.activation)


class MaxPoolBP2d(_Layer, nn.MaxPool2d):
    """A ``torch.nn.MaxPool2d`` whose forward and backward pass are L8, on kernels of our own.

    Shapes: input [N, C, H, W] or [C, H, W]; output the same with pooled H and W, and with
    return_indices also the winners' indices, int64 of the same size. dtypes: float32, float64,
    bfloat16, float16; torch pools integers. Takes every argument of nn.MaxPool2d.

    Raises:
        TypeError, ValueError: an argument of the constructor is out of range. The errors of a call
            are bp.functional.max_pool2d's.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        windows = _windows(kernel_size, stride, padding)
        super().__init__(*windows, _window("dilation", dilation, 1), return_indices, ceil_mode)

    def forward(self, input: Tensor) -> Any:
        if is_node(self, input):
            return as_node(self, input)
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPoolBP2d(_Layer, nn.AvgPool2d):
    """A ``torch.nn.AvgPool2d`` whose forward and backward pass are L8, on kernels of our own.

    Shapes: input [N, C, H, W] or [C, H, W]; output the same with pooled H and W. dtypes: float32,
    float64, bfloat16, float16; torch pools int64. Takes every argument of nn.AvgPool2d.

    Raises:
        TypeError, ValueError: an argument of the constructor is out of range. The errors of a call
            are bp.functional.avg_pool2d's.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        windows = _windows(kernel_size, stride, padding)
        if divisor_override is not None and _int("divisor_override", divisor_override, None) == 0:
            raise ValueError("divisor_override must be not zero, but got 0")
        super().__init__(*windows, ceil_mode, count_include_pad, divisor_override)

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


def _window(name: str, value: Any, least: int) -> int | tuple[int, int]:
    """value unchanged if it is an int, as torch's pools store it; else a pair."""
    pair = _pair(name, value, least)
    return value if isinstance(value, int) else pair


def _windows(
    kernel_size: Any, stride: Any, padding: Any
) -> tuple[int | tuple[int, int], int | tuple[int, int] | None, int | tuple[int, int]]:
    """kernel_size, stride and padding of a pool, checked."""
    kernel, pad = _pair("kernel_size", kernel_size, 1), _pair("padding", padding, 0)
    if any(p > k // 2 for p, k in zip(pad, kernel, strict=True)):
        raise ValueError(
            "padding must be at most half of kernel_size, "
            f"but got padding={padding!r} and kernel_size={kernel_size!r}"
        )
    step = None if stride is None else _window("stride", stride, 1)
    return _window("kernel_size", kernel_size, 1), step, _window("padding", padding, 0)
