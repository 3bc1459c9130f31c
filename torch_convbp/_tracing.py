"""torch.fx's trace of a module, with what is needed to judge it: where each node comes from."""

from __future__ import annotations

import contextlib
import copy
import gc
import operator
import random
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node

__all__ = ["AUGMENTED", "Entry", "Trace", "Where", "structural_copy", "text_of"]


class Entry:
    """One call of a module."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module


@dataclass
class Where:
    """Where in the program a node was made; frames and entries with the outermost first."""

    frames: list[types.FrameType]
    entries: list[Entry]
    modes: tuple[bool, ...]


class _Proxy(torch.fx.Proxy):
    """One that tells ``x += y`` from ``x + y``."""


def _augmented(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


_NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
AUGMENTED = frozenset(getattr(operator, name) for name in _NAMES)
for _name in _NAMES:
    setattr(_Proxy, f"__{_name}__", _augmented(getattr(operator, _name)))


class Trace(torch.fx.Tracer):
    """The graph of ``root``, which is a copy made for it; ``name`` is the original's in its model.

    A module inside that torch.fx cannot trace becomes one node. ``opaque`` says which and why.
    """

    def __init__(self, name: str, root: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.name = name
        self.is_leaf = is_leaf
        self.stack = [Entry(name, root)]
        self.where: dict[Node, Where] = {}
        self.opaque: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []  # (module, a module that it called)
        self._proxies: dict[Node, weakref.ref[torch.fx.Proxy]] = {}
        try:
            if "forward" in vars(root):  # torch.fx would trace the class's
                raise ValueError("its forward was replaced on the object")
            with _nothing_seen_outside():
                self.trace(root)
        except Exception as error:
            self.opaque[name] = text_of(error)

    def full(self, name: str) -> str:
        """The name in the model of what has this name in the root."""
        return ".".join(part for part in (self.name, name) if part)

    def is_kept(self, node: Node) -> bool:
        """Does anything the program left behind still refer to the node's value?"""
        if self._proxies[node]() is not None:
            gc.collect()
        return self._proxies[node]() is not None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        caller, paths = self.stack[-1].name, self.submodule_paths or {}
        if m not in paths:  # made on the way, as a slice of a Sequential is
            self.calls += [(caller, self.full(paths[sub])) for sub in m.modules() if sub in paths]
            raise NameError(f"a {type(m).__name__} that is no submodule is called")
        name = self.full(paths[m])
        self.calls.append((caller, name))
        self.stack.append(Entry(name, m))
        nodes_before = len(self.graph.nodes)
        try:
            if not self.is_leaf_module(m, paths[m]):
                try:
                    return forward(*args, **kwargs)
                except Exception as error:
                    self.opaque[name] = text_of(error)
                for node in reversed(list(self.graph.nodes)[nodes_before:]):
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", paths[m], args, kwargs)
        finally:
            self.stack.pop()

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> Node:  # type: ignore[override]
        node = super().create_node(kind, *args, **kwargs)
        frames, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code is not torch.fx.Tracer.trace.__code__:
            frames.append(frame)
            frame = frame.f_back  # type: ignore[assignment]
        modes = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )
        self.where[node] = Where(frames[::-1], self.stack[:], modes)
        return node

    def proxy(self, node: Node) -> torch.fx.Proxy:
        proxy = _Proxy(node, self)
        self._proxies[node] = weakref.ref(proxy)
        return proxy


def text_of(error: Exception) -> str:
    """The first sentence of what torch.fx, or the model, says."""
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


@contextlib.contextmanager
def _nothing_seen_outside() -> Iterator[None]:
    """Random states and warnings stay as they were: the program is not really run."""
    python = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy with the same Parameters and no hooks, whose forward may be run for its structure.

    Raises:
        Exception: something in the model does not let itself be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        values = vars(module)
        shared = [*values.get("_parameters", {}).values(), *values.values()]
        memo |= {id(t): t for t in shared if isinstance(t, Tensor)}
        memo |= {id(values[name]): type(values[name])() for name in _HOOKS if values.get(name)}
    return copy.deepcopy(model, memo)
