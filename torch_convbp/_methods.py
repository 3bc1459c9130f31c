"""Methods of a model that may hand out what is between two modules in it, when others call them."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from torch_convbp import _source

__all__ = ["methods_of", "takes_apart", "uses"]


def methods_of(module: nn.Module) -> Iterator[types.FunctionType]:
    """The methods of a module's class, properties too and what decorators hide; none of torch's.

    Without the constructor, which has no output of a layer to give.
    """
    for name in dir(type(module)):
        value: Any = inspect.getattr_static(type(module), name)
        if isinstance(value, property):
            values = [value.fget, value.fset]
        elif isinstance(value, functools.cached_property):
            values = [value.func]
        else:
            values = [getattr(value, "__func__", value)]
        for function in values:
            function = inspect.unwrap(function) if callable(function) else None
            known = name == "__init__" or _source.is_torchs(function)
            if isinstance(function, types.FunctionType) and not known:
                yield function


def uses(code: types.CodeType, names: Collection[str]) -> bool:
    """Does it look up one of these names, as an attribute or in a string?"""
    looked_up = (name for c in _source.codes(code) for name in (*c.co_names, *c.co_consts))
    return any(isinstance(name, str) and name in names for name in looked_up)


def takes_apart(code: types.CodeType, name: str) -> bool:
    """Does it do more with the Sequential of this name than to call it?"""
    if not uses(code, [name]):
        return False
    try:
        nodes = list(ast.walk(_source.definition_of(code)))
    except ValueError:  # its source is not known
        return True
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return any(
        id(node) not in called
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.Constant) and node.value == name)
    )
