"""Where a test's tensors lie in memory, and what lies in the memory around them: NaN."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import torch_convbp as bp


def in_memory(values: Tensor, memory: str) -> Tensor:
    """The values where ``memory`` says: its letters name the dimensions, outermost first; a digit
    behind one takes every so manieth element along it, a star repeats the first (stride 0).

    "nhwc" is channels_last; "wn*ch2" has rows two apart, one image n times, and width outermost.
    What lies between the elements is NaN.
    """
    dims = "nchw"[4 - values.dim() :]
    parts = re.findall(r"([nchw])(\d|\*)?", memory)
    assert sorted(letter for letter, _ in parts) == sorted(dims), memory
    room_size = []
    for letter, how in parts:
        size = values.shape[dims.index(letter)]
        if how == "*":
            values = values.narrow(dims.index(letter), 0, min(size, 1)).expand(values.shape)
            room_size.append(min(size, 1))
        else:
            step = int(how or 1)
            room_size.append(size * step + (step > 1))  # and an offset
    room = torch.full(room_size, torch.nan, dtype=values.dtype)
    for d, (_, how) in enumerate(parts):
        if how and how != "*":
            room = room.narrow(d, 1, room.shape[d] - 1)
            room = room[(slice(None),) * d + (slice(None, None, int(how)),)]
    order = [letter for letter, _ in parts]
    room = room.permute([order.index(letter) for letter in dims])
    room.copy_(values[tuple(slice(n) for n in room.shape)])
    return room.expand(values.shape)


@contextmanager
def poisoned(algorithm: str) -> Iterator[None]:
    """An algorithm, and memory that is NaN until something is written to it."""
    torch.use_deterministic_algorithms(True)
    try:
        with bp.backends.cpu.flags(conv_algorithm=algorithm):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
