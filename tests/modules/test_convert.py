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

pytestmark = pytest.mark.every_device


def vgg11(kind: str) -> nn.Module:
    model = getattr(torchvision.models, kind)(init_weights=False)
    model.classifier = nn.Linear(512 * 7 * 7, 10)  # its own holds 120 million weights, no filter
    return model


MODELS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "vgg11": lambda: vgg11("vgg11"),
    "vgg11_bn": lambda: vgg11("vgg11_bn"),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=10, init_weights=False),
}
PIXELS = {"vgg11": 32, "vgg11_bn": 32, "googlenet": 96}  # the others take 64
FUSED = {"vgg11": 8}  # activations; in the others a batch normalisation stands between


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
    """Outputs and every gradient, in float64, before, converted with activations fused, and
    reverted; training mode.

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
    pixels = PIXELS.get(name, 64)
    input = normal((2, 3, pixels, pixels), torch.float64, seed=1)
    keys = list(model.state_dict())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    parameters = list(model.parameters())
    before = outputs_and_gradients(model, input)

    assert bp.convert(model, fuse_activations=True) is model
    assert len(bp.fusions(model).fused) == FUSED.get(name, 0)
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
        "8 bits": nn.Conv2d(3, 3, 1).to(torch.float8_e4m3fn),
        "replaced": replaced,
        "scripted": torch.jit.script(nn.Conv2d(3, 3, 1)),
    }
    model = nn.ModuleDict({**left, "plain": nn.Conv2d(3, 3, 1)})
    kinds = {name: type(m) for name, m in left.items()}
    with pytest.warns(UserWarning, match="left 5 layer") as caught:
        bp.convert(model)
    message = str(caught[0].message)
    assert type(model["plain"]) is bp.ConvBP2d
    for name in left:
        assert type(model[name]) is kinds[name]
        assert f"  {name}: " in message
    assert "OwnForward has a forward of its own" in message
    assert "torch.float8_e4m3fn" in message
    assert caught[0].filename == __file__, "the warning should point at the caller"


class OwnLinear(nn.Linear):
    pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pools_and_dense_layers_left_alone_are_listed() -> None:
    replaced, sparse = nn.MaxPool2d(2), nn.Linear(3, 3)
    replaced.forward = lambda input: input
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    left = {
        "replaced": (replaced, "its forward was replaced on the object"),
        "subclass": (OwnLinear(3, 3), "OwnLinear is a subclass of nn.Linear"),
        "sparse": (sparse, "its parameters are not dense (layout torch.sparse_coo)"),
        "lazy": (nn.LazyLinear(3), "lazy and not initialised yet"),
        "scripted": (torch.jit.script(nn.AvgPool2d(2)), "it is compiled by TorchScript"),
    }
    model = nn.ModuleDict({name: module for name, (module, _) in left.items()})
    kinds = {name: type(module) for name, module in model.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.convert(model)  # nobody asked for them
    with pytest.warns(UserWarning, match="left 5 layer") as caught:
        bp.convert(model, pooling=True, dense=True)
    message = str(caught[0].message)
    for name, (module, reason) in left.items():
        assert type(module) is kinds[name]
        assert f"  {name}: {reason}" in message
    assert caught[0].filename == __file__, "the warning should point at the caller"


@pytest.mark.parametrize("argument", ["pooling", "dense"])
def test_flags_are_bools(argument: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match=f"argument '{argument}' must be bool, not str"):
        bp.convert(model, **{argument: "no"})
    assert type(model[0]) is nn.Conv2d


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
    with pytest.warns(UserWarning, match="1: Final does not let its class be changed: this"):
        bp.convert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, Final, bp.ConvBP2d]


class Freezable(nn.Conv2d):
    def __setattr__(self, name, value):
        if "frozen" in vars(self):
            raise AttributeError(f"{name} of a frozen layer")
        super().__setattr__(name, value)

    def freeze(self):
        vars(self)["frozen"] = True


def test_a_frozen_layer_is_left_alone() -> None:
    """In both directions: what refuses to be set is its class."""
    model = nn.Sequential(Freezable(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[0].freeze()
    with pytest.warns(UserWarning, match="0: Freezable .* changed: __class__ of a frozen layer"):
        bp.convert(model)
    assert [type(m) for m in model] == [Freezable, bp.ConvBP2d]

    model = bp.convert(nn.Sequential(Freezable(3, 3, 1), nn.Conv2d(3, 3, 1)))
    model[0].freeze()
    converted = type(model[0])
    with pytest.warns(
        UserWarning, match="0: ConvBP2d_Freezable .* changed: __class__ of a frozen layer"
    ):
        bp.revert(model)
    assert [type(m) for m in model] == [converted, nn.Conv2d]


class ActivationBeside(nn.Conv2d):
    """Has it for others to call."""

    def __init__(self, *args):
        super().__init__(*args)
        self.activation = nn.Sigmoid()


class ActivationAsMethod(nn.Conv2d):
    def activation(self, p):
        return p.sigmoid()


class ActivationAsProperty(nn.Conv2d):
    @property
    def activation(self):
        raise RuntimeError("it was looked at")


def with_attribute(layer: nn.Module, value: object) -> nn.Module:
    layer.activation = value
    return layer


# What of a user's own is called as ours: none of it may change what the layer computes.
OWN_ACTIVATIONS = {
    "name": lambda: with_attribute(nn.Conv2d(3, 4, 3), "sigmoid"),
    "function": lambda: with_attribute(nn.Conv2d(3, 4, 3), torch.relu),
    "none": lambda: with_attribute(nn.Conv2d(3, 4, 3), None),
    "module": lambda: ActivationBeside(3, 4, 3),
    "method": lambda: ActivationAsMethod(3, 4, 3),
    "property": lambda: ActivationAsProperty(3, 4, 3),
    "dense": lambda: with_attribute(nn.Linear(8, 4), "relu"),
}


@pytest.mark.parametrize("name", OWN_ACTIVATIONS)
def test_a_layer_with_an_activation_attribute_is_left_alone(name: str) -> None:
    model = nn.Sequential(OWN_ACTIVATIONS[name](), nn.Sigmoid())
    cls, attributes = type(model[0]), vars(model[0]).copy()
    input = torch.randn(2, 3, 8, 8)
    before = model(input)
    with pytest.warns(UserWarning, match="0: it has an attribute activation of its own"):
        bp.convert(model, dense=True)
    assert type(model[0]) is cls and vars(model[0]) == attributes
    assert torch.equal(model(input), before)


def test_a_pool_with_an_activation_attribute_is_converted() -> None:
    """Ours has none that it could be taken for."""
    model = nn.Sequential(with_attribute(nn.MaxPool2d(2), "relu"))
    input = torch.randn(2, 3, 8, 8)
    before = model(input)
    assert torch.equal(bp.convert(model, pooling=True)(input), before)
    assert type(model[0]) is bp.MaxPoolBP2d and model[0].activation == "relu"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_a_converted_max_pool_still_takes_integers(dtype: torch.dtype) -> None:
    input = torch.arange(-40, 56).reshape(1, 2, 6, 8).to(dtype)
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True, return_indices=True))
    before = model(input)
    after = bp.convert(model, pooling=True)(input)
    assert type(model[0]) is bp.MaxPoolBP2d
    for a, b in zip(after, before, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


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


def test_parametrized_dense_layers() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    kind, keys = type(model[0]).__name__, list(model.state_dict())
    input = normal((2, 4), torch.float32, seed=1)
    expected = model(input)
    bp.convert(model, dense=True)
    assert isinstance(model[0], bp.LinearBP) and list(model.state_dict()) == keys
    assert torch.equal(model(input), expected)
    assert torch.equal(copy.deepcopy(model)(input), expected)
    bp.revert(model)
    assert not isinstance(model[0], bp.LinearBP) and type(model[0]).__name__ == kind
    assert torch.equal(model(input), expected)


def test_converting_computes_nothing() -> None:
    """spectral_norm moves its state whenever its weight is looked at in training."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)))
    before = copy.deepcopy(model.state_dict())
    bp.revert(bp.convert(model))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(model[0]).__name__ == "ParametrizedConv2d"


def test_revert_leaves_subclasses_of_ours_alone() -> None:
    class Mine(bp.ConvBP2d):
        pass

    class MyPool(bp.MaxPoolBP2d):
        pass

    model = nn.Sequential(Mine(3, 3, 1), bp.ConvBP2d(3, 3, 1), MyPool(2))
    with pytest.warns(UserWarning, match="left 2 layer"):
        bp.revert(model)
    assert [type(m) for m in model] == [Mine, nn.Conv2d, MyPool]


@pytest.mark.parametrize("function", [bp.convert, bp.revert])
def test_no_module(function) -> None:
    with pytest.raises(TypeError, match=r"argument 'model' must be a torch.nn.Module, not dict"):
        function({})


def test_revert_leaves_layers_with_an_activation_alone() -> None:
    model = nn.Sequential(bp.ConvBP2d(3, 4, 3, activation="relu"), bp.LinearBP(4, 5))
    input = normal((1, 3, 6, 6), torch.float32, 1)
    expected = model(input)
    with pytest.warns(UserWarning, match="0: its activation relu is part of the layer"):
        bp.revert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, nn.Linear]
    assert torch.equal(model(input), expected)
