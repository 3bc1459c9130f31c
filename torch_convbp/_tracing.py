"""torch.fx's trace of a module, with what else is needed to judge it: what code ran, and when."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import operator
import os
import random
import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node

from torch_convbp._source import is_torchs

__all__ = ["AUGMENTED", "Entry", "Trace", "Visit", "Where", "structural_copy", "text_of"]


@dataclass(eq=False)
class Entry:
    """One call of a module."""

    name: str
    module: nn.Module
    time: int


@dataclass(eq=False)
class Visit:
    """One run through the model's code, or through what that calls of torch's or Python's."""

    code: types.CodeType
    names: dict[str, Any]  # its globals
    time: int
    given: list[Any]  # its arguments, and what its closure holds
    nodes: set[Node]  # those whose values are among them
    foreign: str = ""  # a C function that is not torch's, called from it
    gave_callable: bool = False
    returned: set[Node] = field(default_factory=set)
    time_returned: int = sys.maxsize

    @property
    def name(self) -> str:
        return getattr(self.code, "co_qualname", self.code.co_name)


@dataclass
class Where:
    """Where in the program a node was made; with the outermost first."""

    time: int
    visits: list[Visit]
    entries: list[Entry]
    strange: str | None  # a frame among the visits' whose ways are not known
    instruction: int  # in the innermost visit
    line: int
    this: Any  # the first argument of that visit
    torchs: list[nn.Module]  # modules whose own forward the innermost frames are
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


# torch.fx replaces nn.Module.__call__ while it traces, and puts back what it found.
_one_at_a_time = threading.RLock()


class Trace(torch.fx.Tracer):
    """The graph of ``root``, which is a copy made for it.

    A module inside that torch.fx cannot trace becomes one node; ``opaque`` says which and why.

    Raises:
        ValueError: torch.fx cannot trace it.
    """

    def __init__(self, root: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.clock = itertools.count()
        self.thread = threading.get_ident()
        self.where: dict[Node, Where] = {}
        self.visits: dict[types.FrameType, Visit] = {}
        self.opaque: dict[str, str] = {}
        self.stack = [Entry("", root, 0)]
        self.entries = self.stack[:]
        self.names = {module: name for name, module in root.named_modules()}
        if "forward" in vars(root):  # torch.fx would trace the class's
            raise ValueError("its forward was replaced on the object")
        try:
            with _one_at_a_time, _nothing_seen_outside():
                before = sys.getprofile()
                sys.setprofile(self._profile)
                try:
                    self.trace(root)
                    if sys.getprofile() != self._profile:
                        raise ValueError("it sets a profiler")
                finally:
                    sys.setprofile(before)
        except Exception as error:
            raise ValueError(text_of(error)) from error

    # -------------------------------------------------------------------------------- what code ran

    def _profile(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            if self._is_models(frame):
                given = list(frame.f_locals.values())
                self.visits[frame] = Visit(
                    frame.f_code, frame.f_globals, next(self.clock), given, _nodes_in(given)
                )
        elif event == "return" and frame in self.visits:
            visit = self.visits[frame]
            visit.returned, visit.time_returned = _nodes_in([argument]), next(self.clock)
            visit.gave_callable = callable(argument) and not isinstance(argument, torch.fx.Proxy)
        elif event == "c_call" and frame in self.visits and not is_torchs(argument):
            self.visits[frame].foreign = str(argument.__name__)

    def _is_models(self, frame: types.FrameType) -> bool:
        """Is it of the model's code, or of what that calls and is not known to hand values on?"""
        name, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if name.startswith("torch_convbp.") or _hands_on(frame):
            return False
        others = name.partition(".")[0] == "torch" or name.startswith("namedtuple_")
        if file.startswith((_STANDARD_LIBRARY, "<frozen")) and "-packages" not in file:
            others = True
        return not others or frame.f_back in self.visits

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> Node:  # type: ignore[override]
        node = super().create_node(kind, *args, **kwargs)
        frames, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code is not torch.fx.Tracer.trace.__code__:
            frames.append(frame)
            frame = frame.f_back  # type: ignore[assignment]
        innermost = next((f for f in frames if f in self.visits), None)
        inner = frames[: frames.index(innermost)] if innermost else frames
        self.where[node] = Where(
            next(self.clock),
            [self.visits[f] for f in reversed(frames) if f in self.visits],
            self.stack[:],
            next((_text(f) for f in frames if f not in self.visits and not _hands_on(f)), None),
            innermost.f_lasti if innermost else 0,
            innermost.f_lineno if innermost else 0,
            next(iter(self.visits[innermost].given), None) if innermost else None,
            _modules_of(inner) if kind != "call_module" else [],
            (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
            ),
        )
        return node

    def proxy(self, node: Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    # ------------------------------------------------------------------------------ which are nodes

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        if m not in self.names:  # made on the way, as a slice of a Sequential is
            raise NameError(f"a {type(m).__name__} that is no submodule is called")
        name = self.names[m]
        self.stack.append(Entry(name, m, next(self.clock)))
        self.entries.append(self.stack[-1])
        nodes_before = len(self.graph.nodes)
        try:
            if not self.is_leaf_module(m, name):
                try:
                    return forward(*args, **kwargs)
                except Exception as error:
                    self.opaque[name] = text_of(error)
                for node in reversed(list(self.graph.nodes)[nodes_before:]):
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", name, args, kwargs)
        finally:
            self.stack.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_STANDARD_LIBRARY = os.path.dirname(os.__file__)
# Code of torch's that hands values on as they are, and calls what it is told to.
_HAND_ON = (
    *("torch.nn.modules.module", "torch.nn.modules.container", "torch.nn.modules.activation"),
    *("torch.nn.functional", "torch.overrides", "torch._jit_internal"),
)


def _modules_of(frames: Iterable[types.FrameType]) -> list[nn.Module]:
    return [m for f in frames if isinstance(m := f.f_locals.get("self"), nn.Module)]


def _hands_on(frame: types.FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name in _HAND_ON or name.startswith(("torch.fx.", "torch_convbp."))


def _text(frame: types.FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}"


_CONTAINERS = (list, tuple, dict, set, frozenset, deque, slice, functools.partial)


def _nodes_in(values: Iterable[Any]) -> set[Node]:
    """The nodes of the proxies among values, and in their containers."""
    todo, seen, nodes = list(values), set(), set()
    while todo:
        value = todo.pop()
        if isinstance(value, torch.fx.Proxy):
            nodes.add(value.node)
        elif isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            todo += _parts(value)
    return nodes


def _parts(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    if isinstance(container, slice):
        return container.start, container.stop, container.step
    if isinstance(container, functools.partial):
        return container.args, container.keywords
    return container


def text_of(error: BaseException) -> str:
    """The first sentence of what torch.fx, or the model, says."""
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


@contextlib.contextmanager
def _nothing_seen_outside() -> Iterator[None]:
    """Random states and warnings stay as they were: the program is not really run.

    No garbage is collected meanwhile: what others do then (gc.callbacks, finalizers) would look
    like code of the model's.
    """
    collects = gc.isenabled()
    gc.disable()
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collects:
            gc.enable()
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def structural_copy(model: nn.Module, training: bool) -> nn.Module:
    """A copy in that mode whose forward may be run for its structure: without hooks, its
    Parameters without values, and nothing shared that forward could change.

    Raises:
        ValueError: something in the model does not let itself be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        values = vars(module)
        for value in [*values.get("_buffers", {}).values(), *values.values()]:
            if isinstance(value, Tensor):
                memo[id(value)] = value.detach().clone()
        for value in values.get("_parameters", {}).values():
            if value is not None:
                empty = torch.empty_like(value, device="meta")
                memo[id(value)] = nn.Parameter(empty, value.requires_grad)
        memo |= {id(values[name]): type(values[name])() for name in _HOOKS if values.get(name)}
    try:
        copied = copy.deepcopy(model, memo)
        same = _structure(copied) == _structure(model)
        changed = not same or _structure(copied.train(training)) != _structure(model)
    except Exception as error:  # what a model does when it is copied is its own
        raise ValueError(text_of(error)) from error
    if changed:
        raise ValueError(f"its {'train()' if same else 'copy'} has other modules")
    return copied


def _structure(model: nn.Module) -> list[tuple[str, type]]:
    # torch.fx makes a class for each of its modules.
    fx = torch.fx.GraphModule
    modules = model.named_modules(remove_duplicate=False)
    return [(name, fx if isinstance(m, fx) else type(m)) for name, m in modules]
