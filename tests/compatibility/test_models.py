"""Models of other libraries, converted: outputs and gradients as before, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO

import torch_convbp as bp

# A batch norm divides by the deviation of a few values, or of equal ones: it amplifies a rounding.
ERROR = 1e-9


@pytest.fixture
def double() -> Iterator[None]:
    """Some models make tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensors(output: Any) -> list[Tensor]:
    """All tensors of real numbers that a model gives, in whatever class of its own."""
    for part in ("latent_dist", "mean", "sample"):
        value = getattr(output, part, output)
        output = output if callable(value) else value
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [tensor for tensor in found if tensor.is_floating_point()]


def weighted(output: Tensor) -> Tensor:
    """A loss that is not constant, not even of an output of length 1."""
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
    return (output * weights.reshape(output.shape)).square().mean()


def results(model: nn.Module, arguments: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(1)  # for dropout
    outputs = tensors(model(**arguments))
    loss = sum(weighted(output) for output in outputs if output.requires_grad)
    if isinstance(loss, Tensor):  # a detector in evaluation mode may find nothing
        loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    return [output.detach() for output in outputs], [grad for grad in found if grad is not None]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Relative to each tensor's largest value, or to 1e-4 of the largest of all."""
    assert len(ours) == len(theirs)
    sizes = [tensor.abs().max().item() for tensor in theirs if tensor.numel()]
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if other.numel():
            scale = max(other.abs().max().item(), 1e-4 * max(sizes))
            torch.testing.assert_close(
                one, other, rtol=0, atol=ERROR * scale, msg=lambda m, i=i: f"tensor {i}: {m}"
            )


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ZOO)
def test_a_converted_model_is_the_same(name: str, training: bool) -> None:
    library, build = ZOO[name]
    pytest.importorskip(library, reason=f"{library} is not installed")
    torch.manual_seed(0)
    model, arguments = build()
    model = model.double().train(training)
    for parameter in model.parameters():  # what starts as zero would hide what comes before it
        if not parameter.any():
            nn.init.uniform_(parameter, -0.1, 0.1)
    converted = bp.convert(copy.deepcopy(model), pooling=True, dense=True, fuse_activations=True)
    assert any(isinstance(layer, bp.ConvBP2d) for layer in converted.modules())
    ours, theirs = (results(each, dict(arguments)) for each in (converted, model))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)
