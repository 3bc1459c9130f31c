"""``fold_batch_norm(model)``: batch norms of evaluation as part of the convolutions before them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torch_convbp.modules import ConvBP2d
from torch_convbp.ops import checks
from torch_convbp.tracing import HOOKS, Part, is_plain_convolution, through_identities, traced_parts

__all__ = ["fold_batch_norm"]

logger = logging.getLogger("torch_convbp")

Model = TypeVar("Model", bound=nn.Module)


def fold_batch_norm(model: Model) -> Model:
    """Folds each nn.BatchNorm2d that alone follows a ConvBP2d into its weight and bias, in place.

    In evaluation a batch norm is a scale and a shift of each channel, which a convolution can do
    itself. The convolution gets new Parameters, and an nn.Identity takes the norm's place; so an
    activation after it can be fused by convert(model, fuse_activations=True). The model can no
    longer be trained as it was, and its state_dict is another: keep a copy.

    A pair is left alone if the layer has an activation of its own, as g comes before the norm; or
    if the norm has no running statistics or is in training mode; or if one of the two has hooks or
    a replaced forward, is parametrized, is called more than once or is in two places; or if the
    convolution shares a Parameter or is complex. torch.nn.utils.fusion.fuse_conv_bn_eval checks the
    mode and the statistics alone.

    Args:
        model: any module in evaluation mode whose forward, or parts, torch.fx can trace.

    Returns:
        The same model. Outputs are the same up to rounding. The logger "torch_convbp" gets the
        number of norms folded.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: model is in training mode.
    """
    checks.check_is_module("fold_batch_norm", model)
    if model.training:
        raise ValueError(
            "fold_batch_norm(): argument 'model' must be in evaluation mode, but it is in training "
            "mode; call model.eval() first"
        )
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    places = Counter(map(id, modules.values()))
    pairs = [
        pair
        for part in traced_parts(model, training=False)
        for pair in _pairs(part)
        if _can_be_folded(*(modules[name] for name in pair))
        and all(places[id(modules[name])] == 1 for name in pair)
        and not _is_shared(model, modules[pair[0]])
    ]
    for convolution_name, norm_name in pairs:
        convolution, norm = modules[convolution_name], modules[norm_name]
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
        parent, _, name = norm_name.rpartition(".")
        setattr(modules[parent], name, nn.Identity().eval())
    logger.info("%d batch norm(s) folded into the convolutions before them", len(pairs))
    return model


def _pairs(part: Part) -> list[tuple[str, str]]:
    """Names of each convolution and of the norm that alone follows it, each called once."""
    if part.graph is None:
        return []
    prefix = part.name and f"{part.name}."
    called = [str(node.target) for node in part.graph.nodes if node.op == "call_module"]
    pairs = []
    for node in part.graph.nodes:
        if node.op != "call_module" or node in part.held:
            continue
        if not isinstance(part.module.get_submodule(str(node.target)), ConvBP2d):
            continue
        end, _ = through_identities(part.module, node)
        users = [user for user in end.users if user.op == "call_module"]
        names = [str(node.target), *(str(user.target) for user in users)]
        if len(end.users) == len(users) == 1 and all(called.count(name) == 1 for name in names):
            pairs.append((prefix + names[0], prefix + names[1]))
    return pairs


def _can_be_folded(convolution: Any, norm: Any) -> bool:
    """Is the pair, in evaluation mode, one convolution with other Parameters?"""
    return (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and "forward" not in vars(norm)
        and is_plain_convolution(convolution)
        and not convolution.weight.is_complex()
        and not parametrize.is_parametrized(convolution)
        and not any(vars(module)[kind] for module in (convolution, norm) for kind in HOOKS)
    )


def _is_shared(model: nn.Module, convolution: nn.Module) -> bool:
    """Has another module one of the convolution's Parameters?"""
    own = {id(parameter) for parameter in convolution.parameters()}
    others = (m for m in model.modules() if m is not convolution)
    return any(id(p) in own for m in others for p in m._parameters.values())
