"""``fold_batch_norm(model)``: batch norms of evaluation as part of the convolutions before them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torch_convbp.fusion import global_hooks, unwatched
from torch_convbp.modules import ConvBP2d
from torch_convbp.ops import checks
from torch_convbp.tracing import (
    is_identity,
    is_plain_convolution,
    through_identities,
    traced_parts,
)

__all__ = ["fold_batch_norm"]

logger = logging.getLogger("torch_convbp")

Model = TypeVar("Model", bound=nn.Module)


class Folded(NamedTuple):
    """A convolution, the norm after it, and the Parameters of both together."""

    convolution: Any
    norm: Any
    weight: nn.Parameter
    bias: nn.Parameter


def fold_batch_norm(model: Model) -> Model:
    """Folds each nn.BatchNorm2d that alone follows a ConvBP2d into its weight and bias, in place.

    In evaluation a batch norm is a scale and a shift of each channel, which a convolution can do
    itself. The convolution gets new Parameters, and the norm becomes an nn.Identity; so an
    activation after it can be fused by convert(model, fuse_activations=True). The model can no
    longer be trained as it was, and its state_dict is another: keep a copy. A model that later
    runs another way than traced, without the norm, computes something else.

    A pair is left alone if the layer has an activation of its own, as g comes before the norm; if
    the norm has no running statistics; if something could see or change the tensor between the two
    (a hook, a replaced forward); if one of the two is parametrized, called more than once, in two
    places, or read by the forward; or if the convolution shares a Parameter, is complex, or would
    get numbers that are not finite. torch.nn.utils.fusion.fuse_conv_bn_eval checks the mode and the
    statistics alone.

    Args:
        model: any module in evaluation mode whose forward torch.fx can trace.

    Returns:
        The same model. Outputs are the same up to rounding. The logger "torch_convbp" gets the
        number of norms folded.

    Warns:
        UserWarning: torch.fx cannot trace the model as a whole (its parts may be given), or it has
            no ConvBP2d.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: model, or a module in it, is in training mode.
    """
    checks.check_is_module("fold_batch_norm", model)
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "fold_batch_norm(): argument 'model' must be in evaluation mode, but "
                f"{repr(name) if name else 'it'} is in training mode; call model.eval() first"
            )
    parts = traced_parts(model, training=False, gradients=True)
    if not parts or parts[0].graph is None or parts[0].name:
        reasons = (part.reason for part in parts if part.reason)
        reason = next(reasons, "the model has no ConvBP2d; torch_convbp.convert makes some")
        warnings.warn(f"torch_convbp.fold_batch_norm folded nothing: {reason}", stacklevel=2)
        return model
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    folded = [
        pair
        for part in parts
        if part.graph is not None
        for names in _neighbours(part.graph, part.held, part.module)
        if (pair := _fold(model, modules, names)) is not None
    ]
    for convolution, norm, weight, bias in folded:
        convolution.weight, convolution.bias = weight, bias
        # The object itself, as the forward may know it by another reference.
        norm.__class__ = nn.Identity
        norm._parameters.clear()
        norm._buffers.clear()
    logger.info("%d batch norm(s) folded into the convolutions before them", len(folded))
    return model


def _neighbours(graph: Graph, held: set[Any], root: nn.Module) -> list[tuple[str, ...]]:
    """Names of each convolution, of nn.Identity modules after it, and of the module that alone
    follows; the first and the last are called once, in the same modes, and read by nothing."""
    uses = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    uses += Counter(str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
    found = []
    for node in graph.nodes:
        is_call = node.op == "call_module" and node not in held
        if not is_call or not isinstance(root.get_submodule(str(node.target)), ConvBP2d):
            continue
        end, between = through_identities(root, node)
        users = [*end.users]
        if len(users) != 1 or users[0].op != "call_module":
            continue
        if node.meta["modes"] != users[0].meta["modes"]:
            continue
        first, last = str(node.target), str(users[0].target)
        if uses[first] == uses[last] == 1:
            found.append((first, *between, last))
    return found


def _fold(model: nn.Module, modules: dict[str, nn.Module], names: tuple[str, ...]) -> Folded | None:
    """What the pair becomes in evaluation mode; None where it is left alone."""
    places = Counter(map(id, modules.values()))
    convolution, *between, norm = (unwatched(model, name.split(".")) for name in names)
    if convolution is None or norm is None or not all(map(is_identity, between)):
        return None
    statistics: Any = norm
    layer: Any = convolution
    if (
        any(global_hooks)
        or type(norm) is not nn.BatchNorm2d
        or statistics.running_mean is None
        or not is_plain_convolution(layer)
        or parametrize.is_parametrized(layer)
        or layer._parameters.get("weight") is None
        or layer.weight.is_complex()
        or statistics.num_features != layer.out_channels
        or any(places[id(module)] > 1 for module in (convolution, norm))
        or _is_shared(model, convolution)
    ):
        return None
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            *(layer.weight, layer.bias, statistics.running_mean, statistics.running_var),
            *(statistics.eps, statistics.weight, statistics.bias),
        )
    if not all(_is_finite(parameter) for parameter in (weight, bias)):
        return None
    return Folded(layer, norm, weight, bias)


def _is_finite(parameter: Tensor) -> bool:
    return bool(torch.isfinite(parameter.detach()).all())


def _is_shared(model: nn.Module, convolution: nn.Module) -> bool:
    """Has another module one of the convolution's Parameters?"""
    own = {id(parameter) for parameter in convolution.parameters()}
    others = (m for m in model.modules() if m is not convolution)
    return any(id(p) in own for m in others for p in m._parameters.values())
