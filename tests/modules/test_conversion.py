"""What is ours, what stayed torch's and why; and the choice of layers in convert."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_convbp as bp


def model() -> nn.Sequential:
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(3, 4, 3),
        "act": nn.ReLU(),
        "norm": nn.BatchNorm2d(4),
        "pool": nn.MaxPool2d(2),
        "mean": nn.AvgPool2d(2),
        "point": nn.Conv2d(4, 4, 1),
        "up": nn.ConvTranspose2d(4, 4, 2),
        "global": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "dense": nn.Linear(4, 2),
    }
    whole = nn.Sequential()
    for name, layer in layers.items():
        whole.add_module(name, layer)
    return whole


def ours(whole: nn.Module) -> set[str]:
    return {name for names in bp.conversion(whole).ours.values() for name in names}


def test_every_layer_is_listed_once() -> None:
    whole = bp.convert(model(), fuse_activations=True)
    result = bp.conversion(whole)
    assert result.ours == {"ConvBP2d": ["conv", "point"]}
    assert [(pair.convolution, pair.activation) for pair in result.fused] == [("conv", "act")]
    assert [tuple(entry) for entry in result.left_alone] == [
        ("pool", "MaxPool2d", "convert(pooling=True) converts it"),
        ("mean", "AvgPool2d", "convert(pooling=True) converts it"),
        ("up", "ConvTranspose2d", "torch_convbp has no such layer"),
        ("global", "AdaptiveAvgPool2d", "torch_convbp has no such layer"),
        ("dense", "Linear", "convert(dense=True) converts it"),
    ]
    assert str(result) == (
        "2 layer(s) of torch_convbp\n"
        "  2 ConvBP2d\n"
        "  1 activation(s) computed in the convolutions\n"
        "5 layer(s) of torch\n"
        "  1 MaxPool2d: convert(pooling=True) converts it\n    pool\n"
        "  1 AvgPool2d: convert(pooling=True) converts it\n    mean\n"
        "  1 ConvTranspose2d: torch_convbp has no such layer\n    up\n"
        "  1 AdaptiveAvgPool2d: torch_convbp has no such layer\n    global\n"
        "  1 Linear: convert(dense=True) converts it\n    dense"
    )
    whole = bp.convert(whole, pooling=True, dense=True)
    assert [entry.name for entry in bp.conversion(whole).left_alone] == ["up", "global"]
    bp.revert(whole)
    assert not ours(whole) and len(bp.conversion(whole).left_alone) == 7


class OwnForward(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class OwnName(nn.Conv2d):
    pass


def replaced() -> nn.Module:
    layer = nn.Conv2d(1, 1, 1)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "not converted": (lambda: nn.Conv2d(1, 1, 1), "it is not converted"),
    "subclass": (lambda: OwnName(1, 1, 1), "it is not converted"),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Conv2d(1, 1, 1)),
        "it is not converted",
    ),
    "own forward": (lambda: OwnForward(1, 1, 1), "OwnForward has a forward of its own"),
    "replaced": (replaced, "its forward was replaced"),
    "lazy": (lambda: nn.LazyConv2d(1, 1), "lazy and not initialised"),
    "scripted": (lambda: torch.jit.script(nn.Conv2d(1, 1, 1)), "it is compiled by TorchScript"),
    "scripted, 1-D": (lambda: torch.jit.script(nn.Conv1d(1, 1, 1)), "it is compiled by"),
    "1-D": (lambda: nn.Conv1d(1, 1, 1), "no such layer"),
    "3-D": (lambda: nn.MaxPool3d(1), "no such layer"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", LEFT)
def test_reasons(name: str) -> None:
    make, reason = LEFT[name]
    layer = make()
    (entry,) = bp.conversion(nn.ModuleDict({"layer": layer})).left_alone
    assert entry.name == "layer" and reason in entry.reason
    (alone,) = bp.conversion(layer).left_alone
    assert alone.name == "" and "(the model itself)" in str(bp.conversion(layer))


def test_an_attribute_of_that_name_is_no_script() -> None:
    whole = model()
    whole.act.original_name = ["Conv2d"]
    assert len(bp.conversion(whole).left_alone) == 7


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"conversion\(\): argument 'model' must be"):
        bp.conversion("resnet18")  # type: ignore[arg-type]


# --- convert(layers=...)

CHOICES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "names": (dict(layers=["point"]), {"point"}),
    "names of each kind": (dict(layers=("conv", "pool", "dense")), {"conv", "pool", "dense"}),
    "a generator": (dict(layers=(name for name in ["mean"])), {"mean"}),
    "no name": (dict(layers=[]), set()),
    "names and a flag": (dict(layers=["point"], dense=True), {"point"}),
    "function": (dict(layers=lambda name, layer: layer.kernel_size == (1, 1)), {"point"}),
    "function and a flag": (
        dict(layers=lambda name, layer: name != "conv", pooling=True),
        {"point", "pool", "mean"},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_only_chosen_layers(name: str) -> None:
    arguments, expected = CHOICES[name]
    assert ours(bp.convert(model(), **arguments)) == expected


def test_layer_chosen_by_one_of_its_names() -> None:
    whole = model()
    whole.add_module("again", whole.conv)
    assert ours(bp.convert(copy.deepcopy(whole), layers=["again"])) == {"conv"}


def test_chosen_and_fused() -> None:
    whole = bp.convert(model(), layers=["conv"], fuse_activations=True)
    assert ours(whole) == {"conv"} and len(bp.conversion(whole).fused) == 1


def test_a_function_that_raises_leaves_the_model_as_it_is() -> None:
    whole = model()
    with pytest.raises(AttributeError):
        bp.convert(whole, dense=True, layers=lambda name, layer: layer.kernel_size is not None)
    assert not ours(whole)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("conv", TypeError, "must be names or a function of .name, module., not str"),
    "layer": (nn.ReLU(), TypeError, "must be names or a function of .name, module., not ReLU"),
    "number": (3, TypeError, "must be names or a function of .name, module., not int"),
    "numbers": ([3], TypeError, "must be names, but one is int"),
    "unknown": (["conv9"], ValueError, "has 'conv9', but model has no module of that name"),
    "norm": (["norm"], ValueError, "has 'norm', a BatchNorm2d, which is none of nn.Conv2d"),
    "transposed": (["up"], ValueError, "has 'up', a ConvTranspose2d, which is none of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_choices(name: str) -> None:
    layers, error, message = WRONG[name]
    whole = model()
    with pytest.raises(error, match=rf"convert\(\): argument 'layers' {message}"):
        bp.convert(whole, layers=layers)
    assert not ours(whole)
