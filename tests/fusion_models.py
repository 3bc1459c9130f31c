"""Models with activations behind convolutions, and which of these may be fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.squeezenet import SqueezeNet

import torch_convbp as bp


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
    return nn.Sequential(nn.Conv2d(3, 4, 3), g, nn.Conv2d(4, 4, 3), g, nn.Conv2d(4, 4, 1))


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


def features(*places: int) -> dict[str, str]:
    return {f"features.{i}": f"relu of features.{i + 1}" for i in places}


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
    "resnet": Model(lambda: ResNet(BasicBlock, [1, 1, 1, 1], 5), pixels=32),
    "alexnet": Model(
        lambda: torchvision.models.AlexNet(5).features, {
            str(i): f"relu of {i + 1}" for i in (0, 3, 6, 8, 10)}, pixels=63),
    "squeezenet1_1": Model(lambda: SqueezeNet("1_1", 5), squeezenet(), pixels=32),
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
    # What is left alone.
    "inherited": Model(Inherited, {}, {"one": "not called in a method", "two": "not called in a"}),
    "shared_elsewhere": Model(SharedElsewhere, {}, {"one": "the activation is used elsewhere"}),
    "residual": Model(Residual, {}, {"one": "output is used elsewhere too"}),
    "kept": Model(Kept, {}, {"one": "assigns to more than names"}),
    "branches": Model(Branches, {}, {"one": "Branches.forward has an If"}),
    "loops": Model(Loops, {}, {"one": "Loops.forward has a For"}),
    "switches": Model(Switches, {}, {"one": "gradients or autocast are switched"}),
    "swaps": Model(Swaps, {}, {"": "cannot trace it (its train() has other modules)"}),
    "picks": Model(Picks, {}, {"firsts.0": "picks by an index"}),
    "picks_by_name": Model(PicksByName, {}, {"one": "calls getattr(self, 'one'), which"}),
    "constant_index": Model(ConstantIndex, {"firsts.0": "relu of firsts.1"}),
    "training": Model(Trained, {}, {"one": "Trained.forward calls {True: "}),
    "changed_in_place": Model(
        ChangedInPlace, {"two": "relu6 of F.relu6(self.two(a)) in the model itself"},
        {"one": "its output is changed in place"}),
    "parameters": Model(
        OtherParameters,
        {"two": "leaky_relu(-0.5) of F.leaky_relu(self.two(F.leaky_relu(self.one(x), self.slope)), "
                "-0.5) in the model itself"},
        {"one": "self.slope may change"}),
    "aliased": Model(Aliased, {}, {"one": "is not a name of torch's function"}),
    "twice_called": Model(TwiceCalled, {}, {"two": "used in more than one place"}),
    "shared_convolution": Model(shared_convolution, {}, {"0": "in more than one place"}),
    "held_elsewhere": Model(held_elsewhere, {}, {"": "forward was replaced"}),
    "prelu": Model(sequential(act=nn.PReLU), {}, {"conv": "does not know PReLU"}),
    "subclass": Model(sequential(act=SubclassOfReLU), {}, {"conv": "does not know SubclassOfReLU"}),
    "untraceable": Model(Untraceable, {}, {"": "torch.fx cannot trace it"}),
    "slices": Model(Slices, {}, {"": "cannot trace it"}),
    "around": Model(Around, {}, {"": "cannot trace it"}),
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
