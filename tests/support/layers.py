"""The layers that everything is tried on: the columns of docs/compatibility.md."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor, nn

import torch_convbp as bp


@dataclass(frozen=True)
class Layer:
    """One of our layers and torch's for the same thing, with the same parameters."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    input_size: tuple[int, ...]

    def make(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        return self.ours().to(dtype)

    def torchs(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        twin = self.theirs().to(dtype)
        values = copy.deepcopy(list(self.make(dtype).state_dict().values()))
        twin.load_state_dict(dict(zip(twin.state_dict(), values, strict=True)))
        return twin

    def input(self, seed: int = 1, dtype: torch.dtype = torch.float64, **changes: Any) -> Tensor:
        """Normal numbers; batch=n for another batch, grow=n for n more of all but the channels."""
        batch, grow = changes.get("batch", self.input_size[0]), changes.get("grow", 0)
        size = [n if d == 1 else n + grow for d, n in enumerate((batch, *self.input_size[1:]))]
        return normal(tuple(size), dtype, seed)


LAYERS = {
    "conv2d": Layer(
        lambda: bp.ConvBP2d(4, 6, 3, stride=(1, 2), padding=1, groups=2),
        lambda: nn.Conv2d(4, 6, 3, stride=(1, 2), padding=1, groups=2),
        (3, 4, 6, 7),
    ),
    "conv2d + activation": Layer(
        lambda: bp.ConvBP2d(4, 6, 3, padding=1, activation="silu"),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU()),
        (3, 4, 6, 7),
    ),
    "max_pool2d": Layer(
        lambda: bp.MaxPoolBP2d(3, stride=2, padding=1),
        lambda: nn.MaxPool2d(3, stride=2, padding=1),
        (3, 4, 6, 7),
    ),
    "avg_pool2d": Layer(
        lambda: bp.AvgPoolBP2d(3, stride=2, padding=1, count_include_pad=False),
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        (3, 4, 6, 7),
    ),
    "linear": Layer(
        lambda: bp.LinearBP(5, 6, activation="tanh"),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh()),
        (3, 5),
    ),
}


WITH_PARAMETERS = ("conv2d", "conv2d + activation", "linear")


def every(*names: str) -> pytest.MarkDecorator:
    """Runs a test for each layer, or for these; the test asks for the argument ``layer``."""
    return pytest.mark.parametrize("layer", names or LAYERS)
