"""Models with activations after convolutions, and which of these are computed in the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
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
        self.none = nn.Identity()


class Calls(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x))).tanh()


class SharedRelu(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(x))))


class SharedElsewhere(Two):
    """The activation has another use, where it is told nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(x))) + 1)


class Optional(Two):
    """What is called without the optional arguments is what is traced."""

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        x = self.relu(self.one(x))
        if flag:
            x = x * 2
        return self.two(x if mask is None else x * mask)


class Residual(Two):
    def forward(self, x: Tensor) -> Tensor:
        p = self.one(x)
        return self.two(self.relu(p + 0)) + p


class Loops(nn.Module):
    """The pair is in a list, which nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3)])
        self._runs = self._pairs = self._fusion = 7  # names of its own

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self._runs


class Checkpoints(Two):
    """The activation runs again in the backward pass, and the convolution does not."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda p: self.two(self.relu(p)), self.one(x), use_reentrant=False)


class Holds(Two):
    """Its output is a part of the model too, as Grad-CAM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["one"] = self.one(x)
        return self.two(self.relu(self.seen["one"]))


class WithoutGradients(Two):
    """Runs another way where no gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(self.relu(x) if torch.is_grad_enabled() else x)


class TwiceCalled(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.two(self.one(x))))


class Switches(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        with torch.no_grad():
            x = self.relu(x)
        return self.two(x)


class Trained(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.two((self.relu if self.training else self.none)(self.one(x)))


class Swaps(Two):
    """Its modules are others in evaluation."""

    def train(self, mode: bool = True) -> Swaps:
        super().train(mode)
        self.relu = nn.ReLU() if mode else nn.Identity()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.relu(self.one(x)))


class ChangedInPlace(Two):
    """torch keeps the input of a leaky_relu, so that its output may be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LeakyReLU(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.one(x))
        a += 1
        return self.second(self.two(a))


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


class SharedByParts(nn.Module):
    """Its parts are traced by themselves, and share a convolution."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 3)
        self.a, self.b = nn.Sequential(conv, nn.ReLU()), nn.Sequential(conv, nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + self.a(x) if x.sum() < 1e9 else x


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
    return nn.Sequential(conv, nn.ReLU(), conv, nn.Tanh(), nn.Flatten())


def shared_activation() -> nn.Module:
    g = nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), g, nn.Conv2d(4, 4, 3), g, nn.Conv2d(4, 4, 1))


def replaced_forward() -> nn.Module:
    model = sequential()()
    model.forward = lambda x: model.last(model.act(model.conv(x)))  # type: ignore[method-assign]
    return model


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
LAST = {"last": "followed by what its module returns"}
NORM = {"conv1": "followed by BatchNorm2d"} | {
    f"layer{i}.0.{name}": "followed by BatchNorm2d"
    for i in (1, 2, 3, 4)
    for name in ("conv1", "conv2", *(["downsample.0"] if i > 1 else []))
}
MODELS = {
    "resnet": Model(lambda: ResNet(BasicBlock, [1, 1, 1, 1], 5), {}, NORM, pixels=32),
    "alexnet": Model(
        lambda: torchvision.models.AlexNet(5).features, {
            str(i): f"relu of {i + 1}" for i in (0, 3, 6, 8, 10)}, pixels=63),
    "squeezenet1_1": Model(lambda: SqueezeNet("1_1", 5), squeezenet(), pixels=32),
    "modules": Model(sequential(), FIRST, LAST),
    "gelu": Model(sequential(act=nn.GELU), {"conv": "gelu of act"}, LAST),
    "shared_relu": Model(SharedRelu, {"one": "relu of relu", "two": "relu of relu"}),
    "shared_activation": Model(
        shared_activation, {"0": "leaky_relu(0.2) of 1", "2": "leaky_relu(0.2) of 1"},
        {"4": "what its module returns"}),
    "shared_elsewhere": Model(
        SharedElsewhere, {"one": "relu of relu"}, {"two": "followed by add, which is no module"}),
    "optional": Model(Optional, {"one": "relu of relu"}, {"two": "what its module returns"}),
    "loops": Model(
        Loops, {"layers.0": "tanh of layers.1"}, {"layers.2": "followed by mul, which is no"}),
    "weight_norm": Model(
        sequential(conv=lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), FIRST, LAST),
    # What is left alone.
    "pruned": Model(  # by a hook
        sequential(conv=lambda: prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 3)),
        {}, {"conv": "not fused yet, or hooks are between the two", **LAST}),
    "calls": Model(Calls, {}, {"one": "followed by relu, which is no", "two": "followed by tanh"}),
    "residual": Model(
        Residual, {}, {"one": "used more than once", "two": "followed by add, which is no module"}),
    "holds": Model(
        Holds, {}, {"one": "its output is held by the model too", "two": "what its module"}),
    "without_gradients": Model(
        WithoutGradients, {}, {"one": "followed by ConvBP2d", "two": "what its module returns"}),
    "checkpoints": Model(
        Checkpoints, {}, {"one": "or a checkpoint are switched", "two": "what its module"}),
    "switches": Model(
        Switches, {}, {"one": "gradients, autocast or a check", "two": "its module returns"}),
    "training": Model(Trained, {}, {"one": "followed by ConvBP2d", "two": "its module returns"}),
    "swaps": Model(Swaps, {}, {"one": "followed by ConvBP2d", "two": "its module returns"}),
    "changed_in_place": Model(ChangedInPlace, {}, {
        "one": "what LeakyReLU gives may be changed in place",
        "two": "what ReLU6 gives may be changed in place"}),
    "twice_called": Model(
        TwiceCalled, {}, {"one": "followed by ConvBP2d", "two": "followed by ConvBP2d"}),
    "shared_convolution": Model(shared_convolution, {}, {"0": "it is in more than one place"}),
    "prelu": Model(sequential(act=nn.PReLU), {}, {"conv": "followed by PReLU", **LAST}),
    "subclass": Model(
        sequential(act=SubclassOfReLU), {}, {"conv": "followed by SubclassOfReLU", **LAST}),
    "untraceable": Model(
        Untraceable, {"features.0": "relu of features.1", "blocks.0.0": "tanh of blocks.0.1"},
        {"features.2": "followed by PReLU", "direct": "torch.fx cannot trace Untraceable ("}),
    "shared_by_parts": Model(
        SharedByParts, {},
        {"a.0": "it is in more than one place of", "b.0": "it is in more than one place of"}),
    "replaced_forward": Model(replaced_forward, {}, {
        "conv": "cannot trace Sequential (its forward was replaced", "last": "was replaced"}),
    "own_activation": Model(
        sequential(conv=lambda: bp.ConvBP2d(3, 4, 3, activation="tanh")), {}, LAST),
    "one_layer": Model(lambda: nn.Conv2d(3, 4, 3), {}, {"": "not called by a module"}),
}  # fmt: skip
