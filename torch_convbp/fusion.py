"""Activations computed in the convolutions before them.

How pairs are found: torch.fx traces the model once in training and once in evaluation mode. A pair
is a ConvBP2d whose output goes to one activation module and nowhere else, in both traces.

How pairs run: every module stays where it is. The *owner* of a pair is the innermost module that
contains both. While a call of the owner lasts, and if no hook could see the tensor between the two,
the convolution computes g in its epilogue and marks the output. The activation hands on a marked
tensor, and computes g of every other tensor. So a layer that is replaced, pruned, quantised,
observed, or called from outside the owner is not fused. g is never lost or computed twice.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node

from torch_convbp import activations
from torch_convbp.activations import TABLE, Activation
from torch_convbp.modules import as_node, is_node
from torch_convbp.ops import checks
from torch_convbp.tracing import (
    HOOKS,
    Part,
    is_identity,
    is_plain_convolution,
    modes,
    through_identities,
    traced_parts,
)

__all__ = [
    "Fused",
    "FusedActivation",
    "Fusions",
    "LeftAlone",
    "check_pairs",
    "fuse",
    "fused",
    "fusions",
    "global_hooks",
    "unfuse",
    "unwatched",
]

logger = logging.getLogger("torch_convbp")


class Pair(NamedTuple):
    """Names in the model: the owner, the innermost module that is called around the pair; and the
    convolution, nn.Identity modules after it (if any), and the activation."""

    owner: str
    modules: tuple[str, ...]


# Convolution's name -> its pair, or the reason why there is none.
Found: TypeAlias = dict[str, str | Pair]


class Fused(NamedTuple):
    """A convolution that computes the activation after it: their names in the model, and g as a row
    of the table of activations, as in "leaky_relu(0.2)"."""

    convolution: str
    activation: str
    g: str

    def __str__(self) -> str:
        return f"{self.convolution} computes {self.g} of {self.activation}"


class LeftAlone(NamedTuple):
    """A convolution without an activation to compute: its name in the model, and the reason."""

    convolution: str
    reason: str

    def __str__(self) -> str:
        return f"{self.convolution}: {self.reason}"


class Fusions(NamedTuple):
    """Result of ``fusions``; prints as a line for each pair and for each reason."""

    fused: list[Fused]
    left_alone: list[LeftAlone]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} activation(s) computed in the convolutions before them"]
        lines += [f"  {pair}" for pair in self.fused]
        for reason, count in Counter(entry.reason for entry in self.left_alone).most_common():
            lines.append(f"{count} convolution(s) left alone: {reason}")
        return "\n".join(lines)


# ------------------------------------------------------------------------------------- in each call


class FusedActivation(nn.Module):
    """An activation module that hands on a tensor if a convolution has computed g already.

    The class also derives from the activation's own class, so the module is still that activation,
    with its attributes, hooks and references.
    """

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        mark = getattr(input, "_convbp_mark", None)
        if isinstance(mark, Mark):
            mark.take(self, input)
            return input
        output: Tensor = super().forward(input)
        return output


def _fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    namespace = {"__module__": __name__, "__doc__": cls.__doc__, "activation_class": cls}
    return type(f"Fused{cls.__name__}", (FusedActivation, cls), namespace)


# A class for each module of the table, by name in this file, where pickle looks for it.
_FUSED_CLASSES = {row.module: _fused_class(row.module) for row in TABLE.values()}
globals().update({cls.__name__: cls for cls in _FUSED_CLASSES.values()})


class Run:
    """One call of an owner. Convolutions fuse only in the modes of its beginning: not within a
    checkpoint, say, which may run its part again alone."""

    def __init__(self) -> None:
        self.thread, self.modes = _thread(), modes()
        self.convolutions: list[Any] = []  # fused in this call
        self.untaken: list[Mark] = []  # of outputs that have not reached their activations

    def activation(self, module: FusedActivation) -> Activation | None:
        """The module's present g; None where the convolution must not compute g."""
        if (self.thread, self.modes) != (_thread(), modes()):
            return None
        return activations.of_module(module)

    def mark(self, output: Tensor, activation: FusedActivation, g: Activation) -> None:
        """Marks ``output`` as one that includes g."""
        mark = Mark(self, output, activation, g)
        self.untaken.append(mark)
        output._convbp_mark = mark  # type: ignore[attr-defined]


class Mark:
    """What an output that includes g carries to its activation."""

    def __init__(
        self, run: Run, output: Tensor, activation: FusedActivation, g: Activation
    ) -> None:
        self.run, self.activation, self.g = run, activation, g
        self.version = _version(output)

    def take(self, activation: FusedActivation, output: Tensor) -> None:
        """Raises RuntimeError where another activation, or in other modes, meets the output, or
        where the output was changed in place on the way."""
        compiling = torch.compiler.is_compiling()
        # torch.export calls stand-ins of modules, which share the attributes.
        same = self.activation is activation or vars(self.activation) is vars(activation)
        if not same or not (compiling or self.run.modes == modes()):
            raise RuntimeError(self.complaint())
        if activations.of_module(activation) != self.g or self.version != _version(output):
            raise RuntimeError(self.complaint())
        self.run.untaken.remove(self)
        if compiling:  # torch.compile knows no ``del`` of an attribute
            output._convbp_mark = None  # type: ignore[attr-defined]
        else:
            del output._convbp_mark  # type: ignore[attr-defined]

    def complaint(self) -> str:
        return (
            f"a convolution has computed {self.g}, the activation after it, but its output was not "
            f"handed on to that {type(self.activation).__name__} as it was when the model was "
            "fused. The model runs another way now: bp.revert(model), and convert it again"
        )


def _version(output: Tensor) -> int:
    """How often the tensor was changed in place, where torch counts that."""
    return 0 if torch.compiler.is_compiling() or output.is_inference() else output._version


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


global_hooks = [vars(nn.modules.module)[f"_global{kind}"] for kind in HOOKS]


def _begin(owner: Any, args: Any) -> None:
    """Before the owner's forward."""
    run = Run()
    owner._convbp_runs.append(run)
    for convolution, activation in _live_pairs(owner):
        convolution._convbp_fusion = activation, run
        run.convolutions.append(convolution)


def _end(owner: Any, args: Any, output: Any) -> None:
    """After the owner's forward, and after an exception in it.

    Raises:
        RuntimeError: a convolution's output has not reached its activation. So the owner runs
            another way than when it was traced.
    """
    runs = [run for run in owner._convbp_runs if run.thread == _thread()]
    if not runs:  # another pre-hook raised before _begin
        return
    run = runs[-1]
    owner._convbp_runs.remove(run)
    for convolution in run.convolutions:
        convolution._convbp_fusion = None
    raised = output is None and sys.exc_info()[0] is not None
    if run.untaken and not raised:
        raise RuntimeError(f"{type(owner).__name__}: {run.untaken[0].complaint()}")


def _live_pairs(owner: Any) -> list[tuple[Any, FusedActivation]]:
    """The pairs that run as one in a call of the owner."""
    live: list[tuple[Any, FusedActivation]] = []
    for paths in () if any(global_hooks) else owner._convbp_pairs:
        convolution, *between, activation = (unwatched(owner, path) for path in paths)
        if convolution is None or not is_plain_convolution(convolution):
            continue
        if isinstance(activation, FusedActivation) and all(map(is_identity, between)):
            live.append((convolution, activation))
    return live


def unwatched(module: nn.Module, path: Iterable[str]) -> nn.Module | None:
    """The module at the end of ``path``; None where there is none, or a hook or a
    replaced forward is on the way."""
    for name in path:
        if name not in module._modules:  # a ScriptModule's _modules have no get()
            return None
        inner: Any = module._modules[name]
        if inner is None or "forward" in inner.__dict__:
            return None
        for kind in HOOKS:
            for hook in inner.__dict__.get(kind, {}).values():
                if hook is not _begin and hook is not _end:  # an inner owner's hooks do not count
                    return None
        module = inner
    return module


# ---------------------------------------------------------------------------------------- the pairs


def _pairs(part: Part) -> Found:
    """The pair of each convolution of a traced part, or the reason why there is none."""
    if part.graph is None:
        return {part.name: part.reason}
    modules = dict(part.module.named_modules())
    calls: dict[str, list[Node]] = {
        name: [] for name, m in modules.items() if is_plain_convolution(m)
    }
    for node in part.graph.nodes:
        if node.op == "call_module" and node.target in calls:
            calls[node.target].append(node)
    prefix = part.name and f"{part.name}."
    return {
        prefix + name: "its output is held by the model too"
        if part.held & {*nodes}
        else _pair(part.module, prefix, nodes)
        for name, nodes in calls.items()
    }


def _pair(root: nn.Module, prefix: str, calls: list[Node]) -> str | Pair:
    """The pair of a convolution with these calls in a graph, or the reason why it has none."""
    if not calls:
        return "it is not called"
    ends, between = zip(*(through_identities(root, node) for node in calls), strict=True)
    if any(len(node.users) != 1 for node in ends):
        return "its output is used more than once, or not at all"
    users = [user for node in ends for user in node.users]
    user = users[0]
    if user.op != "call_module":
        called = "what its module returns" if user.op == "output" else _name_of(user)
        return f"followed by {called}, which is no module"
    activation = root.get_submodule(str(user.target))
    if activations.of_module(activation) is None:
        return f"followed by {type(activation).__name__}"
    if len({(u.target, *identities) for u, identities in zip(users, between, strict=True)}) > 1:
        return "it is called more than once"
    if any(node.meta["modes"] != u.meta["modes"] for node, u in zip(calls, users, strict=True)):
        return "gradients, autocast or a checkpoint are switched before its activation"
    if any(_may_be_changed_in_place(root, activation, u) for u in users):
        return f"what {type(activation).__name__} gives may be changed in place"
    owners = {_owner(node, u) for node, u in zip(calls, users, strict=True)}
    if len(owners) > 1:
        return "it is called in more than one place"
    names = (calls[0].target, *between[0], user.target)
    return Pair((prefix + owners.pop()).removesuffix("."), tuple(f"{prefix}{n}" for n in names))


def _owner(node: Node, user: Node) -> str:
    """The innermost module whose forward makes both calls."""
    # Module by module from the outside, each as {call: (name, class)}.
    stacks = (n.meta["nn_module_stack"].items() for n in (node, user))
    shared = itertools.takewhile(lambda calls: calls[0] == calls[1], zip(*stacks, strict=False))
    return next((str(call[0][1][0]) for call in reversed([*shared])), "")


def _name_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


# Modules whose output is a new tensor, no view of the input.
_OWN_OUTPUT = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
)
_TORCH_SAVES_OUTPUT = ("relu", "sigmoid", "tanh")


def _may_be_changed_in_place(root: nn.Module, activation: nn.Module, user: Node) -> bool:
    """May an in-place operation change the output, which the layer saves for backward where torch
    saves the input?"""
    g = activations.of_module(activation)
    saved_by_torch = vars(activation).get("inplace") or (g and g.name in _TORCH_SAVES_OUTPUT)
    if g is None or not g.saves_output or saved_by_torch:
        return False
    modules = (root.get_submodule(str(u.target)) for u in user.users if u.op == "call_module")
    return sum(isinstance(module, _OWN_OUTPUT) for module in modules) < len(user.users)


def _find(model: nn.Module) -> Found:
    """The pair of each convolution of ``model`` in both modes, or the reason why there is none."""
    found_in: list[Found] = []
    for training in (True, False):
        found_in.append({})
        for part in traced_parts(model, training, training, tuple(_FUSED_CLASSES)):
            found_in[-1] |= _pairs(part)
    training_mode, evaluation = found_in
    found = {
        name: here if here == evaluation.get(name) else _of_two(here, evaluation.get(name))
        for name, here in training_mode.items()
    }
    modules = dict(model.named_modules(remove_duplicate=False))
    places = Counter(map(id, modules.values()))
    for name, pair in found.items():
        if places[id(modules[name])] > 1:
            found[name] = "it is in more than one place of the model"
        elif not isinstance(pair, str) and activations.of_module(modules[pair.modules[-1]]) is None:
            found[name] = "its copies have another activation"
    return found


def _of_two(training: str | Pair, evaluation: str | Pair | None) -> str:
    """The reason, where the two modes differ."""
    reasons = [reason for reason in (training, evaluation) if isinstance(reason, str)]
    return reasons[0] if len(reasons) == 1 else "training and evaluation mode differ"


# -------------------------------------------------------------------------------------- for convert


def check_pairs(model: nn.Module, pairs: Any) -> bool | list[Pair]:
    """The argument fuse_activations of ``convert``. Raises TypeError, ValueError."""
    what = "convert(): argument 'fuse_activations'"
    if isinstance(pairs, bool):
        return pairs
    modules = dict(model.named_modules(remove_duplicate=False))
    several = isinstance(pairs, Iterable) and not isinstance(pairs, str)
    checked: list[Pair] = []
    for pair in list(pairs) if several else [pairs]:
        if not isinstance(pair, (tuple, list)) or [type(name) for name in pair] != [str, str]:
            raise TypeError(f"{what} must be bool or pairs of names, not {_shown(pair)}")
        for name in pair:
            if name not in modules:
                raise ValueError(f"{what} has {name!r}, but model has no module of that name")
        convolution, activation = pair
        if not isinstance(modules[convolution], nn.Conv2d):
            raise ValueError(f"{what} has {convolution!r} first in a pair, which is no nn.Conv2d")
        if activations.of_module(modules[activation]) is None:
            raise ValueError(f"{what} has {activation!r} second, which is no activation it knows")
        checked.append(Pair(_around(modules, convolution, activation), (convolution, activation)))
    return checked


def _around(modules: dict[str, nn.Module], *names: str) -> str:
    """The innermost module that contains both, and that can be called."""
    paths = (name.split(".")[:-1] for name in names)
    shared = itertools.takewhile(lambda parts: parts[0] == parts[1], zip(*paths, strict=False))
    path = [parts[0] for parts in shared]
    while path and isinstance(modules[".".join(path)], (nn.ModuleList, nn.ModuleDict)):
        path.pop()
    return ".".join(path)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (tuple, list, str)) else type(value).__name__


def fuse(model: nn.Module, pairs: bool | list[Pair] = True) -> None:
    """Makes each ConvBP2d compute the activation after it; see ``convert``."""
    found: Found = _find(model) if isinstance(pairs, bool) else {p.modules[0]: p for p in pairs}
    unfuse(model)
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for pair in found.values():
        if isinstance(pair, str):
            continue
        owner, activation = modules[pair.owner], modules[pair.modules[-1]]
        depth = len(pair.owner.split(".")) if pair.owner else 0
        if "_convbp_pairs" not in vars(owner):
            owner._convbp_pairs, owner._convbp_runs = (), []
            owner.register_forward_pre_hook(_begin)
            owner.register_forward_hook(_end, always_call=True)
        owner._convbp_pairs += (tuple(name.split(".")[depth:] for name in pair.modules),)
        if not isinstance(activation, FusedActivation):
            activation.__class__ = _FUSED_CLASSES[type(activation)]
    logger.info("%s", Fusions(fused(model), _left_alone(found)))


def unfuse(model: nn.Module) -> None:
    """Undoes ``fuse`` for all modules in ``model``."""
    for module in model.modules():
        for attribute in ("_convbp_pairs", "_convbp_runs", "_convbp_fusion"):
            vars(module).pop(attribute, None)
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(module).get(kind) or {}
            for key in [key for key, hook in hooks.items() if hook in (_begin, _end)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        if isinstance(module, FusedActivation):
            module.__class__ = type(module).activation_class  # type: ignore[attr-defined]


def fused(model: nn.Module) -> list[Fused]:
    """The pairs that would run as one now."""
    names = {module: name for name, module in model.named_modules()}
    return [
        Fused(names[convolution], names[activation], str(activations.of_module(activation)))
        for owner in names
        if "_convbp_pairs" in vars(owner)
        for convolution, activation in _live_pairs(owner)
    ]


def _left_alone(found: Found) -> list[LeftAlone]:
    return [LeftAlone(name, reason) for name, reason in found.items() if isinstance(reason, str)]


def fusions(model: nn.Module) -> Fusions:
    """What convert(model, fuse_activations=True) fused, and what it left alone, with the reasons.

    The reasons are found anew, by tracing copies of the model as convert does.

    Args:
        model: any module; it is not changed.

    Returns:
        fused: the pairs that would run as one now: each with the convolution's name, the
            activation's name, and g.
        left_alone: name and reason of each other ConvBP2d without an activation.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    checks.check_is_module("fusions", model)
    pairs = fused(model)
    named = {pair.convolution for pair in pairs}
    left: Found = {
        name: found if isinstance(found, str) else "not fused yet, or hooks are between the two"
        for name, found in _find(model).items()
        if name not in named
    }
    return Fusions(pairs, _left_alone(left))
