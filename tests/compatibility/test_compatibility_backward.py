"""What the layers keep for their backward pass, and looking into that pass: checkpoints, hooks of
every kind, changes in place, anomaly mode.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from layers import LAYERS, every
from torch import Tensor, nn
from torch.autograd.graph import (
    allow_mutation_on_saved_tensors,
    disable_saved_tensors_hooks,
    save_on_cpu,
    saved_tensors_hooks,
)
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from twins import Calls, compare, gradients

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]

MODULE_HOOKS = (
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
)


@pytest.mark.cell("Transforms", "checkpoint")
@every()
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(layer: str, reentrant: bool) -> None:
    """Computed anew in the backward pass, to the same bits; also one checkpoint in another."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()
    expected = gradients(module, input)

    def once(input: Tensor) -> Tensor:
        return checkpoint(module, input, use_reentrant=reentrant)

    def twice(input: Tensor) -> Tensor:
        return checkpoint(once, input, use_reentrant=reentrant)

    for call in (once, twice):
        output = call(input)
        output.pow(3).sum().backward()
        leaves = [input, *module.parameters()]
        for a, b in zip((output, *(leaf.grad for leaf in leaves)), expected, strict=True):
            assert a is not None and torch.equal(a, b)
        for leaf in leaves:
            leaf.grad = None


@pytest.mark.cell("Transforms", "selective checkpoint")
@every()
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE])
def test_selective_checkpoint(layer: str, policy: CheckpointPolicy) -> None:
    """Our operators are known by name: their results are kept, and all else is computed anew."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()

    def block(input: Tensor) -> Tensor:
        return module(input.sin()).cos()

    def choose(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        ours = func.namespace == "torch_convbp"
        return policy if ours else CheckpointPolicy.PREFER_RECOMPUTE

    leaves = (input, *module.parameters())
    with Calls() as plain:
        expected = block(input)
    contexts = functools.partial(create_selective_checkpoint_contexts, choose)
    with Calls() as calls:
        output = checkpoint(block, input, use_reentrant=False, context_fn=contexts)
        grads = torch.autograd.grad(output.pow(3).sum(), leaves)
    for a, b in zip(grads, torch.autograd.grad(expected.pow(3).sum(), leaves), strict=True):
        assert torch.equal(a, b)
    times = 1 if policy is CheckpointPolicy.MUST_SAVE else 2
    forward, count = Counter(plain.names), Counter(calls.names)
    assert forward and all(count[name] == times * n for name, n in forward.items())


@pytest.mark.cell("Transforms", "saved-tensor hooks")
@every()
def test_saved_tensor_hooks(layer: str) -> None:
    """What is kept may be put elsewhere meanwhile: as numpy arrays, on the CPU."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()
    expected = gradients(module, input)
    packed, unpacked = [], []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor.shape)
        return tensor.detach().numpy().copy()

    def unpack(array: Any) -> Tensor:
        unpacked.append(array.shape)
        return torch.from_numpy(array)

    for hooks in (saved_tensors_hooks(pack, unpack), save_on_cpu()):
        with hooks:
            output = module(input)
        for a, b in zip(
            torch.autograd.grad(output.pow(3).sum(), (input, *module.parameters())),
            expected[1:],
            strict=True,
        ):
            assert torch.equal(a, b)
    assert sorted(packed) == sorted(unpacked)
    assert bool(packed) == (layer != "avg_pool2d"), "average pooling keeps nothing"

    with disable_saved_tensors_hooks("no hooks here"):
        assert torch.equal(gradients(module, input)[1], expected[1])
        with pytest.raises(RuntimeError, match="no hooks here"), save_on_cpu():
            module(input)


@pytest.mark.cell("Transforms", "in-place change of what is kept")
@every()
def test_in_place_change_of_what_is_kept(layer: str) -> None:
    """It is noticed; where torch keeps a pool's input, ours does not, and the gradient is right."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()
    parameters = tuple(module.parameters())
    expected = gradients(module, input)
    inner = input * 1
    output = module(inner)
    with torch.no_grad():
        inner.zero_()
    if parameters:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(output.pow(3).sum(), (input, *parameters))
    else:
        (grad,) = torch.autograd.grad(output.pow(3).sum(), input)
        assert torch.equal(grad, expected[1])
    for parameter in parameters[:1]:
        output = module(input)
        with torch.no_grad():
            parameter.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.pow(3).sum().backward()


@pytest.mark.cell("Transforms", "in-place change of what is kept")
@every()
def test_allow_mutation_on_saved_tensors(layer: str) -> None:
    """torch then keeps a copy of what is changed."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input().requires_grad_()
    leaves = (input, *module.parameters())
    expected = gradients(module, input)[1:]
    with allow_mutation_on_saved_tensors():
        inner = input * 1
        output = module(inner)
        with torch.no_grad():
            for tensor in (inner, *module.parameters()):
                tensor.zero_()
        grads = torch.autograd.grad(output.pow(3).sum(), leaves)
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a, b)


NODES = {
    "conv2d": "Conv2dBackward",
    "conv2d + activation": "Conv2dActivationPairBackward",
    "max_pool2d": "MaxPool2dBackward",
    "avg_pool2d": "AvgPool2dBackward",
    "linear": "LinearBackward",
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.cell("Transforms", "anomaly mode")
@every()
def test_anomaly_mode(layer: str) -> None:
    """A NaN that arises in a layer's backward pass, from infinities of both signs in delta."""
    module, input = LAYERS[layer].make(), LAYERS[layer].input()
    if layer == "max_pool2d":
        input[:, :, 1, 1] = 10  # wins four windows, whose deltas are added up
    inner = input.requires_grad_() * 1
    with torch.autograd.detect_anomaly(check_nan=True):
        output = module(inner)
        delta = torch.full_like(output, torch.inf)
        delta[..., ::2] *= -1
        with (
            pytest.warns(UserWarning, match=r"Traceback of forward call.*\n(.*\n)*.*forward"),
            pytest.raises(RuntimeError, match=f"'{NODES[layer]}' returned nan values in its 0th"),
        ):
            output.backward(delta, retain_graph=True)
        module(inner).sum().backward()
    assert input.grad is not None and input.grad.isfinite().all()


@pytest.mark.cell("Transforms", "hooks")
@every()
def test_hooks(layer: str) -> None:
    """Each kind is called as often, and with the same tensors, as torch's layer calls it."""

    def watch(module: nn.Module, input: Tensor) -> Any:
        seen: list[Any] = []
        for kind in MODULE_HOOKS:
            getattr(module, kind)(lambda _, *tensors, k=kind: seen.append((k, tensors)))
        inner = input * 1
        inner.register_hook(lambda grad: seen.append(("input", grad)))
        output = module(inner)
        output.register_hook(lambda grad: seen.append(("output", grad)))
        output.grad_fn.register_prehook(lambda grads: seen.append(("before node", grads)))
        for i, parameter in enumerate(module.parameters()):
            parameter.register_hook(lambda grad, i=i: seen.append((f"parameter {i}", grad)))
            parameter.register_post_accumulate_grad_hook(
                lambda p, i=i: seen.append((f"accumulated {i}", p.grad))
            )
        output.pow(3).sum().backward()
        seen.sort(key=lambda entry: entry[0])  # torch's layers in two parts have another order
        assert {kind for kind, _ in seen} >= {*MODULE_HOOKS, "input", "output", "before node"}
        return [input.grad, *(tensors for _, tensors in seen)]

    compare(layer, watch)


@pytest.mark.cell("Transforms", "hooks")
@every()
def test_hooks_that_change_what_they_see(layer: str) -> None:
    def change(module: nn.Module, input: Tensor) -> Any:
        module.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
        module.register_forward_hook(lambda _, args, output: output * 2)
        module.register_full_backward_pre_hook(lambda _, grads: (grads[0] + 1,))
        module.register_full_backward_hook(lambda _, before, grads: (before[0] * 3,))
        return gradients(module, input)

    compare(layer, change)
