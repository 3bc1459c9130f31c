"""The geometry of a convolution layer in the operators' form, checked once.

Checking and converting stride, padding, dilation and groups takes longer than a small convolution.
The result stays with the layer as long as its attributes are the same objects, tuples and ints that
cannot change in place. copy, deepcopy and pickle leave it out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torch_convbp.ops import checks

_NAME = "_convbp_geometry"


def own_padding(layer: nn.Conv2d) -> Any:
    """The convolution's own padding: none where padding_mode has its input padded before."""
    return layer.padding if layer.padding_mode == "zeros" else 0


def geometry_of(layer: nn.Conv2d, weight: Tensor) -> tuple[Any, ...] | None:
    """(stride, padding, dilation, groups) for the operators; None where it cannot be stored.

    Raises as bp.functional.conv2d.
    """
    stored = layer.__dict__.get(_NAME)
    if (
        stored is None
        or stored[0] is not layer.stride
        or stored[1] is not layer.padding
        or stored[2] is not layer.dilation
        or stored[3] is not layer.groups
        or stored[4] is not layer.padding_mode
        or (stored[5] is not None and stored[5] != weight.shape)
    ):
        stored = _checked(layer, weight)
        if stored is not None:
            layer.__dict__[_NAME] = stored
    return None if stored is None else stored[6]


def _checked(layer: nn.Conv2d, weight: Tensor) -> tuple[Any, ...] | None:
    attributes = layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    if weight.dim() != 4 or not all(map(_cannot_change, attributes)):
        return None
    geometry = checks.geometry(
        "conv2d", weight.shape, layer.stride, own_padding(layer), layer.dilation, layer.groups
    )
    # "same" depends on the size of the filters.
    size = weight.shape if isinstance(layer.padding, str) else None
    return (*attributes, size, geometry)


def _cannot_change(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(v) is int for v in value)
    return type(value) in (int, str)


def forget_geometry(layer: nn.Module) -> None:
    layer.__dict__.pop(_NAME, None)


def without_geometry(state: dict[str, Any]) -> dict[str, Any]:
    """A layer's state for a copy or a pickle."""
    return {name: value for name, value in state.items() if name != _NAME}
