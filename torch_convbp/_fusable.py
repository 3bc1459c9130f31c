"""Which activations may be computed in the convolution before them: the proof.

To move g into a convolution is right where nothing but g sees the convolution's output, in every
run. That is read from two traces by torch.fx, one in training and one in evaluation mode, of
copies of the model. What lies on the way from the one call to the other must be code that has one
way through; all other code of the model that ran must have one, or be unable to reach either end;
and a copy in which g is moved must have the traces of the model. Whatever is not shown so stays.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import sys
import types
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.utils import parametrize

from torch_convbp import _source, activations, recording
from torch_convbp._graph import (
    function_name,
    is_activation,
    is_in_place,
    is_known,
    is_ours,
    makes_its_own,
    of_function,
)
from torch_convbp._methods import methods_of, takes_apart, uses
from torch_convbp._source import is_torchs
from torch_convbp._tracing import Entry, Trace, Visit
from torch_convbp._without_calls import Call, call_of, check, class_before, class_without
from torch_convbp.activations import Activation

__all__ = ["Judge", "Site", "has_global_hooks", "in_both"]


@dataclass(frozen=True)
class Site:
    """One activation behind a convolution."""

    convolution: str
    holder: str  # the activation module, or the module whose code has the call
    call: Call | None
    g: Activation | None = None
    reason: str | None = None  # why it is left alone

    @property
    def key(self) -> tuple[str, str, Call | None]:
        return self.convolution, self.holder, self.call


# --------------------------------------------------------------------------------------- the proof


def has_global_hooks() -> bool:
    return any(v for k, v in vars(nn.modules.module).items() if _is_global_hooks(k))


def _is_global_hooks(name: str) -> bool:
    return name.startswith("_global_") and name.endswith("_hooks")


class Judge:
    """The sites in one trace of a copy of the model."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.copies = dict(trace.root.named_modules(remove_duplicate=False))
        self.trace = trace
        self.entered = {entry.module for entry in trace.entries}
        self.uses: Counter[tuple[str, Call | None]] = Counter()  # how often the graph calls what
        self.nodes: dict[tuple[str, str, Call | None], list[Node]] = {}
        self.sites: list[Site] = []
        self._reach: dict[int, set[int]] = {}
        nodes = list(trace.graph.nodes)
        pairs = [
            (node, user)
            for node in nodes
            if (m := self._module(node)) is not None and is_ours(m)
            for user in node.users
            if self._is_activation(user)
        ]
        if not pairs:
            return
        calls = {n: self._call(n) for n in nodes if function_name(n)}
        for node in nodes:
            if node.op == "call_module":
                self.uses[str(node.target), None] += 1
            elif isinstance(called := calls.get(node), tuple):
                self.uses[called] += 1
        for node, user in pairs:
            site = self._site(node, user, calls.get(user, ""))
            self.sites.append(site)
            self.nodes.setdefault(site.key, []).append(user)

    def _module(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _is_activation(self, node: Node) -> bool:
        module = self._module(node)
        return function_name(node) is not None if module is None else is_activation(module)

    def _call(self, node: Node) -> tuple[str, Call] | str:
        """The module whose code makes a functional call, and which call; or why not known."""
        where, name = self.trace.where[node], str(function_name(node))
        not_its_own = "it is not called in a method of a module's own"
        if not where.visits or where.torchs or where.this not in self.trace.names:
            return not_its_own
        holder = self.trace.names[where.this]
        code, names = where.visits[-1].code, where.visits[-1].names
        method = inspect.getattr_static(type(where.this), code.co_name, None)
        if getattr(method, "__code__", None) is not code:
            return not_its_own
        try:
            call = _source.call_at(code, where.instruction, where.line, name)
        except ValueError as error:
            return str(error)
        links = _source.chain(call.func)
        if node.op == "call_method":
            is_it = links[-1:] == [node.target]
        else:
            is_it = _source.value_of(links, code, names) is node.target
        if not is_it:
            return "what is called is not a name of torch's function"
        return holder, call_of(code, call)

    def _site(self, conv: Node, user: Node, called: tuple[str, Call] | str) -> Site:
        convolution, module, function = str(conv.target), self._module(user), function_name(user)
        if module is not None:
            g = activations.of_module(module)
            site = Site(convolution, str(user.target), None, g)
            reason = None if g else f"the layer does not know {type(module).__name__}"
        elif isinstance(called, tuple):
            site = Site(convolution, *called, of_function(str(function), user))
            reason = None if site.g else "the layer does not know it with these arguments"
        else:
            owner = self.trace.where[user].entries[-1].name
            site, reason = Site(convolution, owner, Call("", 0, f"{function}()")), called
        try:
            return replace(site, reason=reason or self._why_not(conv, user, site))
        except ValueError as error:
            return replace(site, reason=str(error))

    def _why_not(self, conv: Node, user: Node, site: Site) -> str | None:
        """What may see g move into the convolution, by what this trace shows; None if nothing."""
        if len(self._places(site.convolution)) > 1 or self.uses[site.convolution, None] > 1:
            return "the convolution is used in more than one place"
        if len(conv.users) > 1:
            return "the convolution's output is used elsewhere too"
        if user.args[:1] != (conv,) and user.kwargs.get("input") is not conv:
            return "the convolution's output is not its input"
        return (
            self._why_not_between(conv, user)
            or self._why_not_others(conv, site)
            or self._why_not_methods(conv, site)
            or self._why_not_after(user, site)
            or self._why_not_holder(site)
        )

    def _places(self, name: str) -> list[str]:
        """All the names of the module with this one."""
        return [other for other, m in self.modules.items() if m is self.modules[name]]

    def _why_not_between(self, conv: Node, user: Node) -> str | None:
        here, there = self.trace.where[conv], self.trace.where[user]
        left = [self.modules[entry.name] for entry in _apart(here.entries, there.entries)]
        entered = [self.modules[entry.name] for entry in _apart(there.entries, here.entries)]
        if any(_has_hooks(m, "_forward_hooks") for m in left) or any(
            _has_hooks(m, "_forward_hooks", "_forward_pre_hooks") for m in entered
        ):
            return "hooks look at what is between the two"
        if here.modes != there.modes:
            return "gradients or autocast are switched between the two"
        if strange := here.strange or there.strange:
            return f"{strange} may do something between the two"
        for visit in dict.fromkeys([*there.visits, *here.visits]):
            if why := _why_several(visit):
                return f"{visit.name} {why}"

        def is_between(time: int) -> bool:
            return here.time < time < there.time

        for entry in self.trace.entries:
            if is_between(entry.time) and entry not in there.entries:
                return f"{entry.name} is called between the two"
        for visit in self.trace.visits.values():
            if is_between(visit.time) and visit not in there.visits:
                return f"{visit.name} runs between the two"
            if conv in visit.nodes and visit not in there.visits:
                return f"{visit.name} is given the convolution's output too"
            if conv in visit.returned and not (
                visit in here.visits and visit.time_returned < there.time
            ):
                return f"{visit.name} returns the convolution's output"
        return None

    def _why_not_others(self, conv: Node, site: Site) -> str | None:
        """Can the rest of the model's code reach either end, and choose?"""
        names = {site.convolution, *([site.holder] if site.call is None else [])}
        # Of the copy, and the originals: globals and closures hold these.
        ends = {id(modules[name]) for modules in (self.copies, self.modules) for name in names}
        for visit, why, reached in self._choosing:
            if reached & ends:
                return f"{visit.name}, which has them in reach, {why}"
        for node in self.trace.graph.nodes:
            if self._hidden_in(node) & ends:
                return f"what {node.name} does with them is not known"
        for module in self.modules.values():
            if self._reached_from(_hooks(module, "_forward_hooks", "_forward_pre_hooks")) & ends:
                return "a hook has them in reach"
        return None

    def _why_not_methods(self, conv: Node, site: Site) -> str | None:
        """May another method than forward give what is between the two to whoever calls it?

        It has to look up what has the convolution in it, and not the activation.
        """
        path, holders = site.convolution.split("."), self._places(site.holder)
        shared = min(_common(path[:-1], holder.split(".")) for holder in holders)
        names = {name for name in path[shared:] if not name.isdecimal()}
        # What a Sequential has in it is not looked up by name; but the Sequential is.
        named = [name for name in path[:shared] if not name.isdecimal()]
        sequential = named[-1] if named and path[shared].isdecimal() else ""
        gave: dict[tuple[types.CodeType, int], bool] = {}  # by the object it is a method of
        for visit in self.trace.visits.values():
            for value in visit.given:
                key = visit.code, id(value)
                gave[key] = gave.get(key, False) or conv in visit.returned
        for depth in range(len(path)):
            numbered = depth == shared and path[depth].isdecimal()  # self[0]
            module = self.copies[".".join(path[:depth])]
            for method in methods_of(module):
                code = method.__code__
                gives = gave.get((code, id(module)))  # None: it did not run
                if gives is False or (gives and code.co_name == "forward"):
                    continue
                if numbered or uses(code, names) or (sequential and takes_apart(code, sequential)):
                    return f"{method.__qualname__} may hand out the convolution's output"
        return None

    def _hidden_in(self, node: Node) -> set[int]:
        """The modules that what a node stands for can reach, unseen by torch.fx."""
        if node.op == "call_function":  # of the model's own, with torch.fx.wrap
            return set() if is_known(node.target) else self._reached_from([node.target])
        module = self.copies.get(str(node.target))
        if module is None or node.op not in ("call_module", "get_attr"):
            return set()
        reached = self._reached_from([module])
        return reached - {id(module)} if node.op == "call_module" else reached

    @functools.cached_property
    def _choosing(self) -> list[tuple[Visit, str, set[int]]]:
        """The runs through code that may choose its way, why, and the modules in its reach."""
        return [
            (v, why, self._reached_from([*v.given, *_named(v.code, v.names)]))
            for v in self.trace.visits.values()
            if (why := _why_several(v))
        ]

    def _reached_from(self, values: Iterable[Any]) -> set[int]:
        """The modules that can be reached from values, by their identity."""
        reached: set[int] = set()
        for value in values:
            if id(value) not in self._reach:
                self._reach[id(value)] = _reachable_modules(value)
            reached |= self._reach[id(value)]
        return reached

    def _why_not_after(self, node: Node, site: Site) -> str | None:
        """May an operation in place meet the output, where torch keeps the input instead?"""
        assert site.g is not None
        if site.g.name not in ("leaky_relu", "relu6") or not site.g.keeps_output:
            return None
        module = self._module(node)
        if is_in_place(node) if module is None else vars(module).get("inplace"):
            return None  # torch keeps the output as well
        todo, seen = list(node.users), {node}
        while todo:
            user = todo.pop()
            if user in seen:
                continue
            seen.add(user)
            module = self._module(user)
            if user.op == "output":
                return "its output is the model's, and changed in place would fail in backward"
            if is_in_place(user) if module is None else vars(module).get("inplace"):
                return "its output is changed in place, and would be needed in backward"
            unknown = user.op == "call_function" and not is_known(user.target)
            if unknown or str(user.target) in self.trace.opaque:
                name = getattr(user.target, "__name__", user.target)
                return f"what {name} does with its output is not known"
            todo += [] if makes_its_own(user, module) else user.users
        return None

    def _why_not_holder(self, site: Site) -> str | None:
        holder = self.modules[site.holder]
        if "forward" in vars(holder):
            return f"the forward of {site.holder or 'the model'} was replaced on the object"
        if site.call is not None:
            return _why_not_without(holder, site.call)
        if holder.state_dict() or any(True for _ in holder.children()):
            return f"{site.holder} has a state of its own"
        for node in self.trace.graph.nodes:
            if self.copies[site.holder] in self.trace.where[node].torchs:
                return f"{site.holder} is called by its forward too"
        for place in self._places(site.holder):
            above = place.rpartition(".")[0]
            while isinstance(self.copies[above], (nn.ModuleList, nn.ModuleDict)) and above:
                above = above.rpartition(".")[0]
            if self.copies[above] not in self.entered:
                return f"it is {place} too, which was not called"
        return None


def _common(these: Sequence[str], others: Sequence[str]) -> int:
    """The length of the beginning that both have in common."""
    pairs = zip(these, others, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _apart(these: Sequence[Entry], others: Sequence[Entry]) -> Sequence[Entry]:
    """What these have after the beginning that both have in common."""
    return [entry for entry in these if entry not in others]


def _why_several(visit: Visit) -> str | None:
    """What may lead another run through the code another way."""
    if why := _source.why_several(visit.code, visit.names):
        return why
    if visit.foreign:
        return f"calls {visit.foreign}, which may do one thing or another"
    return "picks what is called" if visit.gave_callable else None


_NOT_ENTERED = (
    *(torch.Tensor, types.ModuleType, types.CodeType, types.FrameType),
    *(torch.fx.Proxy, torch.fx.Node, torch.fx.Graph, torch.fx.Tracer),
)


def _reachable_modules(value: Any) -> set[int]:
    todo, seen, modules = [value], set(), set()
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, _NOT_ENTERED):
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            modules.add(id(value))
        if isinstance(value, type):
            known = is_torchs(value) or value.__module__ in sys.stdlib_module_names
            todo += () if known else vars(value).values()
        elif isinstance(value, types.FunctionType):  # not its globals, which are everything
            todo += _named(value.__code__, value.__globals__)
            todo += [value.__closure__, value.__defaults__, value.__kwdefaults__]
        else:
            todo += gc.get_referents(value)
    return modules


def _named(code: types.CodeType, names: dict[str, Any]) -> list[Any]:
    """The global values that code, and code in it, may look up."""
    return [names[name] for c in _source.codes(code) for name in c.co_names if name in names]


def _hooks(module: nn.Module, *kinds: str) -> list[Any]:
    """Of these kinds, those that are not of our own recording."""
    hooks = [hook for kind in kinds for hook in (vars(module).get(kind) or {}).values()]
    return [hook for hook in hooks if getattr(hook, "__module__", "") != recording.__name__]


def _has_hooks(module: nn.Module, *kinds: str) -> bool:
    return bool(_hooks(module, *kinds, "_backward_hooks", "_backward_pre_hooks"))


def _why_not_without(holder: nn.Module, call: Call) -> str | None:
    cls = type(holder)
    if isinstance(holder, torch.fx.GraphModule):
        return "torch.fx made the code from a graph, which has the call too"
    if parametrize.is_parametrized(holder):
        return f"{cls.__name__} is a class that torch made"
    try:
        check(call)
        if class_before(cls) is not None:
            return "another of its calls is fused; revert first"
        class_without(cls, (call,))
    except ValueError as error:
        return f"{cls.__name__}.{call.method}: {error}"
    return None


def in_both(judges: Sequence[Judge]) -> list[Site]:
    """The sites of the traces in training and in evaluation mode, as far as they agree."""
    merged: dict[tuple[str, str, Call | None], Site] = {}
    for this, other in (judges, judges[::-1]):
        keys = {site.key for site in other.sites}
        for site in this.sites:
            if site.reason is None and site.key not in keys:
                site = replace(site, reason="training and evaluation mode differ there")
            if site.reason is not None or site.key not in merged:
                merged[site.key] = site
    # Of an activation that is called at several places, every one must be such a place.
    good = Counter((s.holder, s.call) for s in merged.values() if s.reason is None)
    return [
        replace(site, reason="the activation is used elsewhere too")
        if site.reason is None
        and any(judge.uses[site.holder, site.call] != good[site.holder, site.call]
                for judge in judges)
        else site
        for site in merged.values()
    ]  # fmt: skip
