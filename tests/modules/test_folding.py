"""Batch norms folded into the convolutions before them: same outputs, or left alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from cases import normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torch_convbp as bp


class Tail(nn.Module):
    """A convolution, a norm and an activation, in one of several ways."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.conv = bp.ConvBP2d(3, 6, 3, **changes.get("conv", {}))
        self.norm = changes.get("norm", nn.BatchNorm2d)(6)
        self.act = nn.ReLU()
        self.way = changes.get("way", lambda self, x: self.act(self.norm(self.conv(x))))
        if "then" in changes:
            changes["then"](self)

    def forward(self, input: Tensor) -> Tensor:
        return self.way(self, input)


def prepared(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics and scales as after some training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: Tail(),
    "no bias": lambda: Tail(conv=dict(bias=False)),
    "stride, groups": lambda: Tail(conv=dict(stride=2, groups=3)),
    "padding mode": lambda: Tail(conv=dict(padding=2, padding_mode="reflect")),
    "norm without scale": lambda: Tail(norm=lambda n: nn.BatchNorm2d(n, affine=False)),
    "identity between": lambda: nn.Sequential(
        bp.ConvBP2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4), nn.SiLU()
    ),
    "functional activation": lambda: Tail(way=lambda m, x: m.norm(m.conv(x)).relu()),
    "resnet18": lambda: bp.convert(torchvision.models.resnet18()),
    "mobilenet_v2": lambda: bp.convert(torchvision.models.mobilenet_v2()),
}


@pytest.mark.parametrize("name", FOLDED)
def test_same_output(name: str) -> None:
    model = prepared(FOLDED[name]())
    input = normal((2, 3, 40, 40), torch.float64, seed=1)
    expected = model(input)
    assert bp.fold_batch_norm(model) is model and norms(model) == 0
    assert not any(module.training for module in model.modules())
    # Sums of at most 10^4 products in at most a hundred layers, in units of the largest.
    bound = 1e4 * 2**-53 * 100 * expected.abs().max().item()
    assert (model(input) - expected).abs().max() <= bound
    bp.convert(model, fuse_activations=True)
    assert (model(input) - expected).abs().max() <= bound
    if name in ("bias", "identity between", "mobilenet_v2"):
        assert len(bp.fusions(model).fused) == {"mobilenet_v2": 35}.get(name, 1)


def test_hooks_on_an_identity_see_what_they_saw() -> None:
    model = prepared(Tail())
    input = normal((2, 3, 8, 8), torch.float64, seed=1)
    bp.convert(bp.fold_batch_norm(model), fuse_activations=True)
    seen: list[Tensor] = []
    expected = model(input)
    with model.norm.register_forward_hook(lambda m, args, output: seen.append(output)):
        torch.testing.assert_close(model(input), expected)
    assert seen[0].min() < 0, "p, not what ReLU gives"


def nested(watched: int) -> nn.Module:
    """One of: a part that ends with the convolution, a part with the norm, and two of Identity."""
    model = nn.Sequential(
        nn.Sequential(bp.ConvBP2d(3, 6, 3)), nn.Sequential(nn.BatchNorm2d(6)), nn.Identity()
    )
    if watched >= 2:
        model = nn.Sequential(bp.ConvBP2d(3, 6, 3), nn.Identity(), nn.BatchNorm2d(6))
    module = model[min(watched, 1)]
    if watched == 3:
        module.forward = lambda input: 2 * input
    else:
        module.register_forward_hook(lambda m, args, output: output)
    return model


def norm_without_gradients(model: Any, input: Tensor) -> Tensor:
    p = model.conv(input)
    with torch.no_grad():
        return model.norm(p)


def shared(model: Any) -> None:
    model.other = nn.Conv2d(3, 6, 3)
    model.other.weight = model.conv.weight


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "own activation": lambda: Tail(conv=dict(activation="relu")),
    "no statistics": lambda: Tail(norm=lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
    "another norm": lambda: Tail(norm=lambda n: nn.SyncBatchNorm(n)),
    "replaced forward": lambda: Tail(
        then=lambda m: setattr(m.conv, "_conv_forward", lambda input, *_: input)
    ),
    "two users": lambda: Tail(way=lambda m, x: m.norm(y := m.conv(x)) + y),
    "called twice": lambda: Tail(way=lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(-x))),
    "another norm's turn": lambda: Tail(way=lambda m, x: m.norm(m.act(m.conv(x)))),
    "hook on the convolution": lambda: Tail(
        then=lambda m: m.conv.register_forward_hook(lambda *_: None)
    ),
    "hook on the norm": lambda: Tail(
        then=lambda m: m.norm.register_forward_pre_hook(lambda *_: None)
    ),
    "parametrized": lambda: Tail(then=lambda m: parametrizations.weight_norm(m.conv)),
    "shared weight": lambda: Tail(then=shared),
    "two places": lambda: Tail(then=lambda m: m.add_module("again", m.norm)),
    "hook on the part around the convolution": lambda: nested(0),
    "hook on the part around the norm": lambda: nested(1),
    "identity with a hook": lambda: nested(2),
    "identity with another forward": lambda: nested(3),
    "norm without gradients": lambda: Tail(way=norm_without_gradients),
    "weight read by the forward": lambda: Tail(
        way=lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum()
    ),
    "held": lambda: Tail(way=lambda m, x: m.norm(m.__dict__.setdefault("held", m.conv(x)))),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    model = prepared(LEFT_ALONE[name]())
    before = copy.deepcopy(model.state_dict())
    bp.fold_batch_norm(model)
    assert norms(model) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_known_by_another_reference() -> None:
    """The norm is the same object afterwards, in a list of the forward's and in another model."""
    layers = [bp.ConvBP2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers
            for i, layer in enumerate(layers):
                self.add_module(f"layer{i}", layer)

        def forward(self, input: Tensor) -> Tensor:
            for layer in self.layers:
                input = layer(input)
            return input

    model, other = prepared(Listed()), nn.Sequential(*layers)
    input = normal((2, 3, 8, 8), torch.float64, seed=1)
    expected = model(input)
    bp.fold_batch_norm(model)
    assert type(layers[1]) is nn.Identity
    torch.testing.assert_close(model(input), expected)
    torch.testing.assert_close(other(input), expected)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(other))
    for copied in copies:
        torch.testing.assert_close(copied.eval()(input), expected)


def test_what_requires_gradients_still_does() -> None:
    model = prepared(Tail())
    model.conv.weight.requires_grad_(False)
    bp.fold_batch_norm(model)
    assert not model.conv.weight.requires_grad and model.conv.bias.requires_grad


class Untraceable(Tail):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if input.sum() > 0 else -input)


NOTHING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "untraceable": (Untraceable, "torch.fx cannot trace Untraceable"),
    "torch's convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        "the model has no ConvBP2d",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_folded_with_a_warning(name: str) -> None:
    make, reason = NOTHING[name]
    with pytest.warns(UserWarning, match=f"fold_batch_norm folded nothing: {reason}"):
        assert norms(bp.fold_batch_norm(prepared(make()))) == 1


def test_numbers_that_would_overflow_are_left_alone() -> None:
    model = prepared(Tail())
    model.conv.weight.detach().fill_(1e307)
    model.norm.weight.detach().fill_(1e3)
    assert norms(bp.fold_batch_norm(model)) == 1


def test_a_part_in_training_mode_is_refused() -> None:
    model = prepared(Tail())
    model.norm.train()
    with pytest.raises(ValueError, match="in evaluation mode, but 'norm' is in training mode"):
        bp.fold_batch_norm(model)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fold_batch_norm\(\): argument 'model' must be in eval"):
        bp.fold_batch_norm(Tail())


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"fold_batch_norm\(\): argument 'model' must be"):
        bp.fold_batch_norm([Tail()])  # type: ignore[type-var]
