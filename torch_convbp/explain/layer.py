"""The layer a page goes through: picture, filters, biases, activation and target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_convbp import reference
from torch_convbp.explain.activation import Activation
from torch_convbp.explain.picture import Picture

# As the lecture writes them, before flipping. A convolution flips: "vertical" answers with a
# positive p where a map grows brighter from left to right.
FILTERS = {
    "vertical": [[0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, -0.5]],
    "horizontal": [[0.5, 0.5, 0.5], [0, 0, 0], [-0.5, -0.5, -0.5]],
    "diagonal": [[0.5, 0.5, 0], [0.5, 0, -0.5], [0, -0.5, -0.5]],
    "corner": [[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [0.5, -0.5, -0.5]],
    "outline": [[0, -0.5, 0], [-0.5, 2, -0.5], [0, -0.5, 0]],
    "blur": [[0.0625, 0.125, 0.0625], [0.125, 0.25, 0.125], [0.0625, 0.125, 0.0625]],
}
RANDOM = "random"


@dataclass(frozen=True)
class Layer:
    """Everything L1 to L6 need, in the lecture's own parameters and in float64.

    a [1, K, H, W]; w [O, K, R, S], before flipping; b [O, K], one for each pair of maps;
    target [1, O, M, N'], what the layer is to put out: O maps of M x N'.
    """

    picture: Picture
    filter_names: tuple[str, ...]
    w: Tensor
    b: Tensor
    activation: Activation
    target: Tensor
    seed: int

    @property
    def a(self) -> Tensor:
        """The maps of the layer below."""
        return self.picture.maps[None]


def build(picture: Picture, filters: tuple[str, ...], activation: Activation, seed: int) -> Layer:
    """Put a layer together; ``seed`` draws random filters, the biases and the target.

    Filter o meets map k turned by k quarter turns, so that every pair has a filter of its own. The
    target is what the layer would put out with each entry of its filters half a unit more, less or
    the same: an error that the filters can mend.
    """
    draw = torch.Generator().manual_seed(seed)

    def halves(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, size, generator=draw).double() / 2

    maps = picture.maps.shape[0]
    bank = []
    for name in filters:
        drawn = halves(-2, 2, 3, 3)
        chosen = drawn if name == RANDOM else torch.tensor(FILTERS[name], dtype=torch.float64)
        bank.append(torch.stack([torch.rot90(chosen, k) for k in range(maps)]))
    w = torch.stack(bank)
    b = halves(0, 1, *w.shape[:2])
    other = w + halves(-1, 1, *w.shape)
    target = activation.g(reference.pre_activation(picture.maps[None], other, b))
    return Layer(picture, filters, w, b, activation, target, seed)
