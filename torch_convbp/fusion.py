"""Which activations may be computed in the convolution before them, and doing so.

To move g into a convolution is right where nothing but g sees the convolution's output. That is
looked for in a trace by torch.fx of a copy of the model, in training and in evaluation mode, and
in the code and the hooks between the two calls. A module that torch.fx cannot trace is one unknown
node of it, and its children are traced each by itself.

What changes are classes, as in convert: the activation module, which stays at its place, gets one
that does nothing; a module whose code calls a functional activation one whose method lacks the
call. So names, state_dict and references stay, and ``unfuse`` gives the classes back.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node
from torch.nn.utils import parametrize

from torch_convbp import activations, shapes
from torch_convbp._tracing import AUGMENTED, Entry, Trace, structural_copy, text_of
from torch_convbp._without_calls import Call, calls, class_before, class_without, removed_from
from torch_convbp.activations import TABLE, Activation
from torch_convbp.modules import ConvBP2d

__all__ = ["Fused", "FusedActivation", "Fusions", "LeftAlone", "fuse", "fusions", "unfuse"]

logger = logging.getLogger("torch_convbp")


class Fused(NamedTuple):
    """A convolution that computes g; ``activation`` is the module that did, or the call."""

    convolution: str
    activation: str
    g: str

    def __str__(self) -> str:
        return f"{self.convolution} computes {self.g} of {self.activation}"


class LeftAlone(NamedTuple):
    """An activation behind a convolution that stays where it is; or a module not looked into."""

    convolution: str
    activation: str
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(filter(None, self[:2])) or '(the model itself)'}: {self.reason}"


class Fusions(NamedTuple):
    fused: list[Fused]
    left_alone: list[LeftAlone]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} activation(s) fused into convolutions", *self.fused]
        if self.left_alone:
            lines += [f"{len(self.left_alone)} left alone", *self.left_alone]
        return "\n".join(line if isinstance(line, str) else f"  {line}" for line in lines)


class FusedActivation(nn.Identity):
    """What an activation module is while a convolution computes its g: nothing is left to do.

    The same object at the same place; bp.revert gives it its class back.
    """

    def extra_repr(self) -> str:
        was: type[nn.Module] = vars(self)["_class_before"]
        places = ", ".join(link.convolution for link in vars(self)["_links"])
        return f"{was.__name__}({was.extra_repr(self)}) in {places}"


@dataclass(eq=False)
class _Link:
    """Held by both ends of a fusion, so that they find each other in copies of a model too."""

    convolution: str  # its name when it was fused
    call: str  # the call that is gone; "" of a module


@dataclass(frozen=True)
class _Site:
    """One activation behind a convolution."""

    convolution: str
    holder: str  # the activation module, or the module whose code has the call
    call: Call | None
    g: Activation | None = None
    reason: str | None = None  # why it is left alone

    @property
    def key(self) -> tuple[str, str, Call | None]:
        return self.convolution, self.holder, self.call

    def left_alone(self) -> LeftAlone:
        text = self.call.text if self.call else ""
        reason = self.reason or "not fused yet: convert(model, fuse_activations=True)"
        return LeftAlone(self.convolution, _say(self.holder, text), reason)


def _say(holder: str, call: str) -> str:
    """An activation's name: its module's, or its call and the module whose code has it."""
    return f"{call} in {holder or 'the model itself'}" if call else holder


# ------------------------------------------------------------------------- activations in a graph

_NAMES = frozenset(TABLE) - {"gelu_tanh"}
# As functions and methods are called; a trailing underscore is torch's for "in place".
_CALLED = frozenset(name + suffix for name in _NAMES for suffix in ("", "_"))


def _function_name(node: Node) -> str | None:
    """The name of the functional activation that a node calls."""
    if node.op == "call_method" and node.target in ("relu", "sigmoid", "tanh", "relu_", "sigmoid_",
                                                    "tanh_"):  # fmt: skip
        return str(node.target)
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    is_torchs = any(getattr(place, name, None) is node.target for place in (F, torch))
    return name if name in _CALLED and is_torchs else None


def _of_function(name: str, node: Node) -> Activation | None:
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


def _is_activation(module: nn.Module) -> bool:
    return any(c.__module__ == "torch.nn.modules.activation" for c in type(module).__mro__)


def _is_ours(module: nn.Module) -> bool:
    """A convolution that can take an activation."""
    cls: Any = type(module)
    return (
        isinstance(module, ConvBP2d)
        and module.activation is None
        and cls.forward is ConvBP2d.forward
        and cls._conv_forward is ConvBP2d._conv_forward
        and not {"forward", "_conv_forward"} & vars(module).keys()
    )


def _is_in_place(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in AUGMENTED
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace") or "out" in node.kwargs)
    )


_MAY_BE_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)


# --------------------------------------------------------------------------------------- the proof


class _Judge:
    """The pairs in one trace of ``root``, a copy of what is ``name`` in ``model``."""

    def __init__(self, model: nn.Module, name: str, root: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.places = _places(model)
        self.places_below = _places(self.modules[name])
        self.trace = Trace(name, root, lambda module: isinstance(module, ConvBP2d))
        self.sites: list[_Site] = []
        self.uses: Counter[tuple[str, Call | None]] = Counter()  # how often the graph calls what
        if name in self.trace.opaque:
            return
        nodes = list(self.trace.graph.nodes)
        self.functions = dict(self._functions(nodes))
        for node in nodes:
            if node.op == "call_module":
                self.uses[self._name(node), None] += 1
            elif isinstance(called := self.functions.get(node), tuple):
                self.uses[called] += 1
        convolutions = [n for n in nodes if (m := self._module(n)) is not None and _is_ours(m)]
        for node in convolutions:
            self.sites += filter(None, (self._site(node, user) for user in node.users))
        # Only when the frames are gone does nothing hold a value but what the program keeps.
        self.trace.where.clear()
        kept = {self._name(node) for node in convolutions if self.trace.is_kept(node)}
        for i, site in enumerate(self.sites):
            if site.reason is None and site.convolution in kept:
                self.sites[i] = replace(site, reason="the convolution's output is kept somewhere")

    def _name(self, node: Node) -> str:
        return self.trace.full(str(node.target))

    def _module(self, node: Node) -> nn.Module | None:
        return self.modules[self._name(node)] if node.op == "call_module" else None

    def _functions(self, nodes: list[Node]) -> Iterator[tuple[Node, tuple[str, Call] | str]]:
        """The module whose code makes each functional call, and which call; or why not known."""
        made: dict[FrameType | None, list[Node]] = {}
        for node in nodes:
            if _function_name(node) is not None:
                frames = self.trace.where[node].frames
                frame = next((f for f in reversed(frames) if not _is_torchs(f)), None)
                made.setdefault(frame, []).append(node)
        for frame, group in made.items():
            entry = self.trace.where[group[0]].entries[-1]
            try:
                found = _calls_of(entry, frame)
                if [call.name for call in found] != [_function_name(node) for node in group]:
                    raise ValueError("the code and its trace have not the same calls")
            except ValueError as error:
                yield from ((node, str(error)) for node in group)
            else:
                yield from ((n, (entry.name, c)) for n, c in zip(group, found, strict=True))

    def _site(self, conv: Node, user: Node) -> _Site | None:
        convolution, module, function = self._name(conv), self._module(user), _function_name(user)
        if module is not None and _is_activation(module):
            g = activations.of_module(module)
            site = _Site(convolution, self._name(user), None, g)
            reason = None if g else f"the layer does not know {type(module).__name__}"
        elif function is not None and isinstance(called := self.functions[user], tuple):
            site = _Site(convolution, *called, _of_function(function, user))
            reason = None if site.g else "the layer does not know it with these arguments"
        elif function is not None:
            owner, call = self.trace.where[user].entries[-1].name, Call("", 0, "", f"{function}()")
            site, reason = _Site(convolution, owner, call), str(called)
        else:
            return None
        return replace(site, reason=reason or self._why_not(conv, user, site))

    def _why_not(self, conv: Node, user: Node, site: _Site) -> str | None:
        """What may see g move into the convolution, by what this trace shows; None if nothing."""
        here, there = self.trace.where[conv], self.trace.where[user]
        layer, holder = self.modules[site.convolution], self.modules[site.holder]
        if self.places[layer] > 1 or self.uses[site.convolution, None] > 1:
            return "the convolution is used in more than one place"
        if len(conv.users) > 1:
            return "the convolution's output is used elsewhere too"
        if user.args[:1] != (conv,) and user.kwargs.get("input") is not conv:
            return "the convolution's output is not its input"
        if self.places[holder] > self.places_below[holder]:
            return f"{site.holder} is used elsewhere too"
        if "forward" in vars(holder):
            return f"the forward of {site.holder} was replaced on the object"
        outputs_seen = [self.modules[e.name] for e in _apart(here.entries, there.entries)]
        inputs_seen = [self.modules[e.name] for e in _apart(there.entries, here.entries)]
        if any(_has_hooks(m, ("_forward_hooks",)) for m in outputs_seen) or any(
            _has_hooks(m, ("_forward_pre_hooks", "_forward_hooks")) for m in inputs_seen
        ):
            return "hooks look at what is between the two"
        if here.modes != there.modes:
            return "gradients or autocast are switched between the two"
        for frame in _frames_between(here.frames, there.frames):
            if not _is_torchs(frame) and (other := _other_ways(frame.f_code)):
                return f"{_name_of(frame)} {other}"
        if site.g and site.g.name in ("leaky_relu", "relu6") and self._is_changed_after(user):
            return "its output is changed in place, and would be needed in backward"
        if site.call is not None:
            return _why_not_without(holder, site.call)
        return None

    def _is_changed_after(self, node: Node) -> bool:
        """May an operation in place meet the output, where torch keeps the input instead?"""
        module = self._module(node)
        if _is_in_place(node) if module is None else vars(module).get("inplace"):
            return False  # torch keeps the output as well
        todo, seen = list(node.users), {node}
        while todo:
            user = todo.pop()
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            module = self._module(user)
            if module is None:
                if _is_in_place(user):
                    return True
            elif vars(module).get("inplace") or self._name(user) in self.trace.opaque:
                return True
            elif not isinstance(module, _MAY_BE_VIEWS):
                continue
            todo += user.users
        return False


def _places(model: nn.Module) -> Counter[nn.Module]:
    """Under how many names each module is there."""
    return Counter(module for _, module in model.named_modules(remove_duplicate=False))


def _is_torchs(frame: FrameType) -> bool:
    """Code of torch's own, or ours: it hands values on, as Sequential does, and that is known."""
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "torch_convbp")


def _name_of(frame: FrameType) -> str:
    return getattr(frame.f_code, "co_qualname", frame.f_code.co_name)


def _calls_of(entry: Entry, frame: FrameType | None) -> list[Call]:
    """All functional activations in a frame's code, if that is a method of the module's own."""
    if frame is not None:
        code, cls = frame.f_code, type(entry.module)
        this = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        method = inspect.getattr_static(cls, code.co_name, None)
        if this is entry.module and getattr(method, "__code__", None) is code:
            written = getattr(class_before(cls) or cls, code.co_name)
            modules = {f"{code.co_varnames[0]}.{name}" for name, _ in entry.module.named_modules()}
            return [
                call
                for call in calls(written, _CALLED)
                if call not in removed_from(cls) and call.function not in modules
            ]
    raise ValueError("it is not called in a method of the module's own")


def _apart(these: Sequence[Any], others: Sequence[Any]) -> Sequence[Any]:
    """What these have after the beginning that both have in common."""
    n = 0
    while n < min(len(these), len(others)) and these[n] is others[n]:
        n += 1
    return these[n:]


def _frames_between(here: list[FrameType], there: list[FrameType]) -> list[FrameType]:
    """Those that a value passes from one place to the other: up to a common one, and down."""
    apart = _apart(here, there)
    common = here[: len(here) - len(apart)]
    return [*common[-1:], *apart, *_apart(there, here)]


def _other_ways(code: CodeType) -> str | None:
    """What in the code may lead a later run another way than the trace."""
    before = ""
    for instruction in dis.get_instructions(code):
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            return "has branches, loops or with blocks"
        name = instruction.opname
        if name == "BINARY_SLICE" or (name == "BINARY_SUBSCR" and before != "LOAD_CONST"):
            return "picks by an index that may change"
        before = name
    if {"getattr", "get_submodule", "__getattr__"} & {*code.co_names}:
        return "picks by a name that may change"
    return "has with blocks" if getattr(code, "co_exceptiontable", b"") else None


def _has_hooks(module: nn.Module, kinds: Sequence[str]) -> bool:
    return any(vars(module).get(k) for k in (*kinds, "_backward_hooks", "_backward_pre_hooks"))


def _class_without(cls: Any, more: tuple[Call, ...]) -> type[nn.Module]:
    """The class of a module some of whose calls may be gone already. Raises ValueError."""
    written: Any = class_before(cls) or cls
    return class_without(written, _CALLED, tuple(sorted({*removed_from(cls), *more})))


def _why_not_without(holder: nn.Module, call: Call) -> str | None:
    if isinstance(holder, torch.fx.GraphModule):
        return "torch.fx made the code from a graph, which has the call too"
    if parametrize.is_parametrized(holder):
        return f"{type(holder).__name__} is a class that torch made"
    try:
        _class_without(type(holder), (call,))
    except ValueError as error:
        return f"{type(holder).__name__}.{call.method}: {error}"
    return None


def _find(
    model: nn.Module, name: str = "", exposed: frozenset[str] = frozenset()
) -> tuple[list[_Site], list[LeftAlone]]:
    """Every activation behind a convolution in the module of that name, and what was not seen.

    exposed: what is known to be called by others than the modules around it.
    """
    root = dict(model.named_modules())[name]
    judges: list[_Judge] = []
    opaque: dict[str, str] = {}
    try:
        for training in (True, False):
            copied = structural_copy(root)
            if _structure(copied) != _structure(copied.train(training)):
                raise ValueError("its train() changes its modules")
            judges.append(_Judge(model, name, copied))
            opaque |= judges[-1].trace.opaque
    except Exception as error:  # what a model does when it is copied is its own
        opaque[name] = text_of(error)
    sites = [] if name in opaque else _in_both(judges)
    sites = [s for s in sites if not any(s.convolution.startswith(f"{o}.") for o in opaque)]
    for i, site in enumerate(sites):
        if site.reason is None and {site.convolution, site.holder} & exposed - {name}:
            sites[i] = replace(site, reason="it is called from outside of the module it is in")

    left = []
    for closed, why in opaque.items():
        module = dict(model.named_modules())[closed]
        if not any(_is_ours(m) for m in module.modules()):
            continue
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            reason = f"torch.fx cannot trace it ({why}), only its children by themselves"
            left.append(LeftAlone("", closed, reason))
        for child_name, child in module.named_children():
            if not any(True for _ in child.children()):
                continue
            below = f"{closed}.{child_name}".lstrip(".")
            called = [call for judge in judges for call in judge.trace.calls]
            seen = {c for caller, c in called if _is_in(c, below) and not _is_in(caller, below)}
            more_sites, more_left = _find(model, below, exposed | seen)
            sites, left = sites + more_sites, left + more_left
    return sites, left


def _structure(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(m)) for name, m in model.named_modules(remove_duplicate=False)]


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _in_both(judges: list[_Judge]) -> list[_Site]:
    """The sites of the traces in training and in evaluation mode, as far as they agree."""
    merged: dict[tuple[str, str, Call | None], _Site] = {}
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


# -------------------------------------------------------------------------------------- the doing


def fuse(model: nn.Module) -> Fusions:
    """Moves every activation that may be moved into the ConvBP2d before it; says what was."""
    sites, left = _find(model)
    modules = dict(model.named_modules())
    for holder_name in dict.fromkeys(site.holder for site in sites):
        holder = modules[holder_name]
        mine = [s for s in sites if s.holder == holder_name and s.reason is None]
        if not mine:
            continue
        called = tuple(site.call for site in mine if site.call is not None)
        if called:
            holder.__class__ = _class_without(type(holder), called)
        else:
            holder.__dict__["_class_before"] = type(holder)
            holder.__class__ = FusedActivation
        links = [_Link(s.convolution, s.call.text if s.call else "") for s in mine]
        for site, link in zip(mine, links, strict=True):
            modules[site.convolution].__dict__.update(activation=site.g, _link=link)
        holder.__dict__["_links"] = (*vars(holder).get("_links", ()), *links)
    report = Fusions(_fused(model), [*(s.left_alone() for s in sites if s.reason), *left])
    logger.info("%s", report)
    return report


def unfuse(model: nn.Module) -> None:
    """Undoes ``fuse``, as far as both ends of a fusion are in the model."""
    layers = {id(vars(m)["_link"]): m for m in model.modules() if "_link" in vars(m)}
    for holder in model.modules():
        links = vars(holder).get("_links", ())
        if not links or any(id(link) not in layers for link in links):
            continue
        for link in links:
            layer = layers[id(link)].__dict__
            del layer["activation"], layer["_link"]
        del holder.__dict__["_links"]
        before = class_before(type(holder))
        holder.__class__ = before or holder.__dict__.pop("_class_before")


def _fused(model: nn.Module) -> list[Fused]:
    names = dict(model.named_modules())
    layers = {id(vars(m)["_link"]): name for name, m in names.items() if "_link" in vars(m)}
    return [
        Fused(layers[id(link)], _say(name, link.call), str(names[layers[id(link)]].activation))
        for name, holder in names.items()
        for link in vars(holder).get("_links", ())
        if id(link) in layers
    ]


def fusions(model: nn.Module) -> Fusions:
    """What convert(model, fuse_activations=True) fused, and what it left alone, with the reasons.

    Returns:
        fused: of each convolution its name, what computed the activation before, and g.
        left_alone: of each activation behind a ConvBP2d that is not fused the two names and the
            reason; of each module that torch.fx cannot trace its name and what torch.fx said.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    shapes.check_is_module("fusions", model)
    sites, left = _find(model)
    return Fusions(_fused(model), [*(site.left_alone() for site in sites), *left])
