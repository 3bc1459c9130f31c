"""The short way of a layer's call: when it is taken, and that nobody can tell by the results."""

from __future__ import annotations

import contextlib
import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from cases import normal
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import torch_convbp as bp
from torch_convbp import modules


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """ "short" for each call that went that way."""
    taken: list[str] = []
    real = modules.plain_conv2d

    def plain_conv2d(*arguments: Any) -> Tensor:
        taken.append("short")
        return real(*arguments)

    monkeypatch.setattr(modules, "plain_conv2d", plain_conv2d)
    return taken


def layer(**options: Any) -> bp.ConvBP2d:
    torch.manual_seed(0)
    return bp.ConvBP2d(3, 4, 3, **{"padding": 1, "activation": "tanh", **options})


def twin(ours: bp.ConvBP2d) -> Callable[[Tensor], Tensor]:
    theirs = nn.Conv2d(
        ours.in_channels, ours.out_channels, ours.kernel_size, ours.stride, ours.padding,
        ours.dilation, ours.groups, ours.bias is not None, ours.padding_mode,
        dtype=ours.weight.dtype,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    return lambda input: theirs(input).tanh() if ours.activation else theirs(input)


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def tangent(call: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(input, input))).tangent


def traced(call: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    if isinstance(call, nn.Module):
        call = torch.jit.trace(call, input, check_trace=False)
    return call(input)


def under(context: Callable[[], Any]) -> Callable[..., Tensor]:
    def run(call: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        with context():
            return call(input)

    return run


# name: (how the layer is called, does it take the short way?)
CALLS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "plain": (lambda call, input: call(input), True),
    "inference": (under(torch.no_grad), True),
    "inference_mode": (under(torch.inference_mode), True),
    "channels_last": (lambda call, input: call(input.to(memory_format=torch.channels_last)), True),
    "strided": (lambda call, input: call(input.mT.contiguous().mT), True),
    "saved_tensors_hooks": (
        under(lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)), True
    ),
    "parameter": (lambda call, input: call(nn.Parameter(input)), True),
    "unbatched": (lambda call, input: call(input[0]), False),
    "subclass": (lambda call, input: call(input.as_subclass(Subclass)).as_subclass(Tensor), False),
    "autocast": (under(lambda: torch.autocast("cpu", torch.bfloat16)), False),
    "function_mode": (under(FunctionMode), False),
    "dispatch_mode": (under(DispatchMode), False),
    "tangent": (tangent, False),
    "jvp": (lambda call, input: torch.func.jvp(call, (input,), (input,))[1], False),
    "vmap": (lambda call, input: torch.vmap(call)(input[:, None])[:, 0], False),
    "grad": (lambda call, input: torch.func.grad(lambda x: call(x).sum())(input), False),
    "traced": (traced, False),
    "compiled": (
        lambda call, input: torch.compile(call, backend="eager", fullgraph=True)(input), False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_when_it_is_taken(name: str, ways: list[str]) -> None:
    call, is_short = CALLS[name]
    ours = layer(dtype=torch.float64) if name != "autocast" else layer()
    input = normal((2, 3, 6, 5), ours.weight.dtype, 1)
    found = call(ours, input)
    taken = ways.copy()
    wanted = call(twin(ours), input)
    # float64, but for bfloat16's 8 bits under autocast
    atol = 2**-6 if name == "autocast" else 1e-12
    assert_close(found, wanted, rtol=0, atol=atol)
    assert bool(taken) == is_short


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "plain_conv2d": (lambda f, x: f.conv2d(x, torch.ones(4, 3, 3, 3)), bp.functional),
    "plain_linear": (lambda f, x: f.linear(x, torch.ones(4, 5)), bp.functional),
    "plain_max_pool2d": (lambda f, x: f.max_pool2d(x, 2), bp.functional),
    "plain_avg_pool2d": (lambda f, x: f.avg_pool2d(x, 2), bp.functional),
}


@pytest.mark.parametrize("context", [None, FunctionMode, DispatchMode,
                                     lambda: torch.autocast("cpu", torch.bfloat16)])  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_it(name: str, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call, ours = FUNCTIONS[name]
    taken = []
    real = getattr(ours, name)

    def watched(*arguments: Any) -> Any:
        taken.append(name)
        return real(*arguments)

    monkeypatch.setattr(ours, name, watched)
    input = normal((2, 3, 6, 5), torch.float32, 1)
    with context() if context else contextlib.nullcontext():
        found, wanted = call(ours, input), call(nn.functional, input)
    assert_close(found, wanted)
    assert bool(taken) == (context is None)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32], ids=str)
def test_other_dtypes_go_the_long_way(dtype: torch.dtype, ways: list[str]) -> None:
    ours = bp.ConvBP2d(3, 4, 3, bias=False)
    ours.weight = nn.Parameter(ours.weight.to(dtype), requires_grad=False)
    input = torch.ones(2, 3, 6, 5).to(dtype)
    if dtype == torch.int32:
        with pytest.raises(RuntimeError, match="not implemented for 'Int'"):
            ours(input)
    else:
        assert_close(ours(input), nn.functional.conv2d(input, ours.weight))
    assert ways == []


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 2), "same", "valid"], ids=str)
def test_every_padding(mode: str, padding: Any, ways: list[str]) -> None:
    ours = layer(padding=padding, padding_mode=mode, dtype=torch.float64)
    input = normal((2, 3, 6, 5), torch.float64, 1)
    for _ in range(2):  # checked, and then stored
        assert_close(ours(input), twin(ours)(input))
    assert ways == ["short"] * 2


# An attribute's new value, after a call with the old one.
CHANGES = {
    "stride": (2, 1),
    "padding": (0, 2),
    "dilation": (1, 2),
    "padding_mode": "circular",
    "same": "same",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_attribute(change: str) -> None:
    ours = layer(dtype=torch.float64)
    input = normal((2, 3, 6, 5), torch.float64, 1)
    ours(input)
    setattr(ours, "padding" if change == "same" else change, CHANGES[change])
    assert_close(ours(input), twin(ours)(input))


def test_changed_groups() -> None:
    ours = bp.ConvBP2d(4, 4, 3)
    input = torch.ones(1, 4, 5, 5)
    ours(input)
    ours.groups = 2
    with pytest.raises(RuntimeError, match="Given groups=2"):
        ours(input)


def test_a_list_that_is_changed_in_place() -> None:
    ours = layer(activation=None)
    ours.stride = [1, 1]  # type: ignore[assignment]
    input = torch.ones(1, 3, 6, 6)
    assert ours(input).shape[2:] == (6, 6)
    ours.stride[0] = 2  # type: ignore[index]
    assert ours(input).shape[2:] == (3, 6)


def test_wrong_values_after_right_ones() -> None:
    """1.0 and True equal 1, and are refused all the same."""
    ours, input = layer(), torch.ones(1, 3, 6, 6)
    ours(input)
    for wrong in ((1.0, 1.0), (True, True)):
        ours.stride = wrong  # type: ignore[assignment]
        with pytest.raises(TypeError, match="argument 'stride' must be made of ints"):
            ours(input)


def test_same_follows_the_size_of_the_filters() -> None:
    ours = layer(padding="same", activation=None)
    input = torch.ones(1, 3, 8, 8)
    ours(input)
    ours.weight = nn.Parameter(torch.ones(4, 3, 5, 5))
    assert ours(input).shape == (1, 4, 8, 8)


# name: an input that the layer refuses
REFUSED = {
    "channels": torch.ones(1, 2, 6, 6),
    "too small": torch.ones(1, 3, 0, 6),
    "dtype": torch.ones(1, 3, 6, 6, dtype=torch.float64),
    "five dimensions": torch.ones(1, 1, 3, 6, 6),
    "nothing": None,
    "nested": torch.nested.nested_tensor([torch.ones(3, 6, 6)]),
    "sparse": torch.ones(1, 3, 6, 6).to_sparse(),
    "numbers": [1, 2, 3],
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_those_of_the_long_way(name: str) -> None:
    ours = layer()
    ours(torch.ones(1, 3, 6, 6))
    messages = []
    for call in (
        ours,
        lambda input: bp.functional.conv2d(
            input, ours.weight, ours.bias, padding=1, activation="tanh"
        ),
    ):
        with pytest.raises((RuntimeError, TypeError)) as raised:
            call(REFUSED[name])
        messages.append(f"{type(raised.value).__name__}: {raised.value}")
    assert messages[0] == messages[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy,
                                    lambda m: pickle.loads(pickle.dumps(m))])  # fmt: skip
def test_copies_do_not_have_it(copied: Callable[[nn.Module], nn.Module]) -> None:
    ours = layer()
    before = set(vars(ours))
    ours(torch.ones(1, 3, 6, 6))
    assert set(vars(copied(ours))) == before


def test_revert_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    before = set(vars(model[0]))
    bp.convert(model)(torch.ones(1, 3, 6, 6))
    assert set(vars(bp.revert(model)[0])) == before


# --- torch.compile --------------------------------------------------------------------------


class WithBreaks(nn.Module):
    """Layers of different sizes, each between two graph breaks."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make(4 + i, 5 + i) for i in range(12))

    def forward(self, input: Tensor) -> Tensor:
        for each in self.layers:
            input = each(input)
            torch._dynamo.graph_break()
        return input


LAYERS: dict[str, tuple[Any, Any]] = {
    "conv": (lambda i, o: nn.Conv2d(i, o, 3, padding=1), (2, 4, 5, 5)),
    "linear": (lambda i, o: nn.Linear(i, o), (2, 4)),
    "max_pool": (lambda i, o: nn.MaxPool2d(3, 1, 1), (2, 4, 5, 5)),
    "avg_pool": (lambda i, o: nn.AvgPool2d(3, 1, 1), (2, 4, 5, 5)),
}


@contextlib.contextmanager
def frames() -> Iterator[list[Any]]:
    """What torch.compile compiles."""
    torch._dynamo.reset()
    found: list[Any] = []
    yield found
    torch._dynamo.reset()


# torch_convbp/ops/dynamo_rules.py adds to these.
has_rules = pytest.mark.skipif(
    not hasattr(torch._dynamo.trace_rules, "BUILTIN_INLINE_WHEN_CALLED"),
    reason=f"torch {torch.__version__} has no rules for what is compiled in larger graphs alone",
)


@has_rules
@pytest.mark.parametrize("name", LAYERS)
def test_graph_breaks(name: str) -> None:
    """No layer is compiled anew, as none of torch's is."""
    make, size = LAYERS[name]
    theirs = WithBreaks(make)
    ours = bp.convert(copy.deepcopy(theirs), pooling=True, dense=True)
    input, counts = normal(size, torch.float32, 1), []
    for model in (theirs, ours):
        with frames() as found:
            compiled = torch.compile(model, backend=lambda graph, _: found.append(graph) or graph)
            assert_close(compiled(input), theirs(input))
            counts.append(len(found))
    assert counts[1] == counts[0]


# In a process of its own: the package comes before torch's compiler, as it does for users.
COMPILED = """
import torch
import torch_convbp as bp

make, call = {
    "layer": (lambda: bp.ConvBP2d(3, 4, 3), torch.compile),
    "forward": (lambda: bp.ConvBP2d(3, 4, 3), lambda m, **k: torch.compile(m.forward, **k)),
    "in place": (lambda: bp.ConvBP2d(3, 4, 3), lambda m, **k: (m.compile(**k), m)[1]),
    "linear": (lambda: bp.LinearBP(6, 4), torch.compile),
    "pool": (lambda: bp.MaxPoolBP2d(2), torch.compile),
    "function": (lambda: lambda x: bp.functional.avg_pool2d(x, 2), torch.compile),
}[NAME]
graphs = []
run = call(make(), backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
for height in (6, 7):
    run(torch.ones(2, 3, height, 6))
torch._dynamo.reset()
run(torch.ones(2, 3, 6, 6))
print(len(graphs))
"""


@pytest.mark.parametrize("name", ["layer", "forward", "in place", "linear", "pool", "function"])
def test_compiled_by_itself(name: str) -> None:
    """Every shape is compiled, as of torch's own layers."""
    program = f"NAME = {name!r}\n{COMPILED}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["3"], done.stderr


def test_tangents_of_a_level_that_compiled_code_has_entered() -> None:
    """The backward pass in such a level keeps them."""
    ours = layer(dtype=torch.float64)
    found = []
    for model in (ours, twin(ours)):
        input = normal((2, 3, 6, 5), torch.float64, 1)
        level = torch._C._enter_dual_level()  # as a compiled graph does
        try:
            dual = torch._VF._make_dual(input.requires_grad_(), input.detach(), level)
            (grad,) = torch.autograd.grad(model(dual).square().sum(), dual)
            found.append(torch._VF._unpack_dual(grad, level)[1])
        finally:
            torch._C._exit_dual_level(level)
    assert_close(found[0], found[1], rtol=0, atol=1e-12)


@has_rules
def test_recording_between_graph_breaks() -> None:
    """Layers that run as they are have records. (torch traces the first before it gives up.)"""
    model = bp.convert(WithBreaks(LAYERS["conv"][0]))
    with (
        frames() as found,
        pytest.warns(UserWarning, match="layers.0$"),
        bp.record_error_signals(model) as signals,
    ):
        compiled = torch.compile(model, backend=lambda graph, _: found.append(graph) or graph)
        compiled(normal(LAYERS["conv"][1], torch.float32, 1)).sum().backward()
    assert [len(signals[name]) for name in signals] == [1] * 12
