"""Layers: subclasses of torch's own, with the same parameters, initialisation and state_dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_convbp import functional

__all__ = ["ConvBP2d"]


def _check_constructor(name: str, value: Any, least: int, pair: bool) -> None:
    """nn.Conv2d finds these mistakes at the first call, or not at all."""
    values = tuple(value) if pair and isinstance(value, Sequence) else (value,)
    expected = f"an int >= {least}" + (f" or two ints >= {least}" if pair else "")
    message = f"{name} must be {expected}, but got {value!r}"
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise TypeError(message)
    if len(values) not in (1, 2) or any(v < least for v in values):
        raise ValueError(message)


class ConvBP2d(nn.Conv2d):
    """A :class:`torch.nn.Conv2d` whose forward and backward pass are L1 to L6 of the lecture.

    It *is* an ``nn.Conv2d``: the same arguments, parameters, initial weights from the same seed,
    hooks and state_dict; only what is computed with runs on torch_convbp's operators. All padding
    modes are there ("zeros", "reflect", "replicate", "circular").

    Shapes: input [N, in_channels, H, W] or [in_channels, H, W]; weight [out_channels,
    in_channels / groups, R, S]; bias [out_channels] or None. dtypes: float32, float64, bfloat16,
    float16.

    Raises:
        TypeError, ValueError: an argument of the constructor is out of range. nn.Conv2d's own
            checks, and those it leaves to the first call: kernel_size, stride and dilation at
            least 1, padding at least 0, one or two ints each, out_channels and groups at
            least 1, in_channels at least 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_constructor("in_channels", in_channels, 0, pair=False)
        _check_constructor("out_channels", out_channels, 1, pair=False)
        _check_constructor("kernel_size", kernel_size, 1, pair=True)
        _check_constructor("stride", stride, 1, pair=True)
        if not isinstance(padding, str):
            _check_constructor("padding", padding, 0, pair=True)
        _check_constructor("dilation", dilation, 1, pair=True)
        _check_constructor("groups", groups, 1, pair=False)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]  # nn.Conv2d checks it
            device,
            dtype,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: int | tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups
        )
