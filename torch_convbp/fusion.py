"""Activations computed in the convolutions before them.

How pairs are found: torch.fx traces the model once in training and once in evaluation mode. A pair
is a ConvBP2d whose output goes to one activation module and nowhere else, in both traces.

How they run: every module stays where it is. In each call the convolution looks whether its
activation is still in its place, and whether a hook could see what passes between the two. If none
can, it computes g in its epilogue and marks the output. The activation hands on a marked tensor,
and computes g of every other. So a module that is replaced, pruned, quantised or observed is simply
not fused, and g is neither lost nor computed twice.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import logging
import random
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node

from torch_convbp import activations, shapes
from torch_convbp.activations import TABLE
from torch_convbp.modules import ConvBP2d, as_node, is_node

__all__ = [
    "Fused",
    "FusedActivation",
    "Fusions",
    "LeftAlone",
    "check_pairs",
    "fuse",
    "fusions",
    "unfuse",
]

logger = logging.getLogger("torch_convbp")

# A convolution's name and its activation's, in the model.
Names: TypeAlias = tuple[str, str]
# Of each convolution, by name: its pair, or the reason why it has none.
Found: TypeAlias = dict[str, str | Names]


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
    """What ``fusions`` returns; printed, a line for each pair and for each reason."""

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
    """An activation module that hands on what a convolution has computed g of already.

    Its class is derived from the activation's own too, so it is that activation still, with its
    attributes, hooks and references.

    Raises:
        RuntimeError: what the convolution gave has not come here, but something else; so the model
            has changed since it was traced.
    """

    def tell(self, output: Tensor) -> None:
        """Says that g is in ``output``, which comes here next."""
        output._has_g = True  # type: ignore[attr-defined]
        if not torch.compiler.is_compiling():
            self.__dict__["_told_by"] = threading.get_ident()

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        compiling = torch.compiler.is_compiling()
        told = not compiling and self.__dict__.pop("_told_by", None) == threading.get_ident()
        if getattr(input, "_has_g", False) is True:  # of a torch.fx.Proxy it is another Proxy
            if compiling:  # torch.compile knows no ``del`` of an attribute
                input._has_g = False  # type: ignore[attr-defined]
            else:
                del input._has_g  # type: ignore[attr-defined]
            return input
        if told:
            raise RuntimeError(
                f"{type(self).__name__}: a convolution has computed this activation, but its "
                "output was not handed on to it. The model runs another way than when it was "
                "fused: bp.revert(model), and convert it as it is now"
            )
        output: Tensor = super().forward(input)
        return output


def _fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    namespace = {"__module__": __name__, "__doc__": cls.__doc__, "activation_class": cls}
    return type(f"Fused{cls.__name__}", (FusedActivation, cls), namespace)


# One for each module of the table, by name in this file: pickle looks for it there.
_FUSED_CLASSES = {row.module: _fused_class(row.module) for row in TABLE.values()}
globals().update({cls.__name__: cls for cls in _FUSED_CLASSES.values()})

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_global_hooks = [vars(nn.modules.module)[f"_global{kind}"] for kind in _HOOKS]


class Pair:
    """What a fused convolution holds: the way to its activation, by way of the ``owner``, the
    innermost module that has both in it.

    The owner is not kept alive, and goes with a copy only if it is copied too: a convolution that
    is taken out of its model, or copied by itself, is one without an activation.
    """

    def __init__(self, owner: nn.Module | None, convolution: str, activation: str) -> None:
        self.owner = (lambda: None) if owner is None else weakref.ref(owner)
        self.names = convolution, activation
        self.paths = convolution.split("."), activation.split(".")

    def __deepcopy__(self, memo: dict[int, Any]) -> Pair:
        owner = self.owner()
        return Pair(None if owner is None else memo.get(id(owner)), *self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pair, (self.owner(), *self.names)

    def activation(self, layer: ConvBP2d) -> FusedActivation | None:
        """The activation of ``layer``; None where g is not for the layer to compute."""
        owner = self.owner()
        if owner is None or any(_global_hooks):
            return None
        convolution, activation = (_unwatched(owner, path) for path in self.paths)
        if convolution is not layer or not isinstance(activation, FusedActivation):
            return None
        return None if "forward" in activation.__dict__ else activation


def _unwatched(module: nn.Module, path: Iterable[str]) -> nn.Module | None:
    """The module at the end of ``path``; None where there is none, or a hook is on the way."""
    for name in path:
        inner = module._modules.get(name)
        if inner is None or any([inner.__dict__[hooks] for hooks in _HOOKS]):
            return None
        module = inner
    return module


# ---------------------------------------------------------------------------------------- the pairs


class _Tracer(torch.fx.Tracer):
    """Our layers, activations and torch's own modules are nodes; it runs what others call
    meanwhile in their threads, as torch.fx alone would not."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, (ConvBP2d, *_FUSED_CLASSES))
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        node.meta["modes"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_one_at_a_time = threading.RLock()  # torch.fx replaces nn.Module.__call__ while it traces


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Random states and warnings stay as they were: the model is not really run."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)


def _structural_copy(model: nn.Module, training: bool) -> nn.Module:
    """A copy to trace, in that mode: without hooks, Parameters without values, and nothing shared
    that a forward could change."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
        for value in [*module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor):
                memo[id(value)] = value.detach().clone()
        memo |= {id(vars(module)[hooks]): type(vars(module)[hooks])() for hooks in _HOOKS}
    return copy.deepcopy(model, memo).train(training)


def _pairs(module: nn.Module, prefix: str = "", why: str = "") -> Found:
    """Of each convolution in ``module``, a copy: its pair, or the reason why it has none."""
    if not any(isinstance(m, ConvBP2d) for m in module.modules()):
        return {}
    if isinstance(module, ConvBP2d):
        return {prefix.removesuffix("."): why or "it is not called by a module"}
    try:
        if "forward" in vars(module):  # torch.fx would trace the class's
            raise ValueError("its forward was replaced on the object")
        parameters = inspect.signature(type(module).forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        graph = _Tracer().trace(module, defaults)
    except Exception as error:  # what a model does when it is traced is its own
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            said = str(error).strip().partition("\n")[0].partition(". ")[0]
            why = f"torch.fx cannot trace {type(module).__name__} ({said or type(error).__name__})"
        found: Found = {}
        for name, child in module.named_children():
            found |= _pairs(child, f"{prefix}{name}.", why)
        return found
    nodes: dict[str, list[Node]] = {n: [] for n, m in module.named_modules() if _is_ours(m)}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in nodes:
            nodes[node.target].append(node)
    return {prefix + name: _pair(module, prefix, calls) for name, calls in nodes.items()}


def _is_ours(module: nn.Module) -> bool:
    """A convolution that can compute an activation after it."""
    cls: Any = type(module)
    return (
        isinstance(module, ConvBP2d)
        and module.activation is None
        and (cls.forward, cls._conv_forward) == (ConvBP2d.forward, ConvBP2d._conv_forward)
        and not {"forward", "_conv_forward"} & vars(module).keys()
    )


def _pair(root: nn.Module, prefix: str, calls: list[Node]) -> str | Names:
    """The pair of a convolution with these calls in a graph, or the reason why it has none."""
    if not calls:
        return "it is not called"
    if any(len(node.users) != 1 for node in calls):
        return "its output is used more than once, or not at all"
    users = [user for node in calls for user in node.users]
    user = users[0]
    if user.op != "call_module":
        called = "what its module returns" if user.op == "output" else _name_of(user)
        return f"followed by {called}, which is no module"
    activation = root.get_submodule(str(user.target))
    if activations.of_module(activation) is None:
        return f"followed by {type(activation).__name__}"
    if any(u.op != "call_module" or u.target != user.target for u in users):
        return "it is called more than once"
    if any(node.meta["modes"] != u.meta["modes"] for node, u in zip(calls, users, strict=True)):
        return "gradients or autocast are switched before its activation"
    if any(_may_be_changed_in_place(root, activation, u) for u in users):
        return f"what {type(activation).__name__} gives may be changed in place"
    return prefix + str(calls[0].target), prefix + str(user.target)


def _name_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


# Modules whose output is a tensor of its own, and no view of their input.
_OWN_OUTPUT = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
)
_TORCH_KEEPS_OUTPUT = ("relu", "sigmoid", "tanh")


def _may_be_changed_in_place(root: nn.Module, activation: nn.Module, user: Node) -> bool:
    """May an operation in place change the output, which the layer keeps for backward, and of
    which torch keeps the input instead?"""
    g = activations.of_module(activation)
    kept_by_torch = vars(activation).get("inplace") or (g and g.name in _TORCH_KEEPS_OUTPUT)
    if g is None or not g.keeps_output or kept_by_torch:
        return False
    modules = (root.get_submodule(str(u.target)) for u in user.users if u.op == "call_module")
    return sum(isinstance(module, _OWN_OUTPUT) for module in modules) < len(user.users)


def _find(model: nn.Module) -> Found:
    """Of each convolution in ``model`` its pair in both modes, or the reason why it has none."""
    try:
        with _one_at_a_time, _unseen():
            training, evaluation = (_pairs(_structural_copy(model, mode)) for mode in (True, False))
    except Exception as error:  # what a model does when it is copied is its own
        reason = f"{type(model).__name__} cannot be copied ({error or type(error).__name__})"
        training = evaluation = {n: reason for n, m in model.named_modules() if _is_ours(m)}
    found = {
        name: here if here == evaluation.get(name) else _of_two(here, evaluation.get(name))
        for name, here in training.items()
    }
    modules = dict(model.named_modules(remove_duplicate=False))
    places = Counter(id(modules[name]) for name in found)
    for name, pair in found.items():
        if places[id(modules[name])] > 1:  # in two parts that were traced by themselves
            found[name] = "it is called in more than one place"
        elif not isinstance(pair, str) and activations.of_module(modules[pair[1]]) is None:
            found[name] = "its copies have another activation"
    return found


def _of_two(training: str | Names, evaluation: str | Names | None) -> str:
    """The reason, where the two modes differ."""
    reasons = [reason for reason in (training, evaluation) if isinstance(reason, str)]
    return reasons[0] if len(reasons) == 1 else "training and evaluation mode differ"


# -------------------------------------------------------------------------------------- for convert


def check_pairs(model: nn.Module, pairs: Any) -> bool | list[Names]:
    """The argument fuse_activations of ``convert``. Raises TypeError, ValueError."""
    what = "convert(): argument 'fuse_activations'"
    if isinstance(pairs, bool):
        return pairs
    modules = dict(model.named_modules(remove_duplicate=False))
    several = isinstance(pairs, Iterable) and not isinstance(pairs, str)
    checked: list[Names] = []
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
        checked.append((convolution, activation))
    return checked


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (tuple, list, str)) else type(value).__name__


def fuse(model: nn.Module, pairs: bool | list[Names] = True) -> None:
    """Has each ConvBP2d compute the activation after it; see ``convert``."""
    found: Found = _find(model) if isinstance(pairs, bool) else {pair[0]: pair for pair in pairs}
    modules = dict(model.named_modules(remove_duplicate=False))
    for names in found.values():
        if not isinstance(names, str):
            _connect(modules, *names)
    logger.info("%s", Fusions(_fused(model), _left_alone(found)))


def _connect(modules: dict[str, nn.Module], convolution: str, activation: str) -> None:
    paths = convolution.split("."), activation.split(".")
    shared = itertools.takewhile(lambda parts: parts[0] == parts[1], zip(*paths, strict=False))
    depth = len(list(shared))
    owner = modules[".".join(paths[0][:depth])]
    module = modules[activation]
    if not isinstance(module, FusedActivation):
        module.__class__ = _FUSED_CLASSES[type(module)]
    pair = Pair(owner, *(".".join(path[depth:]) for path in paths))
    modules[convolution].__dict__["_fusion"] = pair


def unfuse(model: nn.Module) -> None:
    """Undoes ``fuse`` for all modules in ``model``."""
    for module in model.modules():
        vars(module).pop("_fusion", None)
        if isinstance(module, FusedActivation):
            module.__class__ = type(module).activation_class  # type: ignore[attr-defined]


def _fused(model: nn.Module) -> list[Fused]:
    names = {module: name for name, module in model.named_modules()}
    found = []
    for module, name in names.items():
        pair = vars(module).get("_fusion")
        activation = None if pair is None else pair.activation(module)
        if activation in names:
            g = str(activations.of_module(activation))
            found.append(Fused(name, names[activation], g))
    return found


def _left_alone(found: Found) -> list[LeftAlone]:
    return [LeftAlone(name, reason) for name, reason in found.items() if isinstance(reason, str)]


def fusions(model: nn.Module) -> Fusions:
    """What convert(model, fuse_activations=True) fused, and what it left alone, with the reasons.

    The reasons are found anew, by tracing copies of the model as convert does.

    Args:
        model: any module; it is not changed.

    Returns:
        fused: the pairs that would run as one now: of each the convolution's name, the
            activation's, and g.
        left_alone: of each other ConvBP2d without an activation its name and the reason.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    shapes.check_is_module("fusions", model)
    fused = _fused(model)
    named = {pair.convolution for pair in fused}
    left: Found = {
        name: found if isinstance(found, str) else "not fused yet, or hooks are between the two"
        for name, found in _find(model).items()
        if name not in named
    }
    return Fusions(fused, _left_alone(left))
