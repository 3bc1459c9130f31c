"""Named convolutions: the data that the tests of the operators run over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "strided")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

ALGORITHMS = ("direct", "plain")  # the exact ones; test_winograd.py has what is only near


@dataclass(frozen=True)
class Case:
    """One convolution. padding is (top, bottom, left, right)."""

    name: str
    batch: int = 2
    in_channels: int = 3
    out_channels: int = 4
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def input_size(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_size(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def output_size(self) -> tuple[int, ...]:
        out = []
        for i in range(2):
            padded = self.size[i] + self.padding[2 * i] + self.padding[2 * i + 1]
            out.append((padded - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1)
        return (self.batch, self.out_channels, *out)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The operators' last four arguments."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def symmetric(self) -> bool:
        """Can torch.nn.functional.conv2d say it without padding the input first?"""
        top, bottom, left, right = self.padding
        return top == bottom and left == right

    @property
    def has_winograd(self) -> bool:
        """Is it one that the Winograd algorithm can compute?"""
        kernel, stride = self.kernel[0], self.stride[0]
        square = self.kernel == (kernel, kernel) and self.stride == (stride, stride)
        if self.dilation != (1, 1):  # but for the weight gradient
            return square and (kernel, stride) == (3, 1) and len(set(self.dilation)) == 1
        return square and (kernel, stride) in ((3, 1), (3, 2), (5, 1), (7, 2))

    def reduction(self, operator: str) -> int:
        """How many products one element of the operator's result sums."""
        taps = self.kernel[0] * self.kernel[1]
        return {
            "conv2d": taps * self.in_channels // self.groups,
            "conv2d_input_grad": taps * self.out_channels // self.groups,
            "conv2d_weight_grad": self.batch * self.output_size[2] * self.output_size[3],
        }[operator]


# Small enough for the reference, which loops in Python.
SMALL = [
    Case("slides"),
    Case("one_by_one", kernel=(1, 1)),
    Case("one_by_one_padded", kernel=(1, 1), padding=(1, 1, 2, 2)),
    Case("asymmetric_kernel", kernel=(2, 5)),
    Case("even_kernel", kernel=(4, 2), padding=(2, 2, 1, 1)),
    Case("row_kernel", kernel=(1, 4)),
    Case("stride", stride=(2, 2)),
    Case("asymmetric_stride", stride=(1, 3), padding=(1, 1, 0, 0)),
    Case("stride_beyond_kernel", kernel=(2, 2), stride=(3, 4)),
    Case("padding", padding=(1, 1, 1, 1)),
    Case("asymmetric_padding", padding=(2, 2, 0, 0)),
    Case("padding_beyond_kernel", kernel=(2, 2), padding=(3, 3, 4, 4)),
    Case("padding_behind", padding=(0, 1, 0, 2)),
    Case("padding_in_front", padding=(2, 0, 1, 0), stride=(2, 1)),
    Case("dilation", dilation=(2, 2)),
    Case("asymmetric_dilation", dilation=(3, 1), padding=(2, 2, 1, 1)),
    Case("dilation_beyond_input", size=(4, 4), kernel=(2, 2), dilation=(5, 6),
         padding=(3, 3, 4, 4)),
    Case("stride_and_dilation", stride=(2, 3), dilation=(2, 1), padding=(1, 1, 2, 2)),
    Case("stride_divides_dilation", stride=(2, 2), dilation=(2, 4), kernel=(2, 2), size=(8, 9)),
    Case("kernel_as_large_as_input", size=(5, 4), kernel=(5, 4)),
    Case("groups", in_channels=4, out_channels=6, groups=2),
    Case("groups_and_everything", in_channels=6, out_channels=3, groups=3, stride=(2, 1),
         padding=(1, 1, 2, 2), dilation=(1, 2), kernel=(3, 2)),
    Case("depthwise", in_channels=4, out_channels=4, groups=4, padding=(1, 1, 1, 1)),
    Case("depthwise_multiplier", in_channels=3, out_channels=6, groups=3),
    Case("one_channel", in_channels=1, out_channels=1),
    Case("one_pixel", size=(1, 1), kernel=(3, 3), padding=(1, 1, 1, 1)),
    Case("zero_channels", in_channels=0, out_channels=3),
    Case("batch_0", batch=0),
]  # fmt: skip

# Off the sizes the vector kernels work in: channel blocks, rows of pixels, tiles.
RAGGED = [
    Case("channels_17_40", in_channels=17, out_channels=40, size=(15, 19), padding=(1, 1, 1, 1)),
    Case("channels_72_5", in_channels=72, out_channels=5, size=(9, 11), padding=(1, 1, 1, 1)),
    Case("channels_16_16", in_channels=16, out_channels=16, size=(12, 12), kernel=(2, 2)),
    Case("channels_8_33", in_channels=8, out_channels=33, size=(29, 37), stride=(2, 2),
         padding=(1, 1, 1, 1)),
    Case("ragged_groups", in_channels=15, out_channels=27, groups=3, size=(13, 10),
         padding=(1, 1, 0, 0), stride=(1, 2)),
    Case("groups_of_four", in_channels=36, out_channels=36, groups=9, size=(11, 35),
         padding=(1, 1, 1, 1)),
    Case("groups_of_three_to_five", in_channels=21, out_channels=35, groups=7, size=(9, 18),
         kernel=(5, 5), padding=(2, 2, 2, 2), stride=(1, 2), dilation=(2, 1)),
    Case("groups_of_sixteen", in_channels=48, out_channels=48, groups=3, size=(15, 17),
         padding=(1, 1, 1, 1), stride=(2, 2)),
    Case("depthwise_wide", in_channels=35, out_channels=35, groups=35, size=(14, 9),
         padding=(2, 2, 2, 2), kernel=(5, 5)),
    Case("depthwise_strided", in_channels=40, out_channels=40, groups=40, size=(33, 19),
         padding=(1, 2, 2, 1), kernel=(5, 4), stride=(2, 2)),
    Case("depthwise_dilated", in_channels=33, out_channels=33, groups=33, size=(21, 30),
         padding=(2, 2, 1, 3), dilation=(2, 2), stride=(1, 3)),
    Case("depthwise_small", batch=5, in_channels=19, out_channels=19, groups=19, size=(7, 6),
         padding=(1, 1, 1, 1)),
    # Large rows make bands of few, of which the phases of the input gradient have 4 and 3.
    Case("depthwise_bands", batch=1, in_channels=2, out_channels=2, groups=2, size=(25, 1999),
         stride=(2, 2)),
    Case("pointwise_strided", in_channels=40, out_channels=33, size=(9, 14), kernel=(1, 1),
         stride=(2, 3)),
    Case("stem", in_channels=3, out_channels=64, size=(40, 33), kernel=(7, 7), stride=(2, 2),
         padding=(3, 3, 3, 3)),
    Case("many_images", batch=37, in_channels=20, out_channels=24, size=(4, 4),
         padding=(1, 1, 1, 1)),
    Case("one_image", batch=1, in_channels=24, out_channels=70, size=(7, 7), padding=(1, 1, 1, 1)),
    Case("wide_picture", batch=1, in_channels=4, out_channels=3, size=(3, 1500), kernel=(3, 3)),
    Case("tall_picture", batch=1, in_channels=30, out_channels=3, size=(700, 2), kernel=(4, 1)),
    Case("far_taps", batch=1, in_channels=9, out_channels=10, size=(40, 41), kernel=(3, 3),
         dilation=(19, 17)),
    Case("sparse_stride", batch=3, in_channels=6, out_channels=9, size=(50, 46), kernel=(2, 3),
         stride=(11, 9)),
    Case("few_channels_stride_beyond_kernel", in_channels=3, out_channels=9, size=(35, 46),
         kernel=(2, 2), stride=(3, 4)),
    Case("few_channels_to_five", in_channels=3, out_channels=5, size=(15, 19),
         padding=(1, 1, 1, 1)),
    Case("few_channels_dilation", in_channels=3, out_channels=10, size=(17, 21), kernel=(3, 2),
         dilation=(2, 3), padding=(2, 2, 3, 0)),
    Case("few_channels_wide_dilation", in_channels=4, out_channels=10, size=(19, 21),
         dilation=(3, 3), padding=(3, 3, 3, 3)),
    Case("many_lanes_strided", batch=5, in_channels=37, out_channels=140, size=(13, 11),
         stride=(2, 2), padding=(1, 1, 1, 1)),
    Case("pointwise", in_channels=17, out_channels=40, size=(9, 6), kernel=(1, 1)),
    Case("pointwise_deep", batch=3, in_channels=144, out_channels=32, size=(7, 7), kernel=(1, 1)),
    Case("pointwise_groups", in_channels=80, out_channels=34, groups=2, size=(9, 7),
         kernel=(1, 1), stride=(2, 2)),
    # Filters as large as their stride.
    Case("patches", in_channels=24, out_channels=20, size=(9, 14), kernel=(2, 2), stride=(2, 2)),
    Case("patches_stem", in_channels=3, out_channels=40, size=(16, 21), kernel=(4, 4),
         stride=(4, 4)),
    Case("patches_many_rows", in_channels=70, out_channels=33, size=(6, 9), kernel=(2, 3),
         stride=(2, 3)),
    Case("patches_one_axis", in_channels=17, out_channels=18, size=(7, 9), kernel=(1, 2),
         stride=(3, 2)),
    Case("pointwise_no_image", batch=0, in_channels=16, out_channels=16, kernel=(1, 1)),
]  # fmt: skip


# The long sweep, in the manner of oneDNN's and CUTLASS's: every window, each with channel counts
# off all tile sizes in pairs, on two odd sizes of pictures.
CHANNELS = (1, 3, 17, 31, 33, 40, 72)
WINDOWS: dict[str, dict[str, Any]] = {
    "1x1": {"kernel": (1, 1)},
    "1x1_padded": {"kernel": (1, 1), "padding": (1, 1, 2, 2)},
    "1x1_strided": {"kernel": (1, 1), "stride": (2, 3), "padding": (1, 0, 0, 1)},
    "2x2": {"kernel": (2, 2), "padding": (1, 0, 1, 0)},
    "3x3": {"padding": (1, 1, 1, 1)},
    "3x3_strided": {"stride": (2, 2), "padding": (1, 1, 1, 1)},
    "4x2_strided": {"kernel": (4, 2), "stride": (1, 2), "padding": (2, 1, 0, 1)},
    "5x5": {"kernel": (5, 5), "padding": (2, 2, 2, 2)},
    "1x7": {"kernel": (1, 7), "padding": (0, 0, 3, 3)},
    "7x7_strided": {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3, 3, 3)},
    "stride_beyond_kernel": {"kernel": (2, 3), "stride": (5, 4), "padding": (1, 1, 1, 1)},
    "dilation": {"dilation": (6, 5), "padding": (6, 6, 5, 5)},
    "dilation_and_stride": {"kernel": (3, 2), "dilation": (4, 9), "stride": (3, 2)},
    "padding_beyond_kernel": {"kernel": (2, 2), "padding": (3, 4, 2, 5)},
}
# (groups, channels in and out of a group)
GROUPS = ((2, 17, 1), (3, 5, 31), (5, 8, 8), (2, 33, 40), (72, 1, 1), (33, 1, 2), (40, 1, 3))
GRID = [
    Case(
        name=f"{name}_{groups}x{k}_{groups}x{o}" if groups > 1 else f"{name}_{k}_{o}",
        batch=1 + (i + j) % 3,
        in_channels=groups * k,
        out_channels=groups * o,
        size=(29, 37) if (i + j) % 4 == 0 else (15, 19),
        groups=groups,
        **window,
    )
    for i, (name, window) in enumerate(WINDOWS.items())
    for j, (groups, k, o) in enumerate(
        [*((1, k, CHANNELS[(3 * i + 2 * n) % 7]) for n, k in enumerate(CHANNELS)), *GROUPS]
    )
]


def parameters(cases: Sequence[Any]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


def in_every_way(cases: list[Any]) -> Callable[..., Any]:
    """Runs a test for each case, in each layout, element type and algorithm."""

    def mark(test):
        for name, values in (("case", parameters(cases)), ("layout", LAYOUTS),
                             ("dtype", DTYPES), ("algorithm", ALGORITHMS)):  # fmt: skip
            test = pytest.mark.parametrize(name, values, ids=None if name == "case" else str)(test)
        return test

    return mark


def small(name: str, **changes: Any) -> Case:
    """The case of SMALL with that name."""
    return replace(next(case for case in SMALL if case.name == name), **changes)


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    # Every stride is unusual: width outermost, gaps between rows, an offset.
    n, c, h, w = tensor.shape
    room = torch.full((w, n, 2 * h + 1, c + 1), torch.nan, dtype=tensor.dtype)
    view = room.permute(1, 3, 2, 0)[:, 1:, 1::2, :]
    view.copy_(tensor)
    return view


def integers(size: tuple[int, ...], dtype: torch.dtype, seed: int, bound: int = 3) -> Tensor:
    """Whole numbers in [-bound, bound]: sums of their products are exact."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-bound, bound + 1, size, generator=generator, device="cpu")
    return numbers.to(torch.get_default_device(), dtype)


def normal(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    numbers = torch.randn(size, generator=generator, dtype=wide, device="cpu")
    return numbers.to(torch.get_default_device(), dtype)
