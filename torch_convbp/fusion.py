"""Moving activations into the convolutions before them, where ``_fusable`` shows that it is right.

A module that is an activation makes room for one that does nothing and holds it; a module whose
code calls a functional activation gets a class whose method lacks the call. Names, state_dict and
all other references stay, and ``unfuse`` puts everything back.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from torch_convbp import activations, shapes
from torch_convbp._classes import set_class
from torch_convbp._fusable import Judge, Site, has_global_hooks, in_both
from torch_convbp._graph import is_called_by_torch, is_leaf, is_ours
from torch_convbp._tracing import Trace, structural_copy, text_of
from torch_convbp._without_calls import class_before, class_without
from torch_convbp.modules import as_node, is_node

__all__ = ["Fused", "FusedActivation", "Fusions", "LeftAlone", "fuse", "fusions", "unfuse"]

logger = logging.getLogger("torch_convbp")


class Fused(NamedTuple):
    """A convolution that computes an activation.

    convolution: its name in the model. activation: the name of the module that did, or the call
    and whose code it was in. g: the row of the table of activations, as in "leaky_relu(0.2)".
    """

    convolution: str
    activation: str
    g: str

    def __str__(self) -> str:
        return f"{self.convolution} computes {self.g} of {self.activation}"


class LeftAlone(NamedTuple):
    """An activation behind a convolution that stays where it is.

    convolution, activation: as in ``Fused``; convolution is "" where a whole module is left
    alone, and activation its name ("" the model's). reason: in words.
    """

    convolution: str
    activation: str
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(filter(None, self[:2])) or '(the model itself)'}: {self.reason}"


class Fusions(NamedTuple):
    """What ``fusions`` returns; printed, a line for each."""

    fused: list[Fused]
    left_alone: list[LeftAlone]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} activation(s) fused into convolutions", *self.fused]
        if self.left_alone:
            lines += [f"{len(self.left_alone)} left alone", *self.left_alone]
        return "\n".join(line if isinstance(line, str) else f"  {line}" for line in lines)


@dataclass(eq=False)
class _Link:
    """Held by both ends of a fusion, so that they find each other in copies of a model too."""

    convolution: str  # its name when it was fused
    call: str  # the call that is gone; "" of a module


class FusedActivation(nn.Module):
    """What is in an activation's place while a convolution computes it: nothing is left to do.

    It holds the activation, and has its attributes to be read; bp.revert puts it back.
    """

    def __init__(self, original: nn.Module, links: Sequence[_Link]) -> None:
        super().__init__()
        # Hooks among them: they are the activation's, before and after.
        shared = {k: v for k, v in vars(original).items() if k.startswith("_") or k == "training"}
        self.__dict__.update(shared, _original=original, _links=tuple(links))
        self.__dict__["_g"] = activations.of_module(original)

    def forward(self, input: Tensor) -> Tensor:
        if is_node(self, input):
            return as_node(self, input)
        if not torch.compiler.is_compiling() and activations.of_module(self._original) != self._g:
            raise RuntimeError(
                f"{self._original} was {self._g} when it was fused into {self._places()}; "
                "bp.revert(model) before it is changed"
            )
        return input

    def __getattr__(self, name: str) -> Any:
        if name in ("_original", "_links", "_g"):  # while it is copied
            raise AttributeError(name)
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name != "training":
            raise AttributeError(
                f"{type(self._original).__name__}.{name} cannot be set while "
                f"{self._places()} computes the activation; bp.revert(model) first"
            )
        super().__setattr__(name, value)
        setattr(self._original, name, value)

    def _places(self) -> str:
        return ", ".join(link.convolution for link in self._links)

    def extra_repr(self) -> str:
        return f"{self._original!r} in {self._places()}"


# ------------------------------------------------------------------------------ finding the sites


def _find(model: nn.Module) -> tuple[list[Site], list[LeftAlone]]:
    """Every activation behind a convolution, and the modules that were not looked into."""
    modules = dict(model.named_modules())
    if not any(is_ours(module) for module in modules.values()):
        return [], []
    if has_global_hooks():
        return [], [LeftAlone("", "", "register_module_forward_hook and the like look at it")]
    if not is_called_by_torch(model):
        return [], [_not_traced("", "it has a way of its own of being called")]
    try:
        traces = [_trace(structural_copy(model, mode)) for mode in (True, False)]
    except ValueError as error:
        return [], [_not_traced("", str(error))]
    judges = [Judge(model, trace) for trace in traces]
    opaque = {name: why for trace in traces for name, why in trace.opaque.items()}
    left = [
        _not_traced(name, why)
        for name, why in opaque.items()
        if any(is_ours(module) for module in modules[name].modules())
    ]
    return _verified(model, judges, in_both(judges)), left


def _trace(copied: nn.Module) -> Trace:
    return Trace(copied, lambda module: isinstance(module, FusedActivation) or is_leaf(module))


def _not_traced(name: str, why: str) -> LeftAlone:
    return LeftAlone(
        "",
        name,
        f"torch.fx cannot trace it ({why}), so nothing in it is fused; a part of it can be by "
        "itself, as in bp.convert(model.features, fuse_activations=True)",
    )


def _verified(model: nn.Module, judges: Sequence[Judge], sites: list[Site]) -> list[Site]:
    """The sites; fusing them leaves a copy of the model the traces it had, or it has a reason."""

    def why_not(chosen: Sequence[Site]) -> str | None:
        for training, judge in zip((True, False), judges, strict=True):
            try:
                copied = structural_copy(model, training)
                _apply(copied, chosen)
                trace = _trace(copied)
            except ValueError as error:
                return f"fused in a copy, which then cannot be traced: {error}"
            gone = {n for site in chosen if site.call for n in judge.nodes[site.key]}
            if _canonical(judge.trace, gone) != _canonical(trace, set()):
                return "fused in a copy, it is still computed there, or more than it is gone"
        return None

    good = [site for site in sites if site.reason is None]
    if not good or why_not(good) is None:
        return sites
    reasons = {h: why_not([s for s in good if s.holder == h]) for h in {s.holder for s in good}}
    if together := why_not([site for site in good if reasons[site.holder] is None]):
        reasons = dict.fromkeys(reasons, together)
    return [s if s.reason else replace(s, reason=reasons[s.holder]) for s in sites]


def _canonical(trace: Trace, gone: set[Any]) -> list[tuple[str, ...]]:
    """A graph in words, as it is when these activations hand on what they are given."""
    number: dict[Any, str] = {}
    lines: list[tuple[str, ...]] = []

    def text(arguments: Any) -> str:
        return repr(map_arg(arguments, lambda node: number[node]))

    for node in trace.graph.nodes:
        if node in gone:
            number[node] = number[node.all_input_nodes[0]]
            continue
        number[node] = f"%{len(lines)}"
        target = node.target if isinstance(node.target, str) else str(id(node.target))
        lines.append((node.op, target, text(node.args), text(node.kwargs)))
    return lines


# -------------------------------------------------------------------------------------- the doing


def _apply(model: nn.Module, sites: Iterable[Site]) -> None:
    """Raises ValueError; a holder that does not let itself be changed then is as it was."""
    modules = dict(model.named_modules())
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.holder, []).append(site)
    for name, group in groups.items():
        links = [_Link(s.convolution, s.call.text if s.call else "") for s in group]
        called = tuple(sorted(site.call for site in group if site.call is not None))
        if called:
            try:
                set_class(modules[name], functools.partial(class_without, removed=called))
            except Exception as error:  # what a class does with its attributes is its own
                raise ValueError(text_of(error)) from error
            modules[name].__dict__["_links"] = tuple(links)
        else:
            _replace(model, modules[name], FusedActivation(modules[name], links))
        for site, link in zip(group, links, strict=True):
            modules[site.convolution].__dict__.update(activation=site.g, _link=link)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def fuse(model: nn.Module) -> None:
    """Moves every activation that may be moved into the ConvBP2d before it."""
    sites, left = _find(model)
    try:
        _apply(model, [site for site in sites if site.reason is None])
    except BaseException:  # as its copies did not: all of it or nothing
        unfuse(model)
        raise
    logger.info("%s", _report(model, sites, left))


def unfuse(model: nn.Module) -> dict[str, str]:
    """Undoes ``fuse``, as far as both ends of a fusion are in the model.

    Returns:
        What could not be undone, with the reason, by name.
    """
    names = dict(model.named_modules())
    layers = {id(vars(m)["_link"]): m for m in names.values() if "_link" in vars(m)}
    left = {}
    for name, holder in names.items():
        links: Sequence[_Link] = vars(holder).get("_links", ())
        if not links:
            continue
        if missing := [link.convolution for link in links if id(link) not in layers]:
            left[name] = f"what it did is fused into {', '.join(missing)}, which is not there"
        elif isinstance(holder, FusedActivation):
            _replace(model, holder, holder._original)
        elif not _has_class_before(holder):
            left[name] = "its class is another than when it was fused"
        else:
            del holder.__dict__["_links"]
        for link in () if name in left else links:
            layer = layers[id(link)].__dict__
            del layer["activation"], layer["_link"]
    return left


def _has_class_before(holder: nn.Module) -> bool:
    """Gives it back the class that it had, if it can have it."""
    try:
        return set_class(holder, class_before)
    except Exception:  # what a class does with its attributes is its own
        return False


def _report(model: nn.Module, sites: Iterable[Site], left: Iterable[LeftAlone]) -> Fusions:
    names = dict(model.named_modules())
    layers = {id(vars(m)["_link"]): name for name, m in names.items() if "_link" in vars(m)}
    fused = [
        Fused(layers[id(link)], _say(name, link.call), str(names[layers[id(link)]].activation))
        for name, holder in names.items()
        for link in vars(holder).get("_links", ())
        if id(link) in layers
    ]
    not_yet = "not fused yet: convert(model, fuse_activations=True)"
    alone = [
        LeftAlone(s.convolution, _say(s.holder, s.call.text if s.call else ""), s.reason or not_yet)
        for s in sites
        if s.convolution not in {entry.convolution for entry in fused}
    ]
    return Fusions(fused, [*alone, *left])


def _say(holder: str, call: str) -> str:
    """An activation's name: its module's, or its call and the module whose code has it."""
    return f"{call} in {holder or 'the model itself'}" if call else holder


def fusions(model: nn.Module) -> Fusions:
    """What convert(model, fuse_activations=True) fused, and what it left alone, with the reasons.

    The reasons are found anew, by tracing copies of the model as convert does: its forward runs
    with torch.fx's stand-ins for tensors, at least twice. As there, random numbers that another
    thread draws meanwhile are drawn again.

    Args:
        model: any module; it is not changed.

    Returns:
        fused: of each convolution its name, what computed the activation before, and g.
        left_alone: of each activation behind a ConvBP2d that is not fused the two names and the
            reason; of each module that torch.fx cannot trace its name and what torch.fx said.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    shapes.check_is_module("fusions", model)
    return _report(model, *_find(model))
