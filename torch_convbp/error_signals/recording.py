"""The error signals of a backward pass, recorded layer by layer.

The Functions of autograd/ compute the gradients: delta (L3), dL/da (L6), those of weight and bias
(L4, L5). But a Function does not know its layer. So, while a recording is on, hooks around each
layer's forward pass set ``here.layer`` to its module. The Function that runs there saves the module
as ``ctx.layer``, and its backward hands the gradients to ``record``. While no recording is on,
there are no hooks, and ``here.layer`` is None.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_convbp.error_signals.statistics import Statistics
from torch_convbp.ops import checks
from torch_convbp.ops.torch_private import (
    constant_while_tracing,
    is_legacy_batchedtensor,
    transforms_active,
)

__all__ = ["ErrorSignals", "Layer", "Record", "record_error_signals"]

WHAT = ("delta", "input_grad", "weight_grad", "bias_grad")
# Records stored per layer by default.
LIMITS = {"statistics": 1000, "tensors": 8}


class Layer(nn.Module):
    """A layer whose error signals can be recorded: the base of all layers in modules.py."""

    def __getstate__(self) -> Any:
        """State for copies and pickles: without recording hooks, as no recording is of a copy.

        Python 3.10 has no object.__getstate__.
        """
        parent: Any = super()
        state = parent.__getstate__() if hasattr(parent, "__getstate__") else vars(self)
        return _without_our_hooks(state) if isinstance(state, dict) else state


class _Here(threading.local):
    """The layer whose forward pass this thread is in."""

    layer: nn.Module | None = None

    def __init__(self) -> None:
        self.outer: list[nn.Module | None] = []


here = _Here()

# Recordings that are on. The tuple is replaced under the lock, and read without the lock.
_recordings: tuple[ErrorSignals, ...] = ()
_lock = threading.Lock()


# Stored form of one gradient; None where there is no gradient, or none was asked for.
Kept: TypeAlias = Statistics | Tensor | None


class Record(NamedTuple):
    """A layer's gradients from one call in a backward pass.

    number counts the layer's records from 0, dropped records included. delta is dL/dp
    (L3; for a layer without an activation dL/d output); input_grad is dL/d input (L6), None where
    the input needs none; weight_grad and bias_grad (L4, L5) are this pass's own share of
    ``.grad``, None where the parameter is frozen or missing.
    """

    number: int
    delta: Kept
    input_grad: Kept
    weight_grad: Kept
    bias_grad: Kept


def quantities(function: str, what: Iterable[str]) -> tuple[str, ...]:
    """The argument ``what`` of a function: which gradients are recorded."""
    several = isinstance(what, Iterable) and not isinstance(what, str)
    names = tuple(what) if several else ()
    if not names or any(name not in WHAT for name in names):
        raise ValueError(
            f"{function}(): argument 'what' must be one or more of {', '.join(WHAT)}, "
            f"in a sequence, but got {what!r}"
        )
    return names


class ErrorSignals(Mapping[str, Sequence[Record]]):
    """The records of each layer, by its name in the model; the last is the newest.

    Layers come in the order of their first run, then layers that have not run. A name that is no
    layer's raises KeyError. A copy has the records, not the model, and gains no more records.

    Raises:
        TypeError: model is no module.
        ValueError: model has no layer of torch_convbp, or another argument is out of range.
    """

    def __init__(
        self, model: nn.Module, keep: str, limit: int | None, what: Sequence[str] = WHAT
    ) -> None:
        checks.check_is_module("record_error_signals", model)
        if not isinstance(keep, str) or keep not in LIMITS:
            raise ValueError(
                "record_error_signals(): argument 'keep' must be 'statistics' or 'tensors', "
                f"but got {keep!r}"
            )
        limit = LIMITS[keep] if limit is None else limit
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(
                f"record_error_signals(): argument 'limit' must be an int >= 1, but got {limit!r}"
            )
        self._keep: Callable[[Tensor], Kept] = Statistics.of if keep == "statistics" else _copy
        self._what = quantities("record_error_signals", what)
        self._layers: dict[nn.Module, str] = {
            m: name for name, m in model.named_modules() if isinstance(m, Layer)
        }
        if not self._layers:
            raise ValueError(
                "record_error_signals(): argument 'model' has no layer of torch_convbp; "
                "torch_convbp.convert(model) makes some"
            )
        for layer, name in self._layers.items():
            if any(parameter.is_complex() for parameter in layer.parameters()):
                raise ValueError(
                    f"record_error_signals(): layer {shown(name)} has complex parameters, "
                    "and error signals of real numbers alone can be recorded"
                )
        limit = min(limit, sys.maxsize)  # a deque's largest length
        self._records = {name: deque[Record](maxlen=limit) for name in self._layers.values()}
        self._counts = dict.fromkeys(self._records, 0)
        self._ran: dict[str, None] = {}
        self._traced: dict[str, None] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            records = {name: kept.copy() for name, kept in self._records.items()}
            state = vars(self) | {"_records": records, "_counts": self._counts.copy()}
        del state["_lock"]
        return state | {"_layers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def names(self) -> list[str]:
        """The layers' names, in the order of the forward pass."""
        ran = self._ran.copy()  # other threads add names
        return [*ran, *(name for name in self._records if name not in ran)]

    def traced(self) -> list[str]:
        """Layers that ran inside torch.compile or a torch.func transform, and were not recorded."""
        return [name for name in self.names() if name in self._traced]

    def complaint(self) -> str | None:
        """Why records that a user may expect are missing; None where all is well."""
        if traced := self.traced():
            return (
                "these layers ran inside torch.compile or a transform of torch.func, where error "
                "signals cannot be recorded: " + ", ".join(map(shown, traced))
            )
        if not any(self._counts.values()):
            return (
                "nothing was recorded. Both the forward and the backward pass must be inside the "
                "block, and not inside a model that torch.compile has compiled"
            )
        return None

    def __getitem__(self, name: str) -> Sequence[Record]:
        with self._lock:
            if name not in self._records:
                raise KeyError(f"{name!r} is no layer of torch_convbp here; names() lists those")
            return tuple(self._records[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._records)

    def clear(self) -> None:
        """Drops all records, but not their count."""
        with self._lock:
            for records in self._records.values():
                records.clear()

    def __repr__(self) -> str:
        """A table of each layer's newest record."""
        width = max(len("layer"), *(len(shown(name)) for name in self._records))
        columns = ("records", "delta rms", "zeros", *(f"{what} rms" for what in WHAT[1:]))
        lines = [f"{'layer':<{width}}  " + "  ".join(columns)]
        for name, records in self.items():
            cells = [str(self._counts[name])]
            if records:
                found = [_statistics(kept) for kept in records[-1][1:]]
                cells += [f"{s.rms:.3g}" if s else "" for s in found]
                cells.insert(2, f"{found[0].share_of_zeros:.0%}" if found[0] else "")
            line = "  ".join(
                f"{cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=False)
            )
            lines.append(f"{shown(name):<{width}}  {line}".rstrip())
        return "\n".join(lines)

    def _take(self, layer: nn.Module, gradients: Mapping[str, Tensor | None]) -> None:
        name = self._layers.get(layer)
        if name is None:
            return
        asked = {w: g if w in self._what else None for w, g in gradients.items()}
        if any(g is not None and not _has_numbers(g) for g in asked.values()):
            self._traced.setdefault(name)
            return
        if asked["input_grad"] is not None:
            asked["input_grad"] = _before_padding(layer, asked["input_grad"])
        kept = {w: None if g is None else self._keep(g) for w, g in asked.items()}
        with self._lock:
            self._records[name].append(Record(self._counts[name], **kept))
            self._counts[name] += 1


def shown(name: str) -> str:
    """A layer's name to print."""
    return name or "(the model itself)"


def _copy(tensor: Tensor) -> Tensor:
    # A copy: a gradient that is handed on may become a parameter's .grad, and be changed there.
    return tensor.detach().clone()


def _statistics(kept: Kept) -> Statistics | None:
    return Statistics.of(kept) if isinstance(kept, Tensor) else kept


def _has_numbers(tensor: Tensor) -> bool:
    """Does the tensor hold numbers, and is no stand-in of a tracer or a transform?"""
    return type(tensor) is Tensor and not (transforms_active() or is_legacy_batchedtensor(tensor))


def _before_padding(layer: nn.Module, input_grad: Tensor) -> Tensor:
    """dL/d input, where the convolution itself gets a padded input (padding_mode)."""
    mode = getattr(layer, "padding_mode", "zeros")
    if mode == "zeros":
        return input_grad
    padding: Any = layer._reversed_padding_repeated_twice
    left, right, top, bottom = padding
    height, width = input_grad.shape[-2] - top - bottom, input_grad.shape[-1] - left - right
    with torch.enable_grad():
        input = input_grad.new_zeros((*input_grad.shape[:-2], height, width), requires_grad=True)
        padded = F.pad(input, padding, mode=mode)
    return torch.autograd.grad(padded, input, input_grad.detach())[0]


# --- what runs in the forward and in the backward pass --------------------------------------


def record(
    layer: nn.Module,
    delta: Tensor,
    input_grad: Tensor | None,
    weight_grad: Tensor | None,
    bias_grad: Tensor | None,
) -> None:
    """Hands what a layer's backward pass has computed to the recordings that are on."""
    if torch.compiler.is_compiling():
        return
    gradients = dict(zip(WHAT, (delta, input_grad, weight_grad, bias_grad), strict=True))
    for recording in _recordings:
        recording._take(layer, gradients)


@constant_while_tracing
def _note_traced(layer_id: str) -> None:
    """Notes a layer that is not recorded.

    torch.compile calls this function while tracing and stores only its result, so compiled code
    has no such call. The argument is an id because arguments must be constants; as text, since a
    number that differs from call to call becomes a symbol.
    """
    for recording in _recordings:
        for layer, name in recording._layers.items():
            if str(id(layer)) == layer_id:
                recording._ran.setdefault(name)
                recording._traced.setdefault(name)


def _enter(layer_id: str, layer: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        _note_traced(layer_id)
        return
    here.outer.append(here.layer)
    if transforms_active():
        _note_traced(layer_id)
        here.layer = None
        return
    here.layer = layer
    for recording in _recordings:
        if layer in recording._layers:
            recording._ran.setdefault(recording._layers[layer])


def _leave(layer: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        here.layer = here.outer.pop() if here.outer else None


def _hook(layer: nn.Module) -> Callable[[], None]:
    """Puts hooks close to the forward pass, last of the pre-hooks and first of the forward hooks;
    returns what takes them off.

    torch numbers hooks from 0 on and never gives a number twice, and torch.compile guards the
    number of an always-called hook: each block would compile the layer anew. Our numbers are
    negative, and the same in each block.
    """
    hooks: Any = layer._forward_hooks
    number = next(n for n in itertools.count(-1, -1) if n not in hooks)
    layer._forward_pre_hooks[number] = functools.partial(_enter, str(id(layer)))
    hooks[number] = _leave
    hooks.move_to_end(number, last=False)
    layer._forward_hooks_always_called[number] = True

    def remove() -> None:
        for kind in (layer._forward_pre_hooks, hooks, layer._forward_hooks_always_called):
            kind.pop(number, None)

    return remove


def _without_our_hooks(state: dict[str, Any]) -> dict[str, Any]:
    """A module's state, as it is while no recording is on."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called")
    hooks = {name: state[name] for name in kinds if name in state}
    ours = {
        key
        for of_kind in hooks.values()
        for key, hook in of_kind.items()
        if getattr(hook, "func", hook) in (_enter, _leave)
    }
    kept = {
        name: type(of_kind)((key, hook) for key, hook in of_kind.items() if key not in ours)
        for name, of_kind in hooks.items()
    }
    return {**state, **kept} if ours else state


@contextlib.contextmanager
def switched_on(signals: ErrorSignals) -> Iterator[None]:
    """Keeps the recording on during a ``with`` block."""
    global _recordings
    with contextlib.ExitStack() as stack:
        for layer in signals._layers:
            stack.callback(_hook(layer))
        with _lock:
            _recordings = (*_recordings, signals)
        try:
            yield
        finally:
            with _lock:
                _recordings = tuple(r for r in _recordings if r is not signals)


@contextlib.contextmanager
def record_error_signals(
    model: nn.Module,
    *,
    keep: str = "statistics",
    limit: int | None = None,
    what: Sequence[str] = WHAT,
) -> Iterator[ErrorSignals]:
    """Records the error signals of torch_convbp's layers while a ``with`` block lasts.

        with bp.record_error_signals(model) as signals:
            loss(model(input), target).backward()
        signals["features.3"][-1].delta.rms

    The forward pass must be in the block as well as the backward pass. Each layer gains a record
    each time a backward pass goes through it: two in one pass if it was called twice.

    Args:
        model: its layers as they are now; layers added in the block are not recorded.
        keep: "statistics" of each gradient, computed at once, or the "tensors" themselves, as
            copies.
        limit: number of records stored per layer, the newest; None for 1000 of statistics and 8
            of tensors.
        what: one or more of "delta", "input_grad", "weight_grad" and "bias_grad".

    Returns:
        A context manager that gives ``ErrorSignals``, a mapping of the layers' names to their
        records. The mapping can be read in the block and after it.

    Warns:
        UserWarning: after the block, where layers ran inside torch.compile or a transform of
            torch.func, where nothing can be recorded; or where nothing was recorded at all.

    Raises:
        TypeError, ValueError: model is no module, has no layer of torch_convbp, or has a
            complex layer; another argument is out of range.
    """
    signals = ErrorSignals(model, keep, limit, what)
    with switched_on(signals):
        yield signals
    if complaint := signals.complaint():
        warnings.warn(f"record_error_signals: {complaint}", stacklevel=3)
