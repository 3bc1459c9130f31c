"""Activations fused into convolutions: where it may not be seen, and nowhere else."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from cases import normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import torch_convbp as bp
from torch_convbp.fusion import FusedActivation


class Two(nn.Module):
    """Two convolutions and one activation; what is done with them is the subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.flag = True
        self.last: Any = None


class Plain(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        x = self.two(x)
        x = F.leaky_relu(input=x, negative_slope=0.2)
        return F.dropout(x, 0.5, training=self.training) * 2


class Method(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).flatten(1)

    def features(self, x: Tensor) -> Tensor:
        return F.silu(self.two(torch.sigmoid(self.one(x))))


class Inherited(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class WithScale(Two):
    def scale(self) -> float:
        return 3.0


class WithSuper(WithScale):
    """super() needs the cell that names the class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.two(self.relu(self.one(x))), approximate="tanh") * super().scale()


class SharedRelu(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(x))))


class SharedElsewhere(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(x))) + 1)


class Residual(Two):
    def forward(self, x: Tensor) -> Tensor:
        p = self.one(x)
        return self.two(F.relu(p)) + p


class Kept(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.one(x)
        return self.two(self.relu(self.last))


class Branches(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.flag:
            x = self.relu(x)
        return self.two(x)


class Loops(Two):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.relu):
            x = layer(x)
        return self.two(x)


class Switches(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        with torch.no_grad():
            x = self.relu(x)
        return self.two(x)


class Trained(Two):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two({True: self.relu, False: self.none}.get(self.training)(x))


class Swaps(Two):
    """Its modules are others in evaluation."""

    def train(self, mode: bool = True) -> Swaps:
        super().train(mode)
        self.relu = nn.ReLU() if mode else nn.Identity()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.relu(self.one(x)))


class Picks(Two):
    """Another index, set later, would lead around."""

    place = 0

    def __init__(self) -> None:
        super().__init__()
        self.firsts = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.relu(self.firsts[self.place](x)))


class PicksByName(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.relu(getattr(self, "one")(x)))  # noqa: B009


class ConstantIndex(Two):
    def __init__(self) -> None:
        super().__init__()
        self.firsts = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.firsts[1](self.firsts[0](x)))


class ChangedInPlace(Two):
    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.one(x))
        a += 1
        b = F.relu6(self.two(a))
        return b + 1


class OtherParameters(Two):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.two(F.leaky_relu(self.one(x), self.slope)), -0.5)

    slope = 0.3


class Aliased(Two):
    act = staticmethod(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.act(self.one(x)))


class TwiceCalled(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.two(self.one(x))))


class Block(nn.Module):
    """One of three that share a class: each is changed alone."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        if norm:
            self.body.append(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x))


class SharedModule(nn.Module):
    """A module of its own for g, called twice: both times behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.g = OwnActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.g(self.two(self.g(self.one(x))))


class OwnActivation(nn.Module):
    def forward(self, p: Tensor) -> Tensor:
        return F.softplus(p, 2, threshold=10)


class Untraceable(nn.Module):
    """Its own code asks for values; its children are ordinary."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.PReLU())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())])
        self.direct = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.sum() > 1e9:
            return x
        for block in self.blocks:
            x = block(x)
        return F.relu(self.direct(x))


class Slices(nn.Module):
    """Calls a part of a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.features[:3](x)


class Around(nn.Module):
    """Calls layers of a Sequential, and then what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        p = self.features[0](x)
        return self.features[1](p) if p.sum() > 0 else p


def sequential(**changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers = {"conv": nn.Conv2d(3, 4, 3), "act": nn.ReLU(), "last": nn.Conv2d(4, 2, 1)}
        model = nn.Sequential()
        for name, layer in layers.items():
            model.add_module(name, changes.get(name, lambda layer=layer: layer)())
        changes.get("then", lambda model: None)(model)
        return model

    return make


class SubclassOfReLU(nn.ReLU):
    pass


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3)
    return nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU())


def shared_activation() -> nn.Module:
    g = nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), g, nn.Conv2d(4, 4, 3), g)


def held_elsewhere() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "b": nn.Flatten()})
    model["c"] = model["a"][1]
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    return model


def mixed_blocks() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), Block(False), Block(True), Block(False))


@dataclass
class Model:
    make: Callable[[], nn.Module]
    fused: dict[str, str] = field(default_factory=dict)  # convolution: g of activation
    left: dict[str, str] = field(default_factory=dict)  # of the reason
    pixels: int = 8
    channels: int = 3
    runs: bool = True


def torchvisions(name: str, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=5, **keywords)


def features(*places: int) -> dict[str, str]:
    return {f"features.{i}": f"relu of features.{i + 1}" for i in places}


def small_vgg11() -> nn.Module:
    model = torchvision.models.vgg11(init_weights=False)
    model.classifier = nn.Linear(512 * 7 * 7, 5)
    return model


def small_vgg11_bn() -> nn.Module:
    model = torchvision.models.vgg11_bn(init_weights=False)
    model.classifier = nn.Linear(512 * 7 * 7, 5)
    return model


def squeezenet() -> dict[str, str]:
    fires = (3, 4, 6, 7, 9, 10, 11, 12)
    parts = ("squeeze", "expand1x1", "expand3x3")
    names = [f"features.{fire}.{part}" for fire in fires for part in parts]
    return {
        **features(0),
        **{name: f"relu of {name}_activation" for name in names},
        "classifier.1": "relu of classifier.2",
    }


FIRST = {"conv": "relu of act"}
MODELS = {
    # A BatchNorm stands between.
    "resnet18": Model(torchvisions("resnet18"), pixels=40),
    "vgg11_bn": Model(small_vgg11_bn, pixels=32),
    "mobilenet_v2": Model(torchvisions("mobilenet_v2"), pixels=40),
    "vgg11": Model(small_vgg11, features(0, 3, 6, 8, 11, 13, 16, 18), pixels=32),
    "alexnet": Model(
        lambda: torchvision.models.AlexNet(5).features, {
            str(i): f"relu of {i + 1}" for i in (0, 3, 6, 8, 10)}, pixels=63),
    "squeezenet1_1": Model(torchvisions("squeezenet1_1"), squeezenet(), pixels=40),
    "modules": Model(sequential(), FIRST),
    "gelu": Model(sequential(act=nn.GELU), {"conv": "gelu of act"}),
    "plain_calls": Model(Plain, {
        "one": "relu of F.relu(self.one(x), inplace=True) in the model itself",
        "two": "leaky_relu(0.2) of F.leaky_relu(input=x, negative_slope=0.2) in the model itself"}),
    "in_another_method": Model(Method, {
        "one": "sigmoid of torch.sigmoid(self.one(x)) in the model itself",
        "two": "silu of F.silu(self.two(torch.sigmoid(self.one(x)))) in the model itself"}),
    "with_super": Model(WithSuper, {
        "one": "relu of relu",
        "two": "gelu_tanh of F.gelu(self.two(self.relu(self.one(x))), approximate='tanh') "
               "in the model itself"}),
    "shared_relu": Model(SharedRelu, {"one": "relu of relu", "two": "relu of relu"}),
    "shared_activation": Model(shared_activation, {
        "0": "leaky_relu(0.2) of 1", "2": "leaky_relu(0.2) of 1"}),
    "shared_module": Model(SharedModule, {
        "one": "softplus(2, 10) of F.softplus(p, 2, threshold=10) in g",
        "two": "softplus(2, 10) of F.softplus(p, 2, threshold=10) in g"}),
    "blocks": Model(mixed_blocks, {
        f"{i}.body.0": f"relu of F.relu(self.body(x)) in {i}" for i in (1, 3)}),
    "weight_norm": Model(
        sequential(conv=lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), FIRST),
    "pruned": Model(
        sequential(conv=lambda: prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 3)), FIRST),
    "untraceable": Model(
        Untraceable, {"features.0": "relu of features.1", "blocks.0.0": "tanh of blocks.0.1"},
        {"": "torch.fx cannot trace it", "features.2": "the layer does not know PReLU"}),
    # What is left alone.
    "inherited": Model(Inherited, {}, {"one": "not called in a method", "two": "not called in a"}),
    "shared_elsewhere": Model(SharedElsewhere, {}, {"one": "the activation is used elsewhere"}),
    "residual": Model(Residual, {}, {"one": "output is used elsewhere too"}),
    "kept": Model(Kept, {}, {"one": "output is kept"}),
    "branches": Model(Branches, {}, {"one": "has branches"}),
    "loops": Model(Loops, {}, {"one": "has branches, loops"}),
    "switches": Model(Switches, {}, {"one": "gradients or autocast are switched"}),
    "swaps": Model(Swaps, {}, {"": "cannot trace it (its train() changes its modules)"}),
    "picks": Model(Picks, {}, {"firsts.0": "picks by an index"}),
    "picks_by_name": Model(PicksByName, {}, {"one": "picks by a name"}),
    "constant_index": Model(ConstantIndex, {"firsts.0": "relu of firsts.1"}),
    "training": Model(Trained, {}, {"one": "training and evaluation mode differ"}),
    "changed_in_place": Model(
        ChangedInPlace, {"two": "relu6 of F.relu6(self.two(a)) in the model itself"},
        {"one": "its output is changed in place"}),
    "parameters": Model(
        OtherParameters,
        {"two": "leaky_relu(-0.5) of F.leaky_relu(self.two(F.leaky_relu(self.one(x), self.slope)), "
                "-0.5) in the model itself"},
        {"one": "self.slope may change"}),
    "aliased": Model(Aliased, {}, {"one": "have not the same calls"}),
    "twice_called": Model(TwiceCalled, {}, {"two": "used in more than one place"}),
    "shared_convolution": Model(shared_convolution, {}, {"0": "in more than one place"}),
    "held_elsewhere": Model(held_elsewhere, {}, {"a.0": "a.1 is used elsewhere"}),
    "prelu": Model(sequential(act=nn.PReLU), {}, {"conv": "does not know PReLU"}),
    "subclass": Model(sequential(act=SubclassOfReLU), {}, {"conv": "not called in a method"}),
    "slices": Model(Slices, {}, {"": "cannot trace it", "features.0": "from outside",
                                 "features.2": "from outside"}),
    "around": Model(Around, {}, {"": "cannot trace it", "features.0": "from outside"}),
    "own_layer": Model(sequential(conv=lambda: bp.ConvBP2d(3, 4, 3, activation="tanh"))),
}  # fmt: skip
for hook, words in {
    "register_forward_hook": "hooks",
    "register_full_backward_hook": "hooks",
}.items():
    for on in ("conv", "act"):
        MODELS[f"{hook}_{on}"] = Model(
            sequential(then=lambda m, on=on, hook=hook: getattr(m.get_submodule(on), hook)(
                lambda *_: None)), {}, {"conv": words})  # fmt: skip
MODELS["forward_pre_hook_on_activation"] = Model(
    sequential(then=lambda m: m.act.register_forward_pre_hook(lambda *_: None)), {},
    {"conv": "hooks"})  # fmt: skip
MODELS["forward_pre_hook_on_convolution"] = Model(
    sequential(then=lambda m: m.conv.register_forward_pre_hook(lambda *_: None)), FIRST
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def prepared(case: Model) -> tuple[nn.Module, Tensor]:
    model = case.make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # three passes would move the statistics
    return model, normal((2, case.channels, case.pixels, case.pixels), torch.float64, seed=1)


def results(model: nn.Module, input: Tensor) -> tuple[list[Tensor], int]:
    """Output and gradients, and the bytes that were kept for backward."""
    model.zero_grad()
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)  # dropout
    leaf = input.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(leaf)
    output.square().sum().backward()
    gradients = [leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [output.detach(), *(g.clone() for g in gradients if g is not None)], sum(kept.values())


def assert_close(these: list[Tensor], others: list[Tensor]) -> None:
    """Sums of at most 10^4 products through at most a hundred layers, in units of the largest."""
    largest = max(other.abs().max().item() for other in others[1:])
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
    converted, kept = results(model, input)
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
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))

    fused, kept_fused = results(model, input)
    assert_close(fused, converted)
    if all(g.startswith("relu of") for g in case.fused.values()):
        assert torch.equal(fused[0], converted[0])
    assert kept_fused <= kept

    bp.revert(model)
    if name != "own_layer":
        assert [type(m).__name__ for m in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    again, _ = results(model, input)
    assert all(torch.equal(a, b) for a, b in zip(again, torchs, strict=True))


FUSING = ["modules", "plain_calls", "with_super", "shared_module", "blocks", "untraceable"]


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
    bp.revert(model.act)
    assert_close([model(input), input], [expected, input])
    bp.revert(model)
    assert torch.equal(model(input), expected)


def test_flags_are_still_looked_at() -> None:
    """The changed forward is the old code, not a record of one run."""
    model, input = prepared(MODELS["plain_calls"])
    bp.convert(model, fuse_activations=True)
    assert torch.equal(model.eval()(input), model(input))
    assert not torch.equal(model.train()(input), model(input))  # dropout
    assert type(model).forward.__code__.co_filename == __file__
    assert isinstance(model, Plain)


def test_the_model_is_not_run_or_changed() -> None:
    class Noisy(Two):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            self.count += 1
            warnings.warn("noisy", stacklevel=2)
            torch.rand(3), random.random()
            return self.two(self.relu(self.one(x)))

    model = Noisy()
    model.register_buffer("count", torch.zeros(()))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.two.eval()
    states = torch.get_rng_state(), random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.convert(model, fuse_activations=True)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert model.last is None and model.count == 0 and not calls
    assert model.training and not model.two.training
    assert [f.convolution for f in bp.fusions(model).fused] == ["one"]


def test_it_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = prepared(MODELS["untraceable"])
    with caplog.at_level(logging.INFO, "torch_convbp"):
        bp.convert(model, fuse_activations=True)
    assert "2 activation(s) fused into convolutions" in caplog.text
    assert "features.0 computes relu of features.1" in caplog.text
    assert "features.2, features.3: the layer does not know PReLU" in caplog.text
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
    from torch_convbp import _without_calls

    _without_calls.class_without.cache_clear()
    monkeypatch.setattr(Plain, "forward", SharedRelu.forward)
    with pytest.raises(RuntimeError, match="Plain was saved with activations fused"):
        pickle.loads(saved)


def test_a_graph_module() -> None:
    model, input = prepared(MODELS["modules"])
    traced = torch.fx.symbolic_trace(model)
    expected = traced(input)
    bp.convert(traced, fuse_activations=True)
    assert [f.convolution for f in bp.fusions(traced).fused] == ["conv"]
    assert_close([traced(input), input], [expected, input])
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


def test_compiled_as_a_whole() -> None:
    model, input = prepared(MODELS["blocks"])
    bp.convert(model, fuse_activations=True).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, _ = results(model, input)
    assert_close(results(compiled, input)[0], expected)
