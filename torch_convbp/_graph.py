"""Activations, and convolutions that could compute them, in a graph of torch.fx."""

from __future__ import annotations

import inspect
import operator
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from torch_convbp._source import is_torchs
from torch_convbp._tracing import AUGMENTED
from torch_convbp.activations import TABLE, Activation
from torch_convbp.modules import ConvBP2d

__all__ = [
    "function_name",
    "is_activation",
    "is_called_by_torch",
    "is_in_place",
    "is_known",
    "is_leaf",
    "is_ours",
    "makes_its_own",
    "of_function",
]

_NAMES = frozenset(TABLE) - {"gelu_tanh"}
# As functions and methods are called; a trailing underscore is torch's for "in place".
_CALLED = frozenset(name + suffix for name in _NAMES for suffix in ("", "_"))


def function_name(node: Node) -> str | None:
    """The name of the functional activation that a node calls."""
    if node.op == "call_method" and node.target in _CALLED & {*dir(torch.Tensor)}:
        return str(node.target)
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    torchs = any(getattr(place, name, None) is node.target for place in (F, torch))
    return name if name in _CALLED and torchs else None


def of_function(name: str, node: Node) -> Activation | None:
    """The row and the parameters of a call; None where the table cannot say them."""
    name = name.removesuffix("_")
    names = [*TABLE[name].parameters, "approximate" if name == "gelu" else "inplace"]
    given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    given.pop("input", None)
    given.pop("inplace", None)
    if name == "gelu" and given.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    values = {**TABLE[name].parameters, **given}
    if len(values) > len(TABLE[name].parameters) or not all(
        isinstance(value, (int, float)) for value in values.values()
    ):
        return None
    return Activation(name, tuple(float(value) for value in values.values()))


_ACTIVATIONS = {getattr(nn, name) for name in nn.modules.activation.__all__}
_FORWARDS = {cls.forward for cls in _ACTIVATIONS - {nn.MultiheadAttention}}


def is_activation(module: nn.Module) -> bool:
    """One of torch's, or of a class derived from one that runs its forward."""
    return type(module).forward in _FORWARDS


def is_called_by_torch(module: nn.Module) -> bool:
    """Does a call of the module run torch's code, and so its forward?"""
    cls: Any = type(module)
    return all(is_torchs(getattr(cls, name)) for name in ("__call__", *_CALLS)) and not any(
        name in vars(module) for name in _CALLS
    )


_CALLS = ("_call_impl", "_wrapped_call_impl")


def is_leaf(module: nn.Module) -> bool:
    return isinstance(module, ConvBP2d) or is_activation(module)


def is_ours(module: nn.Module) -> bool:
    """A convolution that can take an activation."""
    cls: Any = type(module)
    return (
        isinstance(module, ConvBP2d)
        and inspect.getattr_static(module, "activation") is None
        and cls.forward is ConvBP2d.forward
        and cls._conv_forward is ConvBP2d._conv_forward
        and is_called_by_torch(module)
        and not {"forward", "_conv_forward"} & vars(module).keys()
    )


def is_known(function: Any) -> bool:
    """One of torch's, of its operators, or of Python's: not of a model's own, by torch.fx.wrap."""
    return is_torchs(function) or isinstance(function, types.BuiltinFunctionType)


def is_in_place(node: Node) -> bool:
    if isinstance(node.target, OpOverload | OpOverloadPacket):
        return any(_writes(schema, node) for schema in _schemas(node.target))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in AUGMENTED
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace") or "out" in node.kwargs)
    )


def _schemas(operator: OpOverload | OpOverloadPacket) -> list[Any]:
    if isinstance(operator, OpOverload):
        return [operator._schema]
    return [getattr(operator, overload)._schema for overload in operator.overloads()]


def _writes(schema: Any, node: Node) -> bool:
    return any(
        argument.alias_info is not None
        and argument.alias_info.is_write
        and (not argument.is_out or argument.name in node.kwargs)
        for argument in schema.arguments
    )


_OWN_MODULES = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
)
_OWN_FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.cat)


def makes_its_own(node: Node, module: nn.Module | None) -> bool:
    """Is the result a tensor of its own, and no view of an argument? None: no node of a module."""
    return node.target in _OWN_FUNCTIONS if module is None else isinstance(module, _OWN_MODULES)
