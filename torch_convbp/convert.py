"""``convert(model)`` turns a model's nn.Conv2d layers into ConvBP2d, ``revert(model)`` back; pools,
dense layers and activations on request.

A ConvBP2d holds exactly what an nn.Conv2d holds and differs in what it computes with, so a layer
is converted by giving the object its other class. It stays the same object with the same
Parameters: optimizers, hooks, tied weights, requires_grad flags, train or eval state, device,
dtype and every reference to it are untouched.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, TypeVar

from torch import nn

from torch_convbp import fusion, shapes
from torch_convbp._classes import reduce_by, set_class
from torch_convbp.modules import AvgPoolBP2d, ConvBP2d, LinearBP, MaxPoolBP2d

__all__ = ["convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)


CONVOLUTION: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ConvBP2d}
POOLING: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPoolBP2d,
    nn.AvgPool2d: AvgPoolBP2d,
}
DENSE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LinearBP}
_OURS = CONVOLUTION | POOLING | DENSE
_REVERTED = {ours: theirs for theirs, ours in _OURS.items()}


@functools.cache
def _converted_class(cls: Any) -> Any:
    """The class an instance of ``cls`` gets: ours, or ConvBP2d before a subclass's own ways.

    None for subclasses of the other layers.
    """
    if cls in _OURS:
        return _OURS[cls]
    if not issubclass(cls, nn.Conv2d):
        return None
    namespace = {"_converted_from": cls, "__module__": __name__}
    namespace["__reduce_ex__"] = reduce_by(_converted_class, cls)
    return type(f"ConvBP2d_{cls.__name__}", (ConvBP2d, cls), namespace)


def _reverted_class(cls: Any) -> Any:
    """What _converted_class made ``cls`` of; None for a subclass of ours."""
    return _REVERTED.get(cls) or vars(cls).get("_converted_from")


def _convert_layer(module: nn.Module, theirs: type[nn.Module]) -> str | None:
    """Converts a layer of the kind ``theirs``; says why where it cannot be, else None."""
    cls: Any = type(module)
    ours = _OURS[theirs].__name__
    methods = ("forward", "_conv_forward")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy and not initialised yet; run a batch through the model first"
    if any(getattr(cls, m, None) is not getattr(theirs, m, None) for m in methods):
        return f"{cls.__name__} has a forward of its own; derive it from {ours} instead"
    if any(m in vars(module) for m in methods):
        return "its forward was replaced on the object"
    # The class first: to look at a property on the object is to compute it.
    if hasattr(_OURS[theirs], "activation") and (
        hasattr(cls, "activation") or hasattr(module, "activation")
    ):
        return f"it has an attribute activation of its own, which would be taken for {ours}'s"
    if theirs is nn.Conv2d:
        # A parameter, not module.weight: to look at a parametrized weight is to compute it.
        for parameter in module.parameters(recurse=True):
            if parameter.dtype not in shapes.DTYPES and not parameter.is_complex():
                return f"its dtype is {parameter.dtype}"
    try:
        changed = set_class(module, _converted_class)
    except Exception as error:  # what a class does about it is its own
        return f"{cls.__name__} does not let its class be changed: {error}"
    return None if changed else f"{cls.__name__} is a subclass of nn.{theirs.__name__}"


def convert(
    model: Model, *, pooling: bool = False, dense: bool = False, fuse_activations: bool = False
) -> Model:
    """Turns every nn.Conv2d of ``model`` into a ConvBP2d, in place.

    Subclasses of nn.Conv2d that inherit its forward are converted too, and so are parametrized
    layers. What cannot be is left alone and listed in one warning: subclasses with a forward of
    their own, layers whose forward was replaced, uninitialised lazy layers, convolutions of dtypes
    without kernels, scripted layers, layers that have an attribute ``activation`` already.

    Args:
        model: any module; one that is an nn.Conv2d itself is converted as well.
        pooling: also turn nn.MaxPool2d and nn.AvgPool2d into MaxPoolBP2d and AvgPoolBP2d.
        dense: also turn nn.Linear into LinearBP. Subclasses of these three are left alone, and
            listed.
        fuse_activations: also let each ConvBP2d compute the activation that alone follows it, a
            module or a functional call, where torch.fx and the model's code show that nothing
            else sees the convolution's output in any run of the model's forward.
            bp.fusions(model) lists what was fused, and what was left alone and why; the logger
            "torch_convbp" is told too. What passes between the two is a from then on: to a hook
            put on the convolution later, to a slice of a Sequential that ends there, to code that
            is no method of the model's classes or has the layers in a list. By nature outside of
            what is shown are a convolution that another model has too, a copy.copy of the model,
            which shares its layers, and what torch.fx made of it while it was fused. Revert before
            layers are replaced, or activations changed. The global random states of torch, Python
            and NumPy are afterwards what they were: numbers that another thread draws meanwhile
            are drawn again.

    Returns:
        The same model: outputs, gradients and state_dict are what they were.

    Raises:
        TypeError: model is no torch.nn.Module, or another argument no bool.
        ValueError: a module takes no other class for a fused call, though its copy did; then no
            activation is fused.
    """
    shapes.check_is_module("convert", model)
    flags = {"pooling": pooling, "dense": dense, "fuse_activations": fuse_activations}
    for argument, value in flags.items():
        shapes.flag("convert", argument, value)
    wanted = CONVOLUTION | (POOLING if pooling else {}) | (DENSE if dense else {})
    left_alone = {}
    for name, module in model.named_modules():
        theirs = next((kind for kind in wanted if isinstance(module, kind)), None)
        if theirs is not None and not isinstance(module, wanted[theirs]):
            if reason := _convert_layer(module, theirs):
                left_alone[name] = reason
        elif getattr(module, "original_name", None) in {kind.__name__ for kind in wanted}:
            left_alone[name] = "it is compiled by TorchScript"
    _warn("convert", left_alone)
    if fuse_activations:
        fusion.fuse(model)
    return model


def revert(model: Model) -> Model:
    """Turns every layer of ``model`` that is ours back into torch's own, in place.

    Layers that ``convert`` made get the class they had; layers built as ConvBP2d become
    nn.Conv2d, and so on. Activations it fused are where they were again. Left alone and listed in
    one warning are subclasses of our layers, layers that refuse, and layers with an activation of
    their own (or of a module that is not in ``model``): torch's own would compute something else.

    Returns:
        The same model.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    shapes.check_is_module("revert", model)
    left_alone, ours = dict(fusion.unfuse(model)), tuple(_OURS.values())
    for name, module in model.named_modules():
        if not isinstance(module, ours):
            continue
        if activation := getattr(module, "activation", None):
            left_alone[name] = f"its activation {activation} is part of the layer"
            continue
        kind = type(module).__name__
        try:
            if not set_class(module, _reverted_class):
                left_alone[name] = f"a {kind}"
        except Exception as error:
            left_alone[name] = f"{kind} does not let its class be changed: {error}"
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
