"""Steps of a model that all start alike, and functions that are timed in turn."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torch_convbp.random_states import RandomStates

__all__ = [
    "Autocast",
    "Clock",
    "Step",
    "Times",
    "Watch",
    "autocast_as",
    "fill_randomly",
    "in_turn",
    "least_median",
    "map_tensors",
    "strided_copy",
    "tensors_in",
]

T = TypeVar("T")
Times = tuple[float, float]  # seconds of a forward and of a backward pass

LEAST_TURNS, MOST_TURNS = 5, 100


# --- tensors in arguments and outputs


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with its tensors changed, also in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [map_tensors(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value, also in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)):
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]


def strided_copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides, which needs a gradient where the tensor does."""
    values = tensor.detach()
    channels_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    if values.is_contiguous() or channels_last:
        values = values.clone()
    else:  # clone() may choose other strides
        memory, size = values.untyped_storage().clone(), (values.shape, values.stride())
        values = values.new_empty(0).set_(memory, values.storage_offset(), *size)
    return values.requires_grad_(tensor.requires_grad and torch.is_grad_enabled())


def fill_randomly(tensor: Tensor) -> Tensor:
    """Fills all the tensor's memory with random numbers, always the same."""
    memory = tensor.untyped_storage()
    size = (memory.nbytes() // tensor.element_size(),)
    generator = torch.Generator(tensor.device).manual_seed(0)
    tensor.new_empty(0).set_(memory, 0, size, (1,)).normal_(generator=generator)
    return tensor


# --- what a step depends on


class Autocast(NamedTuple):
    """The state of torch.autocast for a kind of device."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def now(device: str) -> Autocast:
        enabled = torch.is_autocast_enabled(device)
        return Autocast(device, torch.get_autocast_dtype(device), enabled)


@contextlib.contextmanager
def autocast_as(states: Iterable[Autocast]) -> Iterator[None]:
    """torch.autocast in these states, with no weights cast before."""
    with contextlib.ExitStack() as stack:
        for state in states:
            stack.enter_context(torch.autocast(*state))
        torch.clear_autocast_cache()
        yield


@dataclass(frozen=True)
class Clock:
    """Seconds from a call until its work is done, also on other devices than the CPU."""

    devices: Collection[torch.device]

    def __call__(self, run: Callable[[], T]) -> tuple[T, float]:
        self._wait()
        start = time.perf_counter()
        result = run()
        self._wait()
        return result, time.perf_counter() - start

    def _wait(self) -> None:
        for device in self.devices:
            torch.accelerator.synchronize(device)


class Watch:
    """How many CPUs other programs have used since this object was made."""

    def __init__(self) -> None:
        self.start = self._now()

    def foreign_cpus(self) -> float:
        """An average; 0 where the system does not say."""
        wall, own, busy = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return max(0.0, busy - own) / wall

    def _now(self) -> tuple[float, float, float]:
        """Seconds on the clock, CPU seconds of this process, and of all programs."""
        try:
            ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        except OSError:
            ticks = ["0"] * 8
        user, nice, system, _idle, _iowait, *rest = map(int, ticks)
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy


@dataclass(frozen=True)
class Step:
    """A step of a model, always from the same inputs and random states: forward pass, and backward
    pass from random gradients of all outputs that need one."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    autocasts: Sequence[Autocast]
    states: RandomStates
    clock: Clock

    def __call__(self, model: nn.Module) -> Times:
        for parameter in model.parameters():
            parameter.grad = None
        self.states.restore()
        inputs, kwargs = map_tensors(strided_copy, self.arguments)
        with autocast_as(self.autocasts):
            output, forward = self.clock(lambda: model(*inputs, **kwargs))
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if not outputs:
            return forward, 0.0
        grads = [fill_randomly(torch.empty_like(output, requires_grad=False)) for output in outputs]
        _, backward = self.clock(lambda: torch.autograd.backward(outputs, grads))
        return forward, backward


# --- turns


def in_turn(runs: Mapping[str, Callable[[], Times]], seconds: float) -> dict[str, list[Times]]:
    """Times of all runs, after one to warm up. Every other turn goes the other way round."""
    for run in runs.values():
        run()
    taken: dict[str, list[Times]] = {side: [] for side in runs}
    end = time.perf_counter() + seconds
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.perf_counter() > end:
            break
        for side in list(runs)[:: -1 if turn % 2 else 1]:
            taken[side].append(runs[side]())
    return taken


def least_median(sample: Sequence[float]) -> float:
    """What the sample is of has a median that is not smaller, but for a chance of 1/32."""
    size, rank, chance = len(sample), 0, 0.5 ** len(sample)  # that ``rank`` are below it, or fewer
    while chance <= 1 / 32:
        rank += 1
        chance += math.comb(size, rank) * 0.5**size
    return sorted(sample)[max(rank - 1, 0)]
