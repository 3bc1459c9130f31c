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
from torch_convbp.error_signals import recording
from torch_convbp.ops.checks import LARGEST_PARAMETER

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
        if name != "activation":
            super().__delattr__(name)
        elif self.activation is not None:
            raise AttributeError(
                f"the activation {self.activation} of a {type(self).__name__} cannot be deleted: "
                "set it to None"
            )
