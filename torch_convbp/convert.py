"""``convert(model)`` turns a model's nn.Conv2d layers into ConvBP2d, ``revert(model)`` back; pools,
dense layers and activations on request.

A ConvBP2d holds exactly what an nn.Conv2d holds; only its computation differs. So conversion
changes the object's class. The object and its Parameters stay the same: optimizers, hooks, tied
weights, requires_grad flags, train or eval state, device, dtype and every reference are untouched.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_convbp import fusion
from torch_convbp.layer_geometry import forget_geometry
from torch_convbp.modules import AvgPoolBP2d, ConvBP2d, LinearBP, MaxPoolBP2d
from torch_convbp.ops import checks

__all__ = [
    "CONVOLUTION",
    "DENSE",
    "OURS",
    "POOLING",
    "SCRIPTED",
    "convert",
    "kind_of",
    "reason_against",
    "revert",
    "scripted_kind",
]

Model = TypeVar("Model", bound=nn.Module)


CONVOLUTION: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ConvBP2d}
POOLING: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPoolBP2d,
    nn.AvgPool2d: AvgPoolBP2d,
}
DENSE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LinearBP}
OURS = CONVOLUTION | POOLING | DENSE
SCRIPTED = "it is compiled by TorchScript"
_REVERTED = {ours: theirs for theirs, ours in OURS.items()}


# --- changing a module's class so that the module still pickles and copies

# Function from a class to its replacement, or to None for no change; picklable.
_Change = Callable[[Any], Any]


def _rebuild(change: _Change, cls: Any) -> nn.Module:
    module: nn.Module = cls.__new__(change(cls))
    return module


def _rebuild_by(change: _Change, make: Callable[..., Any], *args: Any) -> Any:
    module = make(*args)
    _set_class(module, change)
    return module


def _reduce_by(change: _Change, cls: Any) -> Callable[[nn.Module, Any], tuple[Any, ...]]:
    """The ``__reduce_ex__`` of the class that ``change`` makes of ``cls``.

    Pickle and deepcopy look classes up by name; this method makes the class anew.
    """

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
            rule: Any = cls.__reduce_ex__(self, protocol)
            make, args, *rest = rule
            return _rebuild_by, (change, make, *args), *rest
        getstate = getattr(self, "__getstate__", vars(self).copy)
        return _rebuild, (change, cls), getstate()

    return __reduce_ex__


def _set_class(module: nn.Module, change: _Change) -> bool:
    """Gives the module the class that ``change`` makes of its own; False where that is None."""
    cls = type(module)
    if not parametrize.is_parametrized(module):
        changed = change(cls)
    elif (base := change(cls.__bases__[0])) is None:
        changed = None
    else:
        # torch derives a class for each parametrized module and stores its properties there. The
        # new class has them over another base; copies of the module still use the old class.
        namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        changed = type(f"Parametrized{base.__name__}", (base,), namespace)
    if changed is not None:
        module.__class__ = changed
    return changed is not None


# --- the layers


@functools.cache
def _converted_class(cls: Any) -> Any:
    """The class that an instance of ``cls`` gets: our layer, or one derived from (ConvBP2d, cls).

    None for subclasses of the other layers.
    """
    if cls in OURS:
        return OURS[cls]
    if not issubclass(cls, nn.Conv2d):
        return None
    namespace = {"_converted_from": cls, "__module__": __name__}
    namespace["__reduce_ex__"] = _reduce_by(_converted_class, cls)
    return type(f"ConvBP2d_{cls.__name__}", (ConvBP2d, cls), namespace)


def _reverted_class(cls: Any) -> Any:
    """The class that _converted_class made ``cls`` of; None for a subclass of our layers."""
    return _REVERTED.get(cls) or vars(cls).get("_converted_from")


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """torch's layer that ``module`` is or derives from, if there is a layer of ours for it."""
    return next((kind for kind in OURS if isinstance(module, kind)), None)


def scripted_kind(module: nn.Module) -> str:
    """Name of the class that TorchScript has compiled ``module`` from; "" for other modules."""
    is_scripted = isinstance(module, torch.jit.ScriptModule)
    return str(getattr(module, "original_name", "")) if is_scripted else ""


def reason_against(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why the layer, of that kind and not ours, cannot be converted; None where it can."""
    cls: Any = type(module)
    methods = ("forward", "_conv_forward")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy and not initialised yet; run a batch through the model first"
    if any(getattr(cls, m, None) is not getattr(kind, m, None) for m in methods):
        ours = OURS[kind].__name__
        return f"{cls.__name__} has a forward of its own; derive it from {ours} instead"
    if any(m in vars(module) for m in methods):
        return "its forward was replaced on the object"
    # The class first: reading a property of the object would compute it.
    if hasattr(OURS[kind], "activation") and (
        hasattr(cls, "activation") or hasattr(module, "activation")
    ):
        ours = OURS[kind].__name__
        return f"it has an attribute activation of its own, which would be taken for {ours}'s"
    # Parameters, not module.weight: reading a parametrized weight would compute it.
    for parameter in module.parameters():
        if parameter.layout is not torch.strided:
            return f"its parameters are not dense (layout {parameter.layout})"
        has_kernels = parameter.dtype in checks.DTYPES or parameter.is_complex()
        if kind is nn.Conv2d and not has_kernels:
            return f"its dtype is {parameter.dtype}"
    base = cls.__bases__[0] if parametrize.is_parametrized(module) else cls
    try:
        is_known = _converted_class(base) is not None
    except Exception as error:  # a class may raise anything when one is derived from it
        return _refusal(cls, error)
    return None if is_known else f"{cls.__name__} is a subclass of nn.{kind.__name__}"


def _refusal(cls: type[nn.Module], error: Exception) -> str:
    return f"{cls.__name__} does not let its class be changed: {error}"


def _convert_layer(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Converts a layer of that kind; returns the reason why not, or None."""
    if reason := reason_against(module, kind):
        return reason
    try:
        _set_class(module, _converted_class)
    except Exception as error:  # a class may raise anything here
        return _refusal(type(module), error)
    return None


def convert(
    model: Model,
    *,
    pooling: bool = False,
    dense: bool = False,
    layers: Iterable[str] | Callable[[str, nn.Module], Any] | None = None,
    fuse_activations: bool | Iterable[tuple[str, str]] = False,
) -> Model:
    """Turns every nn.Conv2d of ``model`` into a ConvBP2d, in place.

    Subclasses of nn.Conv2d that inherit its forward are converted too, and so are parametrized
    layers. Layers left alone are listed in one warning: subclasses with a forward of their own,
    layers whose forward was replaced, uninitialised lazy layers, convolutions of dtypes without
    kernels, scripted layers, layers that have an attribute ``activation`` already.

    Args:
        model: any module; one that is an nn.Conv2d itself is converted as well.
        pooling: also turn nn.MaxPool2d and nn.AvgPool2d into MaxPoolBP2d and AvgPoolBP2d.
        dense: also turn nn.Linear into LinearBP. Subclasses of these three are left alone, and
            listed.
        layers: only these layers. Names, as model.named_modules() has them: of convolutions, and
            also of pools and dense layers, whatever the two flags say. Or a function of a layer's
            name and the layer, asked for each layer that would be converted.
        fuse_activations: also have a ConvBP2d compute the activation module that alone follows it.
            True: every pair that one torch.fx trace in each mode shows, of the model, or of its
            parts where the whole cannot be traced. Pairs of names, [("conv1", "relu1"), ...]: those
            pairs. A pair runs as one only while the innermost module around it is called, both
            modules are in place and no hook is between them. A model that later runs another way
            than traced raises RuntimeError. bp.fusions(model) lists the fused pairs, and the
            reasons for the other convolutions; the logger "torch_convbp" gets the same list.

    Returns:
        The same model: outputs, gradients and state_dict are what they were.

    Raises:
        TypeError: model is no torch.nn.Module, or another argument is no bool, names, pairs of
            names or function.
        ValueError: a name is of no module in model, of no layer that can be converted, of no
            nn.Conv2d or of no known activation.
    """
    checks.check_is_module("convert", model)
    for argument, value in {"pooling": pooling, "dense": dense}.items():
        checks.check_bool("convert", argument, value)
    kinds = CONVOLUTION | (POOLING if pooling else {}) | (DENSE if dense else {})
    is_wanted = _chosen(model, layers, kinds)
    pairs = fusion.check_pairs(model, fuse_activations)
    left_alone, wanted = {}, []
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None and not isinstance(module, OURS[kind]):
            if is_wanted(name, module, kind):
                wanted.append((name, module, kind))
        elif layers is None and scripted_kind(module) in {kind.__name__ for kind in kinds}:
            left_alone[name] = SCRIPTED
    for name, module, kind in wanted:  # after all questions, which may raise
        if reason := _convert_layer(module, kind):
            left_alone[name] = reason
    _warn("convert", left_alone)
    if pairs:
        fusion.fuse(model, pairs)
    return model


def _chosen(
    model: nn.Module, layers: Any, kinds: Iterable[type[nn.Module]]
) -> Callable[[str, nn.Module, type[nn.Module]], bool]:
    """Is a layer with this name and of this kind to be converted, by the argument ``layers``?

    Raises TypeError, ValueError.
    """
    what = "convert(): argument 'layers'"
    if layers is None:
        return lambda name, module, kind: kind in kinds
    if callable(layers) and not isinstance(layers, nn.Module):
        return lambda name, module, kind: kind in kinds and bool(layers(name, module))
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        expected = "names or a function of (name, module)"
        raise TypeError(f"{what} must be {expected}, not {type(layers).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = []
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(f"{what} must be names, but one is {type(name).__name__}")
        if name not in modules:
            raise ValueError(f"{what} has {name!r}, but model has no module of that name")
        if kind_of(modules[name]) is None:
            known = ", ".join(f"nn.{kind.__name__}" for kind in OURS)
            got = type(modules[name]).__name__
            raise ValueError(f"{what} has {name!r}, a {got}, which is none of {known}")
        chosen.append(modules[name])
    return lambda name, module, kind: any(module is one for one in chosen)


def revert(model: Model) -> Model:
    """Turns every torch_convbp layer of ``model`` back into torch's layer, in place.

    Layers that ``convert`` made get their former class; layers built as ConvBP2d become
    nn.Conv2d, and so on. Fused activations compute by themselves again. Left alone and listed in
    one warning are subclasses of our layers, layers that refuse, and layers with an activation of
    their own: torch's layers would compute something else.

    Returns:
        The same model.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    checks.check_is_module("revert", model)
    fusion.unfuse(model)
    left_alone, ours = {}, tuple(OURS.values())
    for name, module in model.named_modules():
        if not isinstance(module, ours):
            continue
        if activation := getattr(module, "activation", None):
            left_alone[name] = f"its activation {activation} is part of the layer"
            continue
        kind = type(module).__name__
        try:
            if not _set_class(module, _reverted_class):
                left_alone[name] = f"a {kind}"
        except Exception as error:
            left_alone[name] = _refusal(type(module), error)
        else:
            forget_geometry(module)
    _warn("revert", left_alone)
    return model


def _warn(function: str, left_alone: dict[str, str]) -> None:
    """Lists the layers that a function called by the user left alone, and why."""
    if left_alone:
        lines = (f"  {name or '(the model itself)'}: {why}" for name, why in left_alone.items())
        warnings.warn(
            f"torch_convbp.{function} left {len(left_alone)} layer(s) alone:\n" + "\n".join(lines),
            stacklevel=3,
        )
