"""compare: what it lists, that its errors are true, and that it leaves the model alone.

Speed is asserted nowhere.
"""

from __future__ import annotations

import io
import math
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from twins import PRODUCTS

import torch_convbp as bp
from torch_convbp.comparison import compare as comparing
from torch_convbp.comparison.result import Comparison, Row, Side, Step, names_that_gain
from torch_convbp.comparison.running import (
    Watch,
    fill_randomly,
    least_median,
    strided_copy,
)

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]

BRIEF = 1e-3  # seconds; each side still takes the least number of turns

# Name, kind, input's shape, calls; as in a row.
Listed = tuple[str, str, tuple[int, ...], int]


def image(*size: int) -> Tensor:
    return normal(size, torch.float32, seed=1).to(torch.get_default_device())


def every_kind() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, (3, 1), stride=(2, 1), dilation=2, groups=8),
        nn.Dropout(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 1 * 4, 5),
    )


EVERY_KIND: list[Listed] = [
    ("0", "conv 8 3x3", (2, 3, 16, 16), 1),
    ("3", "maxpool 2x2 s2", (2, 8, 16, 16), 1),
    ("4", "conv 16 3x1 s2x1 d2 g8", (2, 8, 8, 8), 1),
    ("6", "avgpool 2x2 s2", (2, 16, 2, 8), 1),
    ("8", "linear 5", (2, 64), 1),
]
TWO: list[Listed] = [("0", "conv 4 3x3", (2, 3, 16, 16), 1), ("2", "conv 4 3x3", (2, 4, 14, 14), 1)]


def two(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *(between or [nn.ReLU()]), nn.Conv2d(4, 4, 3))


class Shared(nn.Module):
    """One layer under two names, with inputs of two shapes; the picture needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.same = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.one(self.one(input=x)))
        return self.one(self.pool(x))


class Captions(nn.Module):
    """Integers and keywords in, a dict out, and a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.dense = nn.Embedding(10, 6), nn.Linear(6, 2)
        self.picture, self.unused = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 3, 1)

    def forward(self, ids: Tensor, *, picture: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        x = self.picture(picture).mean((2, 3)) + self.words(ids).mean(1)
        x = self.dense(x) * options["scale"]
        return {"logits": x, "parts": (ids, [x.square()]), "none": None}


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = two()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x.requires_grad_(), use_reentrant=False)


class AutocastInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = two()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.layers(x)


class Strides(nn.Module):
    """The pool gets a view with gaps, and its output's gradient is one number many times."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x[:, :2, ::2]).sum()


def legacy_norms() -> nn.Module:
    """Their hooks compute the weight; spectral_norm's state moves on in each call."""
    model = two()
    nn.utils.weight_norm(model[0])
    nn.utils.spectral_norm(model[2])
    model(image(2, 3, 16, 16))  # the weight is no leaf any more
    return model


def parametrized() -> nn.Module:
    model = two()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    return model


def frozen() -> nn.Module:
    model = two()
    model[0].requires_grad_(False)
    return model


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    rows: list[Listed]
    inputs: Callable[[], tuple[Any, ...]] = lambda: (image(2, 3, 16, 16),)
    kwargs: dict[str, Callable[[], Any]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    forward_only: tuple[int, ...] = ()  # rows without a backward pass


CASES = {
    "every kind": Case(every_kind, EVERY_KIND),
    "evaluation": Case(lambda: every_kind().eval(), EVERY_KIND),
    "converted": Case(lambda: bp.convert(every_kind(), pooling=True), EVERY_KIND),
    "fused": Case(lambda: bp.convert(two(), fuse_activations=True), TWO),
    "activation in the layer": Case(
        lambda: nn.Sequential(
            bp.ConvBP2d(3, 4, 3, activation="silu"),
            nn.Flatten(),
            bp.LinearBP(784, 2, activation="gelu"),
        ),
        [("0", "conv 4 3x3 silu", (2, 3, 16, 16), 1), ("2", "linear 2 gelu", (2, 784), 1)],
    ),
    "the model itself": Case(lambda: nn.Conv2d(3, 4, 3), [("", *TWO[0][1:])]),
    "shared": Case(
        Shared,
        [
            ("one", "conv 3 3x3", (2, 3, 16, 16), 1),
            ("one", "conv 3 3x3", (2, 3, 16, 16), 2),
            ("pool", "maxpool 2x2 s2", (2, 3, 16, 16), 1),
            ("one", "conv 3 3x3", (2, 3, 8, 8), 1),
        ],
    ),
    "a dict": Case(
        Captions,
        [("picture", "conv 6 3x3", (2, 3, 16, 16), 1), ("dense", "linear 2", (2, 6), 1)],
        lambda: (torch.arange(8).view(2, 4),),
        {"picture": lambda: image(2, 3, 16, 16), "options": lambda: {"scale": 2}},
    ),
    "frozen": Case(frozen, TWO, forward_only=(0,)),
    "a checkpoint": Case(
        Checkpointed, [(f"layers.{name}", *rest, 2) for name, *rest, _ in TWO]
    ),
    "strides": Case(Strides, [("pool", "avgpool 2x2 s2", (2, 2, 8, 16), 1)],
                    lambda: (image(2, 3, 16, 16).requires_grad_(),)),
    "without a batch": Case(
        lambda: nn.Conv2d(3, 4, 3), [("", "conv 4 3x3", (3, 8, 8), 1)], lambda: (image(3, 8, 8),)
    ),
    "an empty batch": Case(
        two, [(name, kind, (0, *shape[1:]), 1) for name, kind, shape, _ in TWO],
        lambda: (image(0, 3, 16, 16),),
    ),
    "hooks with the weight": Case(legacy_norms, TWO),
    "parametrized": Case(parametrized, TWO),
    "DataParallel": Case(
        lambda: nn.DataParallel(two()), [(f"module.{name}", *rest) for name, *rest in TWO]
    ),
    "channels_last": Case(
        lambda: channels_last(every_kind()), EVERY_KIND,
        lambda: (channels_last(image(2, 3, 16, 16)),),
    ),
    "float64": Case(
        lambda: two().double(), TWO, lambda: (image(2, 3, 16, 16).double(),),
        dtype=torch.float64,
    ),
    "complex64": Case(
        lambda: two(nn.Identity()).to(torch.complex64), TWO,
        lambda: (image(2, 3, 16, 16).to(torch.complex64),),
    ),
}  # fmt: skip


def compare(case: Case) -> Comparison:
    kwargs = {name: make() for name, make in case.kwargs.items()}
    return bp.compare(case.model(), *case.inputs(), kwargs=kwargs, seconds=BRIEF)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_listed(name: str) -> None:
    """Rows, and errors within as many roundings as there are products in a sum."""
    torch.manual_seed(0)
    case = CASES[name]
    found = compare(case)
    assert [(row.name, row.kind, row.input_shape, row.calls) for row in found.rows] == case.rows
    for i, row in enumerate(found.rows):
        for side in (row.torch, row.ours):
            assert side.error <= PRODUCTS * torch.finfo(case.dtype).eps, (row.name, side)
            assert side.forward_ms > 0 and (side.backward_ms > 0) == (i not in case.forward_only)
        assert 0 < row.least_ratio < math.inf
    assert found.step.has_backward and min(found.step.torch_ms, found.step.ours_ms) > 0
    assert all(row.name in str(found) and row.kind in str(found) for row in found.rows)


def test_names_are_those_of_the_model() -> None:
    model = every_kind()
    found = bp.compare(model, image(2, 3, 16, 16), seconds=BRIEF)
    names = [name for name, *_ in EVERY_KIND]
    assert {*found.faster} <= {row.name for row in found.rows} == {*names}
    bp.convert(model, layers=names)
    assert {*names} == {n for of_kind in bp.conversion(model).ours.values() for n in of_kind}


@pytest.mark.parametrize("where", ["outside", "inside", "bfloat16"])
def test_bfloat16(where: str) -> None:
    """Two roundings of each factor and one of the result, of 2^-9 each: more than float32 would
    show, and less than 32 of them."""
    model, input = two(), image(2, 3, 16, 16)
    if where == "outside":
        with torch.autocast(input.device.type, torch.bfloat16):
            found = bp.compare(model, input, seconds=BRIEF)
            assert torch.is_autocast_enabled(input.device.type)
    elif where == "inside":
        found = bp.compare(AutocastInside(), input, seconds=BRIEF)
    else:
        found = bp.compare(model.bfloat16(), input.bfloat16(), seconds=BRIEF)
    for row in found.rows:
        assert 2.0**-12 < row.torch.error < 2.0**-4
        assert 2.0**-12 < row.ours.error < 2.0**-4


convolved = bp.ConvBP2d._convolved


def wrong_output(*args: Any) -> Tensor:
    return 1.25 * convolved(*args)


def wrong_gradient(layer: bp.ConvBP2d, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """The bias's gradient is right, the input's and the weight's are 3/4 of it."""
    part = convolved(layer, input.detach(), weight.detach(), *args)
    both = convolved(layer, input, weight, *args)
    return both + 0.25 * (part - both)


@pytest.mark.parametrize("wrong", [wrong_output, wrong_gradient])
def test_a_wrong_layer_is_seen(wrong: Callable[..., Tensor], monkeypatch) -> None:
    monkeypatch.setattr(bp.ConvBP2d, "_convolved", wrong)
    found = bp.compare(two(), image(2, 3, 16, 16), seconds=BRIEF)
    for row in found.rows:
        output = 0.25 if wrong is wrong_output else 0
        assert row.ours.output_error == pytest.approx(output, abs=1e-3)
        assert row.ours.gradient_error == pytest.approx(0.25, abs=1e-3)
        assert row.torch.error < 1e-4
        assert f"{row.ours.error:.0e}".replace("-0", "-") in str(found)


def test_memory() -> None:
    """A convolution keeps its input; of a pool, torch keeps input and indices, we keep a byte."""
    found = bp.compare(every_kind(), image(2, 3, 16, 16), seconds=BRIEF)
    conv, pool = found.rows[:2]
    assert conv.torch.saved_bytes == conv.ours.saved_bytes == 4 * (2 * 3 * 16 * 16)
    inputs = 2 * 8 * 16 * 16
    assert (pool.torch.saved_bytes, pool.ours.saved_bytes) == (
        4 * inputs + 8 * inputs // 4,
        inputs // 4,
    )


def test_memory_of_several_calls() -> None:
    """Each call keeps its input, but not the first of two under a checkpoint."""
    shared, checkpointed = (compare(CASES[name]).rows for name in ("shared", "a checkpoint"))
    assert [row.ours.saved_bytes for row in shared[:2]] == [2 * 3 * 16 * 16 * 4 * n for n in (1, 2)]
    assert [row.ours.saved_bytes for row in checkpointed] == [2 * 3 * 16**2 * 4, 2 * 4 * 14**2 * 4]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "gaps": lambda x: x[:, :2, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1, :, :, :1].expand(5, -1, -1, 7),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("needs_grad", [True, False])
def test_copies_have_the_same_strides(name: str, needs_grad: bool) -> None:
    view = VIEWS[name](image(2, 3, 4, 5)).detach().requires_grad_(needs_grad)
    copied = strided_copy(view)
    assert torch.equal(copied, view) and copied.stride() == view.stride()
    assert copied.is_leaf and copied.requires_grad == needs_grad
    assert copied.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()
    filled = fill_randomly(strided_copy(view).detach())
    assert filled.stride() == view.stride() and not torch.equal(filled, view)


# --- what is left alone


class Random(nn.Module):
    """Draws from all sources, changes its input and a buffer, and fails in a chosen call."""

    def __init__(self, failing: int = 0, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.layers = every_kind()
        self.layers[4].requires_grad_(False)
        self.layers[1].eval()
        self.failing, self.error, self.calls = failing, error, [0]
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.calls[0] += 1
        if self.calls[0] == self.failing:
            raise self.error("chosen")
        return self.layers(x.add_(random.random() + np.random.rand() + torch.rand(()).item()))


def snapshot(model: nn.Module) -> Any:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    grads = {name: p.grad for name, p in model.named_parameters()}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, type(m), m.training, [dict(vars(m)[kind]) for kind in hooks])
        for name, m in model.named_modules()
    ]
    copies = {name: (id(t), t.detach().clone(), t.requires_grad) for name, t in tensors.items()}
    return copies, {n: g if g is None else (id(g), g.clone()) for n, g in grads.items()}, modules


def random_states() -> Any:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def assert_unchanged(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert (before == after).all()
    elif isinstance(before, dict):
        assert_unchanged([*before.items()], [*after.items()])
    elif isinstance(before, (tuple, list)):
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert_unchanged(a, b)
    else:
        assert before == after


# The first call is recorded; then the steps are timed.
ENDS = {
    "returns": (0, RuntimeError),
    "raises at once": (1, RuntimeError),
    "raises in a step": (4, RuntimeError),
    "is interrupted": (4, KeyboardInterrupt),
}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_model_is_left_as_it_is(end: str, converted: bool) -> None:
    failing, error = ENDS[end]
    model = Random(failing, error)
    if converted:
        bp.convert(model, pooling=True)
    seen: list[int] = []
    model.layers[0].register_forward_hook(lambda *args: seen.append(1))
    model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    input = image(2, 3, 16, 16)
    input_before, grad_mode = input.clone(), torch.is_grad_enabled()
    before, states = snapshot(model), random_states()
    if failing:
        with pytest.raises(error, match="chosen"):
            bp.compare(model, input, seconds=BRIEF)
    else:
        bp.compare(model, input, seconds=BRIEF)
    assert_unchanged(before, snapshot(model))
    assert_unchanged(states, random_states())
    assert torch.equal(input, input_before) and input.grad is None
    assert torch.is_grad_enabled() == grad_mode and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_modes(mode: Callable[[], Any]) -> None:
    """A step has a backward pass, whatever the caller's mode."""
    with mode():
        model, input = two(), image(2, 3, 16, 16)
        found = bp.compare(model, input, seconds=BRIEF)
    assert found.step.has_backward
    assert bp.compare(two(), input, seconds=BRIEF).step.has_backward


def test_without_a_gradient() -> None:
    found = bp.compare(two().requires_grad_(False), image(2, 3, 16, 16), seconds=BRIEF)
    assert not found.step.has_backward
    for row in found.rows:
        for side in (row.torch, row.ours):
            assert (side.backward_ms, side.saved_bytes, side.gradient_error) == (0, 0, 0)
    assert "no output needs a gradient" in str(found) and "A whole forward pass" in str(found)


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_what_cannot_be_compared_is_told() -> None:
    model = nn.Sequential(OwnForward(3, 4, 3), nn.Conv2d(4, 4, 3))
    found = bp.compare(model, image(2, 3, 16, 16), seconds=BRIEF)
    assert [row.name for row in found.rows] == ["1"]
    assert "0: OwnForward has a forward of its own" in str(found)
    case = CASES["a dict"]
    assert "not called: unused" in compare(case).notes


@pytest.mark.parametrize("cpus", [0.0, 99.0])
def test_a_busy_machine_is_told(cpus: float, monkeypatch) -> None:
    assert 0 <= Watch().foreign_cpus() < math.inf
    monkeypatch.setattr(Watch, "foreign_cpus", lambda self: cpus)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    told = "other programs used 99.0 CPUs meanwhile: repeat it when they do not"
    assert bp.compare(two(), image(2, 3, 16, 16), seconds=BRIEF).notes == (told,) * (cpus > 2)


def test_layers_that_were_ours_are_told() -> None:
    found = bp.compare(bp.convert(every_kind()), image(2, 3, 16, 16), seconds=BRIEF)
    assert "2 layer(s) were ours before: bp.revert(model) first, then convert" in found.notes


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_part() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3))), nn.Conv2d(3, 3, 3))
    found = bp.compare(model, image(2, 3, 16, 16), seconds=BRIEF)
    assert [row.name for row in found.rows] == ["1"]
    assert "0.0: it is compiled by TorchScript" in str(found)


@pytest.mark.slow
def test_a_compiled_model() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(two(), backend="aot_eager")
    found = bp.compare(compiled, image(2, 3, 16, 16), seconds=BRIEF)
    assert [row.name for row in found.rows] == ["_orig_mod.0", "_orig_mod.2"]
    assert {row.name for row in found.rows} <= {name for name, _ in compiled.named_modules()}


class Locked(nn.Module):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


WRONG = {
    "no module": (lambda: bp.compare(3), TypeError, "'model' must be a torch.nn.Module, not int"),
    "kwargs": (
        lambda: bp.compare(two(), kwargs=[1]), TypeError, "'kwargs' must be a mapping, not list"
    ),
    "seconds": (
        lambda: bp.compare(two(), seconds="1"), TypeError, "'seconds' must be a number, not str"
    ),
    "no seconds": (
        lambda: bp.compare(two(), seconds=0), ValueError, "'seconds' must be positive, but got 0"
    ),
    "nothing to compare": (
        lambda: bp.compare(nn.Sequential(nn.ReLU(), nn.Conv1d(1, 1, 1)), image(1, 1, 8)),
        ValueError, "model calls no layer that bp.convert knows",
    ),
    "no layer called": (
        lambda: bp.compare(nn.ModuleDict({"a": nn.Conv2d(1, 1, 1)}), image(1, 1, 8)),
        NotImplementedError, "forward",
    ),
    "meta": (
        lambda: bp.compare(two().to("meta"), image(2, 3, 16, 16)), ValueError, "on the meta device"
    ),
    "lazy": (
        lambda: bp.compare(nn.Sequential(nn.LazyConv2d(3, 3)), image(2, 3, 16, 16)),
        ValueError, "'0' is lazy and not initialised yet",
    ),
    "no copy": (lambda: bp.compare(Locked()), RuntimeError, "Locked cannot be copied: no copies"),
    "the model's own error": (
        lambda: bp.compare(two(), image(2, 5, 16, 16)), RuntimeError, "3 channels, but got 5"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


# --- which layers gain


def row(name: str, torch_ms: float, ours_ms: float, least_ratio: float) -> Row:
    sides = [Side(ms / 2, ms / 2, 0, 0.0, 0.0) for ms in (torch_ms, ours_ms)]
    return Row(name, "conv 4 3x3", (1, 3, 8, 8), 1, *sides, least_ratio)


GAINS = {
    "faster": ([row("a", 3, 2, 1.4)], ("a",)),
    "slower": ([row("a", 2, 3, 0.6)], ()),
    "within the noise": ([row("a", 3, 2, 0.9), row("b", 2.03, 2, 1.015)], ()),
    "one of two": ([row("a", 3, 2, 1.4), row("b", 2, 2, 1)], ("a",)),
    "calls that gain together": ([row("a", 30, 15, 2), row("a", 1, 2, 0.5)], ("a",)),
    "calls that lose together": ([row("a", 3, 2, 1.5), row("a", 10, 20, 0.5)], ()),
}  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
def test_names_that_gain(name: str, monkeypatch) -> None:
    rows, names = GAINS[name]
    assert names_that_gain(rows) == names
    monkeypatch.setenv("COLUMNS", "60")  # the ratio comes last
    found = Comparison(tuple(rows), Step(4.0, 2.0, 3.0 if names else None, True), "", ())
    assert found.faster == names
    assert ("No layer gains" in str(found)) == (not names)
    lines = str(found).splitlines()[2 : 2 + len(rows)]
    assert [line.endswith("+") for line in lines] == [row.name in names for row in rows]


@pytest.mark.parametrize("size", [1, 4, 5, 6, 10, 33, 100])
def test_least_median(size: int) -> None:
    """So many of the sample are smaller that no more would be, but for a chance of 1/32."""
    smaller = least_median(range(size))

    def chance(most: int) -> float:  # that at most so many of the sample are below its true median
        return sum(math.comb(size, k) for k in range(most + 1)) / 2**size

    assert chance(smaller) <= 1 / 32 < chance(smaller + 1) or (smaller == 0 and size < 5)


def test_the_step_has_the_layers_that_gain(monkeypatch) -> None:
    """In the step's third model these layers are ours and the others are torch's; all models have
    the same Parameters."""
    models: list[dict[str, nn.Module]] = []
    in_turn = comparing.in_turn

    def spy(runs: Any, seconds: float) -> Any:
        models.append({side: run.args[0] for side, run in runs.items()})
        return in_turn(runs, seconds)

    monkeypatch.setattr(comparing, "in_turn", spy)
    monkeypatch.setattr(comparing.result, "names_that_gain", lambda rows: ("3", "4"))
    bp.compare(bp.convert(every_kind()), image(2, 3, 16, 16), seconds=BRIEF)
    [sides] = models
    ours = {
        side: [
            name
            for name, m in model.named_modules()
            if type(m).__module__ == bp.ConvBP2d.__module__
        ]
        for side, model in sides.items()
    }
    assert ours == {"torch": [], "ours": [name for name, *_ in EVERY_KIND], "faster": ["3", "4"]}
    ids = [[id(p) for p in model.parameters()] for model in sides.values()]
    assert ids[0] == ids[1] == ids[2]


# --- the table


# Inputs, errors and memory are shown in terminals wider than these.
SHOWN = (80, 100, 110)


@pytest.mark.parametrize("width", [80, 100, 110, 140])
def test_the_table_fits(width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [row("features.1.block.0.0", 2468.4, 99.96, 1.4), row("head" * 20, 0.024, 20, 0.9)]
    side = replace(rows[0].ours, saved_bytes=3 << 20, gradient_error=math.nan)
    kind, shape = "conv 1024 3x3 s2 g32", (128, 256, 112, 112)
    rows[0] = replace(rows[0], kind=kind, input_shape=shape, calls=12, ours=side)
    found = Comparison(tuple(rows), Step(1234.5, 12.3, 0.5, True), "machine", ("a note",))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= width
    first = lines[2]
    assert all(cell in first for cell in ("block.0.0 ", f"{kind}, 12x", " 1234  50.0 ", "24.7 +"))
    assert [cell in first for cell in ("128x256x112x112", "nan", " 3.00")] == [
        width > w for w in SHOWN
    ]
    assert re.match("…[head]{11,}  ", lines[3])
    assert "machine" in lines and "a note" in lines
    assert repr(found) == str(found)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_is_shown_in_a_terminal(stream: type[io.StringIO], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    bp.compare(two(), image(2, 3, 16, 16), seconds=BRIEF)
    shown = sys.stderr.getvalue().split("\r\x1b[K")
    if stream is Terminal:
        assert [text.partition("]")[2] for text in shown] == [
            "", " 1 of 2: 0", " 2 of 2: 2", " the whole step", "",
        ]  # fmt: skip
    else:
        assert shown == [""]
    assert capsys.readouterr().out == ""
