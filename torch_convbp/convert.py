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
from typing import TypeVar

from torch import nn

from torch_convbp import fusion, shapes
from torch_convbp._classes import check_is_module, reduce_by, set_class
from torch_convbp.modules import AvgPoolBP2d, ConvBP2d, LinearBP, MaxPoolBP2d

__all__ = ["convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)


@functools.cache
def _converted_class(cls: type[nn.Conv2d]) -> type[ConvBP2d]:
    """The class an instance of ``cls`` gets: ConvBP2d, or ConvBP2d before a subclass's own ways."""
    if cls is nn.Conv2d:
        return ConvBP2d

    namespace = {"_converted_from": cls, "__module__": __name__}
    namespace["__reduce_ex__"] = reduce_by(_converted_class, cls)
    return type(f"ConvBP2d_{cls.__name__}", (ConvBP2d, cls), namespace)


def _reverted_class(cls: type[nn.Conv2d]) -> type[nn.Conv2d] | None:
    """What _converted_class made ``cls`` of; None for a subclass of ConvBP2d."""
    return nn.Conv2d if cls is ConvBP2d else vars(cls).get("_converted_from")


def _why_left_alone(module: nn.Conv2d) -> str | None:
    """Why this convolution cannot be converted; None where it can."""
    cls = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy and not initialised yet; run a batch through the model first"
    if cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
        return f"{cls.__name__} has a forward of its own; derive it from ConvBP2d instead"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced on the object"
    if hasattr(module, "activation"):
        return "it has an attribute named activation, and the layer would compute that"
    # A parameter, not module.weight: to look at a parametrized weight is to compute it.
    for parameter in module.parameters(recurse=True):
        if parameter.dtype not in shapes.DTYPES:
            return f"its dtype is {parameter.dtype}"
    return None


POOLING: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPoolBP2d,
    nn.AvgPool2d: AvgPoolBP2d,
}
DENSE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LinearBP}
_REVERTED = {ours: theirs for theirs, ours in (POOLING | DENSE).items()}


def convert(
    model: Model, *, pooling: bool = False, dense: bool = False, fuse_activations: bool = False
) -> Model:
    """Turns every nn.Conv2d of ``model`` into a ConvBP2d, in place.

    Subclasses of nn.Conv2d that inherit its forward (parametrized layers among them) are
    converted too. What cannot be is left alone and listed in one warning: subclasses with a
    forward of their own, uninitialised lazy layers, dtypes without kernels, scripted layers.

    Args:
        model: any module; one that is an nn.Conv2d itself is converted as well.
        pooling: also turn nn.MaxPool2d and nn.AvgPool2d into MaxPoolBP2d and AvgPoolBP2d.
        dense: also turn nn.Linear into LinearBP. Subclasses of these three are left alone.
        fuse_activations: also let each ConvBP2d compute the activation that alone follows it, a
            module or a functional call, where torch.fx and the model's code show that nothing
            else sees the convolution's output in any run of the model's forward.
            bp.fusions(model) lists what was fused, and what was left alone and why; the logger
            "torch_convbp" is told too. What passes between the two is a from then on: to a hook
            put on the convolution later, to a slice of a Sequential that ends there, to another
            method. By nature outside of what is shown are a convolution that another model has
            too, a copy.copy of the model, which shares its layers, and what torch.fx made of it
            while it was fused. Revert before layers are replaced, or activations changed.

    Returns:
        The same model: outputs, gradients and state_dict are what they were.

    Raises:
        TypeError: model is no torch.nn.Module, or fuse_activations no bool.
    """
    check_is_module("convert", model)
    if not isinstance(fuse_activations, bool):
        raise TypeError(
            "convert(): argument 'fuse_activations' must be a bool, "
            f"not {type(fuse_activations).__name__}"
        )
    wanted = (POOLING if pooling else {}) | (DENSE if dense else {})
    left_alone = []
    for name, module in model.named_modules():
        if (
            type(module) in wanted
            and "forward" not in vars(module)
            and not hasattr(module, "activation")  # as in _why_left_alone
        ):
            module.__class__ = wanted[type(module)]  # type: ignore[assignment]
            continue
        if isinstance(module, ConvBP2d):
            continue
        if isinstance(module, nn.Conv2d):
            reason = _why_left_alone(module)
            if reason is None:
                try:
                    set_class(module, _converted_class)
                    continue
                except Exception as error:  # what a class does when it is derived from is its own
                    reason = f"{type(module).__name__} does not let itself be derived from: {error}"
        elif getattr(module, "original_name", None) == "Conv2d":
            reason = "it is compiled by TorchScript"
        else:
            continue
        left_alone.append(f"  {name or '(the model itself)'}: {reason}")
    if left_alone:
        warnings.warn(
            f"torch_convbp.convert left {len(left_alone)} convolution(s) alone:\n"
            + "\n".join(left_alone),
            stacklevel=2,
        )
    if fuse_activations:
        fusion.fuse(model)
    return model


def revert(model: Model) -> Model:
    """Turns every layer of ``model`` that is ours back into torch's own, in place.

    Layers that :func:`convert` made get the class they had; layers built as ConvBP2d become
    nn.Conv2d, and so on. Activations it fused are where they were again. Left alone and listed in
    one warning are subclasses of ConvBP2d, and layers with an activation of their own (or of a
    module that is not in ``model``): torch's own would compute something else.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    check_is_module("revert", model)
    left_alone = [f"  {name}: {reason}" for name, reason in fusion.unfuse(model).items()]
    for name, module in model.named_modules():
        if getattr(module, "activation", None) and isinstance(module, (ConvBP2d, LinearBP)):
            reason = f"its activation {module.activation} is part of the layer"
        elif type(module) in _REVERTED:
            module.__class__ = _REVERTED[type(module)]  # type: ignore[assignment]
            continue
        elif not isinstance(module, ConvBP2d) or set_class(module, _reverted_class):
            continue
        else:
            reason = f"a {type(module).__name__}"
        left_alone.append(f"  {name or '(the model itself)'}: {reason}")
    if left_alone:
        warnings.warn(
            f"torch_convbp.revert left {len(left_alone)} layer(s) alone:\n" + "\n".join(left_alone),
            stacklevel=2,
        )
    return model
