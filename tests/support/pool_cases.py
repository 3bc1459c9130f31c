"""Named poolings: the data that the tests of the pools run over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases import CHANNELS
from torch import Tensor


@dataclass(frozen=True)
class Case:
    name: str
    size: tuple[int, int, int, int] = (2, 3, 7, 6)
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False

    @property
    def max_geometry(self) -> tuple[Any, ...]:
        """The arguments of max_pool2d behind its input."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil

    @property
    def average_geometry(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.ceil

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(F.max_pool2d(torch.empty(self.size), *self.max_geometry).shape)


def distinct(size: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Numbers at least 1 apart: no rounding and no small step changes which is the largest."""
    count = math.prod(size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator, device="cpu")
    return (order - count // 2).to(torch.get_default_device(), dtype).reshape(size)


# Small enough for the reference, which loops in Python.
SMALL = [
    Case("slides"),
    Case("one_by_one", kernel=(1, 1), stride=(1, 1)),
    Case("one_by_one_strided", kernel=(1, 1), stride=(2, 3)),
    Case("overlapping", kernel=(3, 3), padding=(1, 1)),
    Case("stride_1", kernel=(3, 2), stride=(1, 1), padding=(1, 0)),
    Case("asymmetric", kernel=(2, 4), stride=(1, 3), padding=(1, 2)),
    Case("gaps", size=(2, 3, 9, 8), kernel=(2, 2), stride=(3, 4)),
    Case("ceil", kernel=(2, 3), stride=(2, 2), ceil=True),
    Case("ceil_and_padding", kernel=(3, 3), stride=(2, 4), padding=(1, 1), ceil=True),
    Case("ceil_drops_a_window", size=(1, 2, 4, 4), kernel=(1, 1), stride=(3, 3), ceil=True),
    Case("dilation", kernel=(2, 2), stride=(1, 1), dilation=(2, 3)),
    Case("dilation_and_everything", size=(2, 3, 9, 10), kernel=(3, 2), stride=(2, 3),
         padding=(1, 1), dilation=(2, 3), ceil=True),
    Case("whole_map", size=(3, 4, 5, 4), kernel=(5, 4)),
    Case("one_pixel", size=(2, 3, 1, 1), kernel=(2, 2), stride=(1, 1), padding=(1, 1)),
    Case("one_channel", size=(2, 1, 6, 5)),
    Case("batch_0", size=(0, 3, 6, 5)),
]  # fmt: skip

# Off the sizes the vector kernels work in: lanes, lines, bands.
RAGGED = [
    Case("channels_37", size=(2, 37, 11, 13), kernel=(3, 3), padding=(1, 1)),
    Case("channels_64", size=(3, 64, 8, 9)),
    Case("wide", size=(1, 3, 5, 301), kernel=(3, 3), stride=(1, 2), padding=(1, 1)),
    Case("wide_every_third", size=(1, 2, 4, 500), kernel=(2, 3), stride=(1, 3)),
    Case("spp", size=(1, 20, 13, 13), kernel=(13, 13), stride=(1, 1), padding=(6, 6)),
    Case("offsets_of_4_bytes", size=(2, 5, 21, 30), kernel=(16, 16), stride=(3, 5)),
    Case("offsets_of_1_byte", size=(1, 9, 20, 20), kernel=(15, 17), stride=(2, 1)),
    Case("many_bands", size=(1, 40, 60, 50), kernel=(3, 3), stride=(1, 1), padding=(1, 1),
         dilation=(5, 2)),
    Case("high_window", size=(1, 33, 90, 70), kernel=(40, 2), stride=(3, 2)),
]  # fmt: skip


# The long sweep: every window with every number of channels, on two odd sizes of pictures.
WINDOWS: dict[str, dict[str, Any]] = {
    "2x2": {},
    "3x3": {"kernel": (3, 3), "padding": (1, 1)},
    "3x3_every_one": {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)},
    "4x2_ceil": {"kernel": (4, 2), "stride": (3, 2), "padding": (2, 1), "ceil": True},
    "1x5": {"kernel": (1, 5), "stride": (1, 1), "padding": (0, 2)},
    "stride_beyond_kernel": {"kernel": (2, 3), "stride": (5, 4), "padding": (1, 1)},
    "dilation": {"kernel": (3, 2), "stride": (1, 2), "padding": (1, 1), "dilation": (5, 6)},
    "13x13": {"kernel": (13, 13), "stride": (1, 1), "padding": (6, 6)},
    "16x16": {"kernel": (16, 16), "stride": (2, 3), "padding": (8, 8), "ceil": True},
}
GRID = [
    Case(
        name=f"{name}_{channels}",
        size=(1 + (i + j) % 3, channels, *((29, 37) if (i + j) % 2 else (15, 19))),
        **window,
    )
    for i, (name, window) in enumerate(WINDOWS.items())
    for j, channels in enumerate(CHANNELS)
]


def small(name: str) -> Case:
    return next(case for case in SMALL + RAGGED if case.name == name)


def average_case(case: Case) -> Case:
    """Average pooling knows no dilation."""
    return Case(**{**vars(case), "dilation": (1, 1)})


def max_results(pool: Callable[..., Any], case: Case, input: Tensor, delta: Tensor) -> list[Tensor]:
    a = input.detach().requires_grad_()
    output, indices = pool(a, *case.max_geometry, return_indices=True)
    return [output.detach(), indices, *torch.autograd.grad(output, a, delta)]


def average_results(
    pool: Callable[..., Any], case: Case, input: Tensor, delta: Tensor, **options: Any
) -> list[Tensor]:
    a = input.detach().requires_grad_()
    output = pool(a, *case.average_geometry, **options)
    return [output.detach(), *torch.autograd.grad(output, a, delta)]
