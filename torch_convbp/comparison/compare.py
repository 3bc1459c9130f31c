"""``compare(model, *inputs)``.

The model itself never runs. Two copies do, which share copies of its Parameters: one has torch's
layers, one has ours. A step of the first records what each layer gets: inputs, modes, and the
gradient of the output. Then each layer runs by itself with that, and last the whole step.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import statistics
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from torch_convbp import backends, info
from torch_convbp.comparison import result
from torch_convbp.comparison.layers import copy_of, make_torchs, pairs, record, row
from torch_convbp.comparison.running import (
    Autocast,
    Clock,
    Step,
    Watch,
    autocast_as,
    in_turn,
    tensors_in,
)
from torch_convbp.convert import OURS, convert
from torch_convbp.ops import checks
from torch_convbp.random_states import RandomStates

__all__ = ["compare"]

SHARE_OF_STEP = 1 / 3  # of the seconds


def compare(
    model: nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    seconds: float = 20.0,
) -> result.Comparison:
    """Is it worth it on this model? Times, memory and errors of each convolution, pool and dense
    layer, as torch's and as ours, and times of a whole training step.

        print(bp.compare(model, torch.randn(8, 3, 224, 224)))

    A step is ``model(*inputs, **kwargs)``, in the model's present mode (train or eval) and under
    the caller's torch.autocast, and a backward pass from random gradients of the outputs. Each
    layer runs by itself, on the inputs and output gradients that it gets in a step with torch's
    layers, in their memory formats. Both sides run in turn.

    Only copies of the model run, so that its parameters, buffers, ``.grad`` and hooks stay as they
    are, and so do the random states, also after an exception. Hooks run with the copies. They need
    the memory of two steps, and of the parameters once more.

    Args:
        model: any module, also one that is converted, in part or with activations fused. A model of
            torch.compile runs compiled in the step; its layers by themselves do not.
        inputs: what the model is called with: tensors, also in tuples, lists and dicts.
        kwargs: keyword arguments of the call.
        seconds: about how long to measure. Each layer and the step run six times at least, which
            may take longer.

    Returns:
        What was found; prints as a table. ``.faster`` are the names of the layers that gain, for
        ``bp.convert(model, layers=...)``; ``.rows`` and ``.step`` have the numbers.

    Raises:
        TypeError: model is no torch.nn.Module, kwargs no mapping, or seconds no number.
        ValueError: seconds is not positive; model is on the meta device, has lazy layers that are
            not initialised, or its call runs no layer that bp.convert knows.
        RuntimeError: model cannot be copied. What the model raises is raised as it is.
    """
    checks.check_is_module("compare", model)
    if not isinstance(kwargs, (Mapping, type(None))):
        given = type(kwargs).__name__
        raise TypeError(f"compare(): argument 'kwargs' must be a mapping, not {given}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        given = type(seconds).__name__
        raise TypeError(f"compare(): argument 'seconds' must be a number, not {given}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"compare(): argument 'seconds' must be positive, but got {seconds}")
    arguments = (inputs, dict(kwargs or {}))
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(arguments)]
    _check_has_values(model, tensors)
    autocasts = [Autocast.now(kind) for kind in {"cpu", *(t.device.type for t in tensors)}]
    clock = Clock({tensor.device for tensor in tensors if tensor.device.type != "cpu"})
    step = Step(arguments, autocasts, RandomStates(), clock)
    try:
        off = [autocast._replace(enabled=False) for autocast in autocasts]
        with torch.inference_mode(False), torch.enable_grad(), autocast_as(off):
            return _compare(model, step, seconds)
    finally:
        step.states.restore()
        _progress("")


def _check_has_values(model: nn.Module, tensors: Sequence[Tensor]) -> None:
    for name, module in model.named_modules():
        lazy: Any = module
        if isinstance(module, LazyModuleMixin) and lazy.has_uninitialized_params():
            raise ValueError(
                f"compare(): {name!r} is lazy and not initialised yet; "
                "run a batch through the model first"
            )
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            "compare(): the model or an input is on the meta device, where nothing is computed"
        )


def _compare(model: nn.Module, step: Step, seconds: float) -> result.Comparison:
    try:
        ours = copy_of(model)
    except Exception as error:  # a model's deepcopy may raise anything
        kind = type(model).__name__
        raise RuntimeError(f"compare(): {kind} cannot be copied: {error}") from error
    theirs = copy_of(ours, ours.parameters())
    with warnings.catch_warnings(record=True) as left_alone:
        warnings.simplefilter("always")
        make_torchs(theirs)
        convert(ours, pooling=True, dense=True)
    notes = [str(warning.message) for warning in left_alone]
    layers = pairs(theirs, ours)
    calls = record({name: pair.torch for name, pair in layers.items()}, theirs, step)
    if not calls:
        raise ValueError(
            "\n".join(["compare(): model calls no layer that bp.convert knows", *notes])
        )
    if missing := layers.keys() - {call.name for call in calls}:
        notes.append(f"not called: {', '.join(name for name in layers if name in missing)}")

    rows, watch = [], Watch()
    for i, call in enumerate(calls):
        _progress(f"[{'#' * (20 * i // len(calls)):20}] {i + 1} of {len(calls)}: {call.name}")
        share = seconds * (1 - SHARE_OF_STEP) / len(calls)
        rows.append(row(call, layers[call.name], share))
    _progress(f"[{'#' * 20}] the whole step")
    models = {"torch": theirs, "ours": ours}
    if faster := result.names_that_gain(rows):
        models["faster"] = copy_of(ours, ours.parameters())
        for name in layers.keys() - faster:
            make_torchs(models["faster"].get_submodule(name))
    runs = {side: functools.partial(step, copied) for side, copied in models.items()}
    taken = in_turn(runs, seconds * SHARE_OF_STEP)
    ms = {side: 1e3 * statistics.median(map(sum, times)) for side, times in taken.items()}
    has_backward = any(backward for _, backward in taken["torch"])
    whole = result.Step(ms["torch"], ms["ours"], ms.get("faster"), has_backward)
    if converted := [m for m in model.modules() if isinstance(m, tuple(OURS.values()))]:
        notes.append(
            f"{len(converted)} layer(s) were ours before: bp.revert(model) first, then convert"
        )
    if not has_backward:
        notes.append("no output needs a gradient: the forward pass alone was measured")
    if (foreign := watch.foreign_cpus()) > (os.cpu_count() or 1) - torch.get_num_threads() + 0.1:
        notes.append(
            f"other programs used {foreign:.1f} CPUs meanwhile: repeat it when they do not"
        )
    return result.Comparison(tuple(rows), whole, _machine(step.clock.devices), tuple(notes))


def _machine(devices: Iterable[torch.device]) -> str:
    gpus = {torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"}
    cpu = f"{info.processor()}, {backends.cpu.capability()}, threads: {torch.get_num_threads()}"
    ours = info.versions()["torch_convbp"]
    return f"{', '.join(gpus) or cpu}; torch {torch.__version__}, torch_convbp {ours}"


def _progress(text: str) -> None:
    """Puts the text in place of the last one, in a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        print(f"\r\033[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)
