"""``conversion(model)``: which layers of a model are ours, which are torch's, and why."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from torch_convbp import fusion
from torch_convbp.convert import CONVOLUTION, DENSE, OURS, kind_of, reason_against
from torch_convbp.ops import checks

__all__ = ["Conversion", "LeftAlone", "conversion"]

_pooling = nn.modules.pooling
# Kinds that a model may have and that have no layer of ours.
_OTHERS = (
    *(nn.modules.conv._ConvNd, nn.Bilinear, nn.LPPool2d, nn.FractionalMaxPool2d, nn.MaxUnpool2d),
    *(_pooling._MaxPoolNd, _pooling._AvgPoolNd, _pooling._LPPoolNd, _pooling._MaxUnpoolNd),
    *(_pooling._AdaptiveAvgPoolNd, _pooling._AdaptiveMaxPoolNd, nn.FractionalMaxPool3d),
)


class LeftAlone(NamedTuple):
    """A layer that is torch's: its name in the model, its class, and the reason."""

    name: str
    kind: str
    reason: str


class Conversion(NamedTuple):
    """Result of ``conversion``; prints as counts, and the names for each reason.

    ours: names of our layers, by class. fused: activations computed in the convolutions before
    them, as ``fusions`` gives them.
    """

    ours: dict[str, list[str]]
    fused: list[fusion.Fused]
    left_alone: list[LeftAlone]

    def __str__(self) -> str:
        lines = [f"{sum(map(len, self.ours.values()))} layer(s) of torch_convbp"]
        lines += [f"  {len(names)} {kind}" for kind, names in self.ours.items()]
        if self.fused:
            lines.append(f"  {len(self.fused)} activation(s) computed in the convolutions")
        lines.append(f"{len(self.left_alone)} layer(s) of torch")
        groups = defaultdict(list)
        for name, kind, reason in self.left_alone:
            groups[kind, reason].append(name or "(the model itself)")
        for (kind, reason), names in groups.items():
            lines.append(f"  {len(names)} {kind}: {reason}")
            lines += textwrap.wrap(
                ", ".join(names), 90, initial_indent=4 * " ", subsequent_indent=4 * " "
            )
        return "\n".join(lines)


def _reason(module: nn.Module) -> str | None:
    """Why a layer is torch's; None for ours, and for modules that are no layer of these kinds."""
    kind = kind_of(module)
    scripted = getattr(module, "original_name", None)
    if scripted in {kind.__name__ for kind in OURS}:
        return "it is compiled by TorchScript"
    if kind is None:
        return "torch_convbp has no such layer" if isinstance(module, _OTHERS) else None
    if isinstance(module, OURS[kind]):
        return None
    if reason := reason_against(module, kind):
        return reason
    if kind in CONVOLUTION:
        return "it is not converted"
    return f"convert({'dense' if kind in DENSE else 'pooling'}=True) converts it"


def conversion(model: nn.Module) -> Conversion:
    """What of a model runs on torch_convbp, and what stayed torch's, with the reasons.

    Args:
        model: any module; it is not changed. Convolutions, pools and dense layers of every
            dimension are listed, once each; not what a forward computes without a layer, such as
            a call of torch.nn.functional.conv2d.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    checks.check_is_module("conversion", model)
    ours: dict[str, list[str]] = defaultdict(list)
    left_alone = []
    for name, module in model.named_modules():
        if isinstance(module, tuple(OURS.values())):
            ours[_name_of(module)].append(name)
        elif reason := _reason(module):
            left_alone.append(LeftAlone(name, _name_of(module), reason))
    return Conversion(dict(ours), fusion.fused(model), left_alone)


def _name_of(module: Any) -> str:
    return str(getattr(module, "original_name", None) or type(module).__name__)
