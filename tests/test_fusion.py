"""Activations fused into convolutions: where it may not be seen, and nowhere else."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from fusion_models import MODELS, Model, Plain, SharedRelu
from fusion_traps import TRAPS, Functional, Straight
from torch import Tensor, nn
from twins import bytes_of, kept

import torch_convbp as bp
from torch_convbp._graph import is_activation
from torch_convbp._without_calls import Call, check
from torch_convbp.fusion import FusedActivation


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def prepared(case: Model) -> tuple[nn.Module, Tensor]:
    model = case.make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # three passes would move the statistics
    return model, normal((2, 3, case.pixels, case.pixels), torch.float64, seed=1)


def results(model: nn.Module, input: Tensor) -> tuple[list[Tensor], int]:
    """Output and gradients, and the bytes that were kept for backward."""
    model.zero_grad()
    torch.manual_seed(3)  # dropout
    leaf = input.clone().requires_grad_()
    output, tensors = kept(lambda: model(leaf), model.parameters())
    output.square().sum().backward()
    gradients = [leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [output.detach(), *(g.clone() for g in gradients if g is not None)], bytes_of(tensors)


def assert_close(these: list[Tensor], others: list[Tensor]) -> None:
    """Sums of at most 10^4 products through at most a hundred layers, in units of the largest."""
    largest = max(other.abs().max().item() for other in others)
    for this, other in zip(these, others, strict=True):
        bound = 1e4 * 2**-53 * 100 * max(other.abs().max().item(), 1e-4 * largest)
        assert (this - other).abs().max() <= bound


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:torch_convbp.revert left 1 layer")
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    case = MODELS[name]
    model, input = prepared(case)
    keys, kinds = list(model.state_dict()), [type(m).__name__ for m in model.modules()]
    names, modules = [n for n, _ in model.named_modules()], list(model.modules())
    torchs, _ = results(model, input)
    bp.convert(model)
    converted, bytes_before_fusing = results(model, input)
    assert_close(converted, torchs)

    assert bp.convert(model, fuse_activations=True) is model
    report = bp.fusions(model)
    assert {f.convolution: f"{f.g} of {f.activation}" for f in report.fused} == case.fused
    left = {entry.convolution or entry.activation: entry.reason for entry in report.left_alone}
    assert left.keys() == case.left.keys(), str(report)
    for place, words in case.left.items():
        assert words in left[place]
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_modules()] == names
    held = [vars(m)["_original"] if isinstance(m, FusedActivation) else m for m in model.modules()]
    assert all(a is b for a, b in zip(held, modules, strict=True))

    fused, bytes_fused = results(model, input)
    assert_close(fused, converted)
    if all(g.startswith("relu of") for g in case.fused.values()):
        assert torch.equal(fused[0], converted[0])
    assert bytes_fused <= bytes_before_fusing

    bp.revert(model)
    if name != "own_layer":
        assert [type(m).__name__ for m in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    again, _ = results(model, input)
    assert all(torch.equal(a, b) for a, b in zip(again, torchs, strict=True))


def test_what_a_garbage_collection_runs_is_not_the_models() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        pass

    model, _ = prepared(MODELS["plain_calls"])
    before = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        bp.convert(model, fuse_activations=True)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(callback)
    assert len(bp.fusions(model).fused) == 2


FUSING = ["modules", "plain_calls", "with_super", "shared_module", "blocks", "constant_index"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", FUSING)
def test_copies(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    model, input = prepared(MODELS[name])
    torchs, _ = results(model, input)
    before = [type(m) for m in model.modules()]
    fused, _ = results(bp.convert(model, fuse_activations=True), input)
    other = copied(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert repr(other) == repr(model)
    assert bp.fusions(other) == bp.fusions(model)
    assert all(map(torch.equal, results(other, input)[0], fused))
    bp.revert(other)  # and not the one it was copied from
    assert [type(m) for m in other.modules()] == before
    assert all(map(torch.equal, results(other, input)[0], torchs))
    assert all(map(torch.equal, results(model, input)[0], fused))


@pytest.mark.parametrize("name", FUSING)
def test_state_dict_both_ways(name: str) -> None:
    fused, input = prepared(MODELS[name])
    plain, _ = prepared(MODELS[name])
    bp.convert(fused, fuse_activations=True)
    plain.load_state_dict(fused.state_dict())
    assert_close(results(fused, input)[0], results(plain, input)[0])
    fused.load_state_dict(prepared(MODELS[name])[0].state_dict())


def test_in_one_call_and_twice() -> None:
    model, _ = prepared(MODELS["modules"])
    for _ in range(2):
        bp.convert(model, pooling=True, fuse_activations=True)
        assert repr(model.act) == "FusedActivation(ReLU() in conv)"
        assert "activation=relu" in repr(model.conv)
    assert isinstance(model.act, FusedActivation)
    bp.convert(model)  # does not undo it
    assert [str(f) for f in bp.fusions(model).fused] == ["conv computes relu of act"]


def test_a_part_without_the_other_end_is_not_reverted() -> None:
    model, input = prepared(MODELS["modules"])
    expected = model(input)
    bp.convert(model, fuse_activations=True)
    with pytest.warns(UserWarning, match="its activation relu is part of the layer"):
        bp.revert(model.conv)
    with pytest.warns(UserWarning, match="is fused into conv, which is not there"):
        bp.revert(model.act)
    assert_close([model(input)], [expected])
    bp.revert(model)
    assert torch.equal(model(input), expected)


def test_flags_are_still_looked_at() -> None:
    """The changed forward is the old code, not a record of one run."""
    model, input = prepared(MODELS["plain_calls"])
    bp.convert(model, fuse_activations=True)
    assert torch.equal(model.eval()(input), model(input))
    assert not torch.equal(model.train()(input), model(input))  # dropout
    assert type(model).forward.__code__.co_filename == Plain.forward.__code__.co_filename
    assert isinstance(model, Plain)


@pytest.mark.parametrize("name", TRAPS)
def test_traps(name: str) -> None:
    """Whatever is done after it was converted, the model does what it did."""
    trap, outputs = TRAPS[name], []
    for fuse in (False, True):
        torch.manual_seed(0)
        model = trap.make().double()
        part = model.get_submodule(trap.part)
        bp.convert(part, fuse_activations=fuse)
        report = bp.fusions(part)
        trap.change(model)
        torch.manual_seed(3)
        input = normal((2, 3, 8, 8), torch.float64, seed=1)
        outputs.append(trap.run(model, input))
    if trap.reason:
        assert not report.fused and trap.reason in str(report)
    else:
        assert len(report.fused) == 1 and not report.left_alone
    assert_close([outputs[1]], [outputs[0]])
    bp.revert(model)
    assert_close([trap.run(model, input)], [outputs[0]])


class Exits(Straight):
    """Ends the program when it is traced, as a handler of a signal may."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise SystemExit(3)
        return super().forward(x)


class Refuses(Functional):
    """Lets its copies' class be changed, and not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.this = id(self)  # copies have the same number

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__" and self.this == id(self):
            raise AttributeError("not here")
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("make", "error"),
    [(Exits, SystemExit), (lambda: nn.Sequential(Functional(), Refuses()), ValueError)],
    ids=["exits", "refuses"],
)
def test_nothing_is_fused_by_half(make: Callable[[], nn.Module], error: type) -> None:
    model, input = make().double(), normal((2, 3, 8, 8), torch.float64, seed=1)
    expected = model(input)
    with pytest.raises(error):
        bp.convert(model, fuse_activations=True)
    layers = [m for m in model.modules() if isinstance(m, bp.ConvBP2d)]
    assert layers and not any("_link" in vars(m) or m.activation for m in layers)
    assert_close([model(input)], [expected])


class Noisy(nn.Module):
    """Its forward does what others could see."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.n, self.last = torch.zeros(1), None
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.count += 1
        self.n += 1
        self.n.add_(1)
        for parameter in self.parameters():
            parameter.data.mul_(2)
        warnings.warn("noisy", stacklevel=2)
        torch.rand(3), random.random(), np.random.rand()
        return x


def test_the_model_is_not_run_or_changed() -> None:
    noisy = Noisy()
    model = nn.Sequential(noisy, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model[3].eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.convert(model, fuse_activations=True)
        assert [f.convolution for f in bp.fusions(model).fused] == ["1"]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert noisy.last is None and noisy.count == 0 and noisy.n == 0 and not calls
    assert torch.equal(noisy.weight, torch.ones(2))
    assert model.training and not model[3].training


def test_other_threads_call_modules_meanwhile() -> None:
    model, input = prepared(MODELS["modules"])
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    expected, done, errors = other(input), threading.Event(), []

    def call() -> None:
        while not done.is_set():
            try:
                assert torch.equal(other(input), expected)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(10):
            bp.revert(bp.convert(model, fuse_activations=True))
    finally:
        done.set()
        thread.join()
    assert not errors


def test_hooks_on_all_modules() -> None:
    model, _ = prepared(MODELS["modules"])
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        bp.convert(model, fuse_activations=True)
        assert "register_module_forward_hook" in str(bp.fusions(model))
    assert not bp.fusions(model).fused
    bp.convert(model, fuse_activations=True)
    assert bp.fusions(model).fused


def test_attributes_of_what_is_fused() -> None:
    model, _ = prepared(MODELS["shared_activation"])
    bp.convert(model, fuse_activations=True)
    original = model[1]._original
    assert model[1].negative_slope == 0.2
    message = "LeakyReLU.negative_slope cannot be set while 0, 2 computes the activation; bp.revert"
    with pytest.raises(AttributeError, match=message):
        model[1].negative_slope = 0.9
    with pytest.raises(AttributeError, match="no attribute 'slope'"):
        _ = model[1].slope
    original.negative_slope = 0.5  # by whoever else holds it
    with pytest.raises(RuntimeError, match=r"was leaky_relu\(0.2\) when it was fused into 0, 2"):
        model(torch.ones(1, 3, 8, 8, dtype=torch.float64))
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model.eval()
    assert not original.training and not model[1].training
    bp.revert(model)[1].negative_slope = 0.9
    assert model[1] is original and original.negative_slope == 0.9
    model(torch.ones(1, 3, 8, 8, dtype=torch.float64))
    assert seen == [1, 1]  # its hooks are there still


def test_a_call_whose_argument_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"the arguments of relu\(\*\*kw\) are not known"):
        check(Call("forward", 0, "relu(**kw)"))


def test_attention_is_no_activation() -> None:
    assert is_activation(nn.PReLU()) and not is_activation(nn.MultiheadAttention(4, 1))


def test_a_part_of_what_cannot_be_traced() -> None:
    model, input = prepared(MODELS["untraceable"])
    expected = model(input)
    bp.convert(model.features, fuse_activations=True)
    for _ in range(2):
        report = bp.fusions(model)
        assert [f.convolution for f in report.fused] == ["features.0"]
        assert [entry.activation for entry in report.left_alone] == [""]
        assert_close([model(input)], [expected])
        bp.convert(model, fuse_activations=True)  # does not undo it


def test_a_convolution_that_was_replaced() -> None:
    """The docstring says to revert before; at least it is said what is missing."""
    model, _ = prepared(MODELS["shared_module"])
    bp.convert(model, fuse_activations=True).one = nn.Conv2d(3, 4, 3).double()
    with pytest.warns(UserWarning) as caught:
        bp.revert(model)
    assert "g: what it did is fused into one, which is not there" in str(caught[0].message)
    assert "two: its activation softplus(2, 10) is part of the layer" in str(caught[0].message)


@pytest.mark.parametrize("how", ["__new__", "__call__"])
def test_the_class_of_a_method_without_its_call(how: str) -> None:
    """Whether an object is made for its state, or a new one by the constructor."""
    model, input = prepared(MODELS["plain_calls"])
    expected = bp.convert(model, fuse_activations=True).eval()(input)
    cls: Any = type(model)
    if how == "__new__":
        other = cls.__new__(cls)
        vars(other).update(vars(model))
        assert type(other) is cls
    else:
        other = cls().double().eval()
        other.load_state_dict(model.state_dict())
        assert type(other) is Plain
    assert_close([other(input)], [expected])


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"fusions.*'model' must be a torch\.nn\.Module, not int"):
        bp.fusions(5)  # type: ignore[arg-type]


def test_it_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = prepared(MODELS["changed_in_place"])
    with caplog.at_level(logging.INFO, "torch_convbp"):
        bp.convert(model, fuse_activations=True)
    assert "1 activation(s) fused into convolutions" in caplog.text
    assert "two computes relu6 of F.relu6(self.two(a)) in the model itself" in caplog.text
    assert "one, F.leaky_relu(self.one(x)) in the model itself: its output is" in caplog.text
    assert str(bp.fusions(model)) in caplog.text


@pytest.mark.parametrize("value", [1, None, "relu"])
def test_no_bool(value: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match="argument 'fuse_activations' must be bool, not"):
        bp.convert(model, fuse_activations=value)
    assert type(model[0]) is nn.Conv2d


def test_code_that_changed_since_it_was_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = prepared(MODELS["plain_calls"])
    saved = pickle.dumps(bp.convert(model, fuse_activations=True))
    monkeypatch.setattr(Plain, "forward", SharedRelu.forward)
    with pytest.raises(RuntimeError, match="Plain was saved with activations fused"):
        pickle.loads(saved)


def test_a_graph_module() -> None:
    model, input = prepared(MODELS["modules"])
    traced = torch.fx.symbolic_trace(model)
    expected = traced(input)
    bp.convert(traced, fuse_activations=True)
    assert [f.convolution for f in bp.fusions(traced).fused] == ["conv"]
    assert_close([traced(input)], [expected])
    calls = bp.convert(torch.fx.symbolic_trace(Plain()), fuse_activations=True)
    assert not bp.fusions(calls).fused
    assert "made the code from a graph" in str(bp.fusions(calls))


def test_error_signals_of_fused_layers() -> None:
    """delta is that of the pre-activation, whoever computes g."""
    deltas = []
    for fuse in (False, True):
        torch.manual_seed(0)
        model, input = prepared(MODELS["modules"])
        bp.convert(model, fuse_activations=fuse)
        with bp.record_error_signals(model, keep="tensors") as record:
            model(input).square().sum().backward()
        deltas.append([record[name][-1].delta for name in ("conv", "last")])
    assert_close(*deltas)


def test_torch_fx() -> None:
    for name in ("modules", "plain_calls", "blocks"):
        model, input = prepared(MODELS[name])
        model.eval()
        bp.convert(model, fuse_activations=True)
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(input), model(input))


def test_a_feature_extractor_finds_the_activation() -> None:
    """What is in its place is a node of torch.fx's graphs, as the activation was."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).double()
    input = normal((2, 3, 8, 8), torch.float64, seed=1)
    expected = model[1](model[0](input))
    bp.convert(model, fuse_activations=True)
    assert bp.fusions(model).fused
    extracted = extraction.create_feature_extractor(model, ["1"])(input)
    assert_close([extracted["1"]], [expected])
    assert torch.fx.symbolic_trace(model[1])(input) is input


def test_compiled_as_a_whole() -> None:
    model, input = prepared(MODELS["blocks"])
    bp.convert(model, fuse_activations=True).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, _ = results(model, input)
    assert_close(results(compiled, input)[0], expected)
