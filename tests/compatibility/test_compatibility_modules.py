"""The layers as modules: copies, files, parametrizations, pruning."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import LAYERS, WITH_PARAMETERS, every
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from twins import compare, gradients

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]


def saved(what: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return file


def from_trusted_file(module: nn.Module) -> nn.Module:
    return torch.load(saved(module), weights_only=False)


def from_any_file(module: nn.Module) -> nn.Module:
    """A whole module where every class in it is named as safe."""
    file = saved(module)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(file, weights_only=True)
    file.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert f"torch_convbp.modules.{type(module).__name__}" in names
    known = {f"{type(m).__module__}.{type(m).__name__}": type(m) for m in module.modules()}
    known |= {f"{c.__module__}.{c.__name__}": c for c in (set, bp_activation(module)) if c}
    file.seek(0)
    with torch.serialization.safe_globals([known[name] for name in names]):
        return torch.load(file, weights_only=True)


def bp_activation(module: nn.Module) -> type | None:
    g = getattr(module, "activation", None)
    return None if g is None else type(g)


def by_state_dict(module: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(module)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    state = torch.load(saved(module.state_dict()), weights_only=True)
    assert fresh.load_state_dict(state) == ([], [])
    return fresh


def by_assignment(module: nn.Module) -> nn.Module:
    """Into a module without memory."""
    fresh = copy.deepcopy(module).to("meta")
    fresh.load_state_dict(torch.load(saved(module.state_dict())), assign=True)
    return fresh


COPIES: dict[str, tuple[Callable[[nn.Module], nn.Module], ...]] = {
    "copy, deepcopy, pickle": (
        copy.copy,
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
    ),
    "save and load": (from_trusted_file, from_any_file, by_state_dict, by_assignment),
}


@pytest.mark.parametrize(
    ("copied", "layer"),
    [
        pytest.param(copied, layer, marks=pytest.mark.cell("Transforms", row))
        for row, ways in COPIES.items()
        for copied in ways
        for layer in LAYERS
    ],
)
def test_copies(layer: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    """The same layer: class, description, and every bit of its output and gradients."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()
    other = copied(module)
    assert type(other) is type(module) and other is not module
    assert repr(other) == repr(module) and other.state_dict().keys() == module.state_dict().keys()
    for a, b in zip(gradients(other, input), gradients(module, input), strict=True):
        assert torch.equal(a, b)


@pytest.mark.cell("Transforms", "save and load")
@every()
def test_state_dict_is_torchs(layer: str) -> None:
    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    names = [name.removeprefix("0.") for name in theirs.state_dict()]  # in a Sequential
    assert list(ours.state_dict()) == names


def core(module: nn.Module) -> nn.Module:
    """Where the weight is: the layer, or the first of torch's two."""
    return next(m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of everything": lambda m: parametrizations.weight_norm(m, dim=None),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, n_power_iterations=3),
    "orthogonal": parametrizations.orthogonal,
    "bias": lambda m: parametrize.register_parametrization(m, "bias", nn.Softplus()),
}


@pytest.mark.cell("Transforms", "parametrizations")
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@every(*WITH_PARAMETERS)
def test_parametrizations(layer: str, name: str) -> None:
    """In training and evaluation mode, within parametrize.cached(), and removed again."""

    def compute(module: nn.Module, input: Tensor) -> Any:
        torch.manual_seed(1)
        PARAMETRIZATIONS[name](core(module))
        results = [gradients(module, input) for _ in range(2)]
        module.eval()
        with parametrize.cached():
            results.append(gradients(module, input))
        assert isinstance(copy.deepcopy(module), type(module))
        for parameter in ("weight", "bias"):
            if parametrize.is_parametrized(core(module), parameter):
                parametrize.remove_parametrizations(core(module), parameter)
        results.append(gradients(module, input))
        return results

    compare(layer, compute)


PRUNING: dict[str, Callable[[nn.Module], Any]] = {
    "l1_unstructured": lambda m: prune.l1_unstructured(m, "weight", amount=0.4),
    "random_unstructured": lambda m: prune.random_unstructured(m, "weight", amount=10),
    "ln_structured": lambda m: prune.ln_structured(m, "weight", amount=0.5, n=2, dim=0),
    "random_structured": lambda m: prune.random_structured(m, "weight", amount=2, dim=1),
    "custom_from_mask": lambda m: prune.custom_from_mask(m, "weight", m.weight > 0),
    "global_unstructured": lambda m: prune.global_unstructured(
        [(m, "weight"), (m, "bias")], pruning_method=prune.L1Unstructured, amount=0.3
    ),
    "twice": lambda m: (
        prune.l1_unstructured(m, "weight", amount=0.3),
        prune.l1_unstructured(m, "weight", amount=0.3),
    ),
}


@pytest.mark.cell("Transforms", "pruning")
@pytest.mark.parametrize("name", PRUNING)
@every(*WITH_PARAMETERS)
def test_pruning(layer: str, name: str) -> None:
    def compute(module: nn.Module, input: Tensor) -> Any:
        torch.manual_seed(1)
        PRUNING[name](core(module))
        assert prune.is_pruned(module)
        pruned = dict(core(module).named_buffers())
        results = [gradients(module, input)]
        for mask in pruned:
            prune.remove(core(module), mask.removesuffix("_mask"))
        return [*results, gradients(module, input), list(pruned.values())]

    compare(layer, compute)
