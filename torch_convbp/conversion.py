"""``conversion(model)``: which layers of a model are ours, which are torch's, and why."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from torch_convbp import fusion
from torch_convbp.convert import (
    CONVOLUTION,
    DENSE,
    OURS,
    SCRIPTED,
    kind_of,
    reason_against,
    scripted_kind,
)
from torch_convbp.ops import checks

__all__ = ["Conversion", "TorchsLayer", "conversion"]

# torch's convolutions and pools of all kinds, many of which have no layer of ours.
_KINDS: dict[str, type[nn.Module]] = {
    name: getattr(module, name)
    for module in (nn.modules.conv, nn.modules.pooling)
    for name in module.__all__
}


class TorchsLayer(NamedTuple):
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
    left_alone: list[TorchsLayer]

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
    """Why a layer is torch's; None for modules that are no layer of these kinds."""
    if scripted_kind(module) in {*_KINDS, "Linear", "Bilinear"}:
        return SCRIPTED
    kind = kind_of(module)
    if kind is None:
        is_layer = isinstance(module, (nn.Bilinear, *_KINDS.values()))
        return "torch_convbp has no such layer" if is_layer else None
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

    Returns:
        A Conversion: ``.ours``, ``.fused`` and ``.left_alone``; prints as a list.

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
            left_alone.append(TorchsLayer(name, _name_of(module), reason))
    return Conversion(dict(ours), fusion.fused(model), left_alone)


def _name_of(module: Any) -> str:
    return scripted_kind(module) or type(module).__name__
