"""convert and revert: the same objects around, other numbers nowhere."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torchvision
from cases import normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torch_convbp as bp


def vgg11() -> nn.Module:
    model = torchvision.models.vgg11()
    model.classifier = nn.Linear(512 * 7 * 7, 10)  # its own holds 120 million weights, no filter
    return model


MODELS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "vgg11": vgg11,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=10, init_weights=False),
}
SIZES = {"googlenet": 96, "densenet121": 64}  # pixels; the others take 64 too


def outputs_and_gradients(model: nn.Module, input: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)  # dropout
    output = model(input)
    outputs = list(output) if isinstance(output, tuple) else [output]
    sum(o.square().sum() for o in outputs).backward()
    return outputs, [p.grad.clone() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_torchvision_models(name: str) -> None:
    """Outputs and every gradient, in float64, before, converted, and reverted; training mode.

    The bound: each element is a sum of at most some 10^4 products, taken in another order, and
    passes a hundred layers: 10^4 * 2^-53 * 100 = 1e-10 of the largest element. (Gradients that are
    zero but for rounding, of a bias before batch normalisation, are measured by the others.)
    """
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        # Momentum 0 keeps the running statistics, which three passes would otherwise move.
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    pixels = SIZES.get(name, 64)
    input = normal((2, 3, pixels, pixels), torch.float64, seed=1)
    keys = list(model.state_dict())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    parameters = list(model.parameters())
    before = outputs_and_gradients(model, input)

    assert bp.convert(model) is model
    assert all(type(m) is bp.ConvBP2d for m in convolutions)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    during = outputs_and_gradients(model, input)

    assert bp.revert(model) is model
    assert all(type(m) is nn.Conv2d for m in convolutions)
    after = outputs_and_gradients(model, input)

    for kind in range(2):
        largest = max(a.abs().max().item() for a in before[kind])
        for a, b, c in zip(before[kind], during[kind], after[kind], strict=True):
            bound = 1e-10 * max(a.abs().max().item(), 1e-4 * largest)
            assert (a - b).abs().max() <= bound
            assert torch.equal(a, c)
    assert len(convolutions) > 7


def test_everything_around_a_layer_survives() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, nn.Conv2d(4, 4, 3))
    model[4].weight = shared.weight  # tied
    model[0].weight.requires_grad_(False)
    model[1].eval()
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {id(p) for group in optimizer.param_groups for p in group["params"]}
    model.to(torch.float64)
    before = [(id(m), m.training) for m in model.modules()]

    bp.convert(model)
    assert [(id(m), m.training) for m in model.modules()] == before
    assert model[1] is model[3] is shared and type(shared) is bp.ConvBP2d
    assert model[4].weight is shared.weight
    assert not model[0].weight.requires_grad
    assert {id(p) for p in model.parameters()} == state
    assert model[0].weight.dtype == torch.float64
    old = shared.weight.detach().clone()
    model(normal((1, 3, 9, 9), torch.float64, seed=1)).sum().backward()
    optimizer.step()
    assert calls == ["hook"]
    assert not torch.equal(old, shared.weight), "the optimizer lost the parameter"


def test_a_convolution_itself() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert bp.convert(layer) is layer
    assert type(layer) is bp.ConvBP2d
    assert type(bp.revert(layer)) is nn.Conv2d


def test_nothing_to_convert() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(1, 1, 1))
    kinds = [type(m) for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.revert(bp.convert(bp.convert(model)))
    assert [type(m) for m in model.modules()] == kinds


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnInit(nn.Conv2d):
    """A subclass that only has a constructor of its own, and is picklable."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)
        self.width = width


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_converted_is_left_alone_and_listed() -> None:
    replaced = nn.Conv2d(3, 3, 1)
    replaced.forward = lambda input: input
    left = {
        "own": OwnForward(3, 3, 1),
        "lazy": nn.LazyConv2d(3, 1),
        "complex": nn.Conv2d(3, 3, 1, dtype=torch.complex64),
        "replaced": replaced,
        "scripted": torch.jit.script(nn.Conv2d(3, 3, 1)),
    }
    model = nn.ModuleDict({**left, "plain": nn.Conv2d(3, 3, 1)})
    kinds = {name: type(m) for name, m in left.items()}
    with pytest.warns(UserWarning, match="left 5 convolution") as caught:
        bp.convert(model)
    message = str(caught[0].message)
    assert type(model["plain"]) is bp.ConvBP2d
    for name in left:
        assert type(model[name]) is kinds[name]
        assert f"  {name}: " in message
    assert "OwnForward has a forward of its own" in message
    assert "torch.complex64" in message
    assert caught[0].filename == __file__, "the warning should point at the caller"


def test_subclasses_that_inherit_the_forward() -> None:
    model = nn.Sequential(OwnInit(3))
    input = normal((1, 3, 5, 5), torch.float32, seed=1)
    expected = model(input)
    bp.convert(model)
    layer = model[0]
    assert isinstance(layer, bp.ConvBP2d) and isinstance(layer, OwnInit)
    assert layer.width == 3
    torch.testing.assert_close(model(input), expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied[0]) is type(layer)
        assert torch.equal(copied(input), model(input))
    bp.revert(model)
    assert type(layer) is OwnInit


class Final(nn.Conv2d):
    def __init_subclass__(cls, **_) -> None:
        raise TypeError("this class is final")


class WithLock(nn.Conv2d):
    """A layer that cannot be copied but by its own rule."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.lock = threading.Lock()

    def __reduce_ex__(self, protocol):
        state = vars(self).copy()
        del state["lock"]
        return WithLock, (3, 4, 3), state


def test_a_class_that_refuses_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Final(3, 3, 1), nn.Conv2d(3, 3, 1))
    with pytest.warns(UserWarning, match="1: Final does not let itself be derived from: this"):
        bp.convert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, Final, bp.ConvBP2d]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_subclass_keeps_its_own_way_of_being_copied(copied) -> None:
    layer = bp.convert(WithLock(3, 4, 3))
    other = copied(layer)
    assert type(other) is type(layer) and isinstance(other, bp.ConvBP2d)
    assert torch.equal(other.weight, layer.weight)
    assert type(bp.revert(other)) is WithLock


def test_parametrized_layers() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    input = normal((1, 3, 5, 5), torch.float32, seed=1)
    expected = model(input)
    keys = list(model.state_dict())
    bp.convert(model)
    assert isinstance(model[0], bp.ConvBP2d)
    torch.testing.assert_close(model(input), expected)
    assert list(model.state_dict()) == keys
    model(input).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is bp.ConvBP2d
    torch.testing.assert_close(model(input), expected)


def test_converting_computes_nothing() -> None:
    """spectral_norm moves its state whenever its weight is looked at in training."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)))
    before = copy.deepcopy(model.state_dict())
    bp.revert(bp.convert(model))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(model[0]).__name__ == "ParametrizedConv2d"


def test_revert_leaves_subclasses_of_convbp2d_alone() -> None:
    class Mine(bp.ConvBP2d):
        pass

    model = nn.Sequential(Mine(3, 3, 1), bp.ConvBP2d(3, 3, 1))
    with pytest.warns(UserWarning, match="left 1 layer"):
        bp.revert(model)
    assert type(model[0]) is Mine and type(model[1]) is nn.Conv2d


@pytest.mark.parametrize("function", [bp.convert, bp.revert])
def test_no_module(function) -> None:
    with pytest.raises(TypeError, match=r"argument 'model' must be a torch.nn.Module, not dict"):
        function({})


def test_an_attribute_named_as_ours_is() -> None:
    """It would be taken for the layer's activation, or hidden behind it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    model[0].activation, model[1].activation, model[2].activation = "relu", nn.ReLU(), "relu"
    kinds, input = [type(m) for m in model], torch.randn(1, 3, 8, 8)
    expected = model(input)
    with pytest.warns(UserWarning, match="it has an attribute named activation"):
        bp.convert(model, dense=True)
    assert [type(m) for m in model] == kinds
    assert torch.equal(model(input), expected)


def test_revert_leaves_layers_with_an_activation_alone() -> None:
    model = nn.Sequential(bp.ConvBP2d(3, 4, 3, activation="relu"), bp.LinearBP(4, 5))
    input = normal((1, 3, 6, 6), torch.float32, 1)
    expected = model(input)
    with pytest.warns(UserWarning, match="0: its activation relu is part of the layer"):
        bp.revert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, nn.Linear]
    assert torch.equal(model(input), expected)
