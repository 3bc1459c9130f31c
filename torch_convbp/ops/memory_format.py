"""Memory formats of the operators' results: channels_last or contiguous, as torch's would be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_convbp.ops import checks


def new_tensor(like: Tensor, size: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    """An empty tensor of that size and format; RuntimeError where it would not fit."""
    checks.check_fits(size, like.element_size())
    return like.new_empty(size).to(memory_format=memory_format)


def is_channels_last(tensor: Tensor) -> bool:
    """Do the strides put the channels innermost? (torch's suggest_memory_format() rule: where
    sizes of 1 leave both readings open, the tensor counts as contiguous.)"""
    size, stride = tensor.size(), tensor.stride()
    if stride[1] == 0:
        return False
    least: int = 0
    for d in (1, 3, 2, 0):
        if size[d] == 0 or stride[d] < least:
            return False
        if d == 0 and least == stride[1]:
            return False
        least = stride[d] * size[d] if size[d] > 1 else stride[d]
    return True


def format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last or contiguous, by the tensor's strides."""
    if tensor.dim() == 4 and is_channels_last(tensor):
        return torch.channels_last
    return torch.contiguous_format


def result_format(
    a: Tensor, b: Tensor, asked: torch.memory_format | None = None
) -> torch.memory_format:
    """The format asked for; else channels_last if either tensor is."""
    if asked is not None:
        if asked not in (torch.contiguous_format, torch.channels_last):
            raise RuntimeError(
                "Expected memory_format to be torch.contiguous_format or torch.channels_last, but "
                "got another one"
            )
        return asked
    # The usual case, told at once: of neither are the channels innermost.
    if a.stride(3) < a.stride(1) and b.stride(3) < b.stride(1):
        return torch.contiguous_format
    if is_channels_last(a) or is_channels_last(b):
        return torch.channels_last
    return torch.contiguous_format
