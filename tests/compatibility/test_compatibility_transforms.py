"""Derivatives of every layer, in every way that torch has of asking for them.

Each is asked of torch's layer too, with the same numbers: the two must agree to within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import normal
from layers import LAYERS, WITH_PARAMETERS, every
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.autograd import functional as by_autograd
from twins import Call, as_function, assert_close, compare

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]

Tensors = tuple[Tensor, ...]


def loss_of(call: Call) -> Call:
    """Not linear in the output, so that no derivative up to the third is constant."""
    return lambda *tensors: call(*tensors).pow(3).sum()


def directions(tensors: Tensors, count: int = 0) -> Tensors:
    """Something of the size of each tensor, or a stack of ``count`` of them."""
    stack = (count,) if count else ()
    return tuple(normal((*stack, *t.shape), t.dtype, 10 + i) for i, t in enumerate(tensors))


def stacked(tensors: Tensors, count: int) -> Tensors:
    return tuple(t + d for t, d in zip(tensors, directions(tensors, count), strict=True))


def third_derivative(call: Call, tensors: Tensors) -> Any:
    value = loss_of(call)(*tensors)
    for _ in range(2):
        grads = torch.autograd.grad(value, tensors, create_graph=True)
        value = torch.stack([g.pow(2).sum() for g in grads]).sum()
    return torch.autograd.grad(value, tensors)


def batched_gradients(call: Call, tensors: Tensors) -> Any:
    output = call(*tensors)
    deltas = directions((output.detach(),), 3)[0]
    return torch.autograd.grad(output, tensors, deltas, is_grads_batched=True)


def dual_level(call: Call, tensors: Tensors, create_graph: bool = True) -> Any:
    """The tangent of the output, and of the gradient: forward mode over backward."""
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(t.detach().requires_grad_(), d)
            for t, d in zip(tensors, directions(tensors), strict=True)
        ]
        output = call(*duals)
        grads = torch.autograd.grad(output.pow(3).sum(), duals, create_graph=create_graph)
        return [forward_ad.unpack_dual(t).tangent for t in (output, *grads)]


def numbers(tensors: Tensors) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


def jvp(call: Call, tensors: Tensors) -> Any:
    return func.jvp(call, tensors, directions(tensors))


def vjp(call: Call, tensors: Tensors) -> Any:
    output, pull = func.vjp(call, *tensors)
    return output, pull(output.cos())


def linearize(call: Call, tensors: Tensors) -> Any:
    output, push = func.linearize(call, *tensors)
    return output, push(*directions(tensors))


def nested_jacobians(call: Call, tensors: Tensors) -> Any:
    """The Hessian by the input in the four orders of forward and backward mode."""
    input, *parameters = tensors
    modes = (func.jacfwd, func.jacrev)
    return [o(i(loss_of(call)))(input, *parameters) for o in modes for i in modes]


def vmap_of_jvp(call: Call, tensors: Tensors) -> Any:
    return func.vmap(lambda *d: func.jvp(call, tensors, d))(*directions(tensors, 3))


def vmap_of_vjp(call: Call, tensors: Tensors) -> Any:
    output, pull = func.vjp(call, *tensors)
    return func.vmap(pull)(*directions((output,), 3))


def grad_of_vmap(call: Call, tensors: Tensors) -> Any:
    """Through a vmap over everything, and over the input alone."""
    many = stacked(tensors, 3)
    alone = (0, *(None for _ in tensors[1:]))
    return (
        func.grad(loss_of(func.vmap(call)), numbers(tensors))(*many),
        func.grad(loss_of(func.vmap(call, alone)), numbers(tensors))(many[0], *tensors[1:]),
    )


def per_sample_gradients(call: Call, tensors: Tensors) -> Any:
    def one(sample: Tensor, *parameters: Tensor) -> Tensor:
        return loss_of(call)(sample.unsqueeze(0), *parameters)

    dims = (0, *(None for _ in tensors[1:]))
    return func.vmap(func.grad(one, numbers(tensors)), dims)(*tensors)


def vmap_over_input(call: Call, tensors: Tensors) -> Any:
    """A dimension in front and one within, in chunks, and out to another place."""
    (inputs,), parameters = stacked(tensors[:1], 4), tensors[1:]
    none = (None,) * len(parameters)
    return (
        func.vmap(call, (0, *none))(inputs, *parameters),
        func.vmap(call, (1, *none), out_dims=-1)(inputs.movedim(0, 1), *parameters),
        func.vmap(call, (0, *none), chunk_size=3)(inputs, *parameters),
        func.vmap(func.vmap(call, (0, *none)), (1, *none))(
            torch.stack([inputs, inputs + 1], 1), *parameters
        ),
    )


def vmap_over_weight(call: Call, tensors: Tensors) -> Any:
    input, *parameters = tensors
    many = stacked(tuple(parameters), 4)
    shifted = [t.movedim(0, 1) for t in many]
    ones = (1,) * len(many)
    return (
        func.vmap(call, (None, *(0 for _ in many)))(input, *many),
        func.vmap(call, (None, *ones), out_dims=1)(input, *shifted),
    )


def vmap_over_both(call: Call, tensors: Tensors) -> Any:
    return func.vmap(call)(*stacked(tensors, 4))


def functional_of_autograd(call: Call, tensors: Tensors) -> Any:
    loss, along = loss_of(call), directions(tensors)
    delta = directions((call(*tensors).detach(),))[0]
    return [
        by_autograd.vjp(call, tensors, delta),
        by_autograd.jvp(call, tensors, along),
        by_autograd.hvp(loss, tensors, along),
        by_autograd.vhp(loss, tensors, along),
        by_autograd.jacobian(call, tensors),
        by_autograd.hessian(loss, tensors, vectorize=True),
    ]


# Row -> what is computed of (the layer as a function, its input and parameters).
DERIVATIVES: dict[str, Callable[[Call, Tensors], Any]] = {
    "third derivative": third_derivative,
    "grad(is_grads_batched)": batched_gradients,
    "forward mode: dual_level": dual_level,
    "autograd.functional": functional_of_autograd,
    "func.grad": lambda call, t: func.grad(loss_of(call), numbers(t))(*t),
    "func.vjp": vjp,
    "func.jvp": jvp,
    "func.linearize": linearize,
    "func.jacrev": lambda call, t: func.jacrev(call, numbers(t))(*t),
    "func.jacfwd": lambda call, t: func.jacfwd(call, numbers(t))(*t),
    "func.hessian": lambda call, t: func.hessian(loss_of(call), numbers(t))(*t),
    "jacfwd and jacrev nested": nested_jacobians,
    "vmap over the input": vmap_over_input,
    "vmap over the weight": vmap_over_weight,
    "vmap over both": vmap_over_both,
    "vmap(grad), per sample": per_sample_gradients,
    "vmap(jvp)": vmap_of_jvp,
    "vmap(vjp)": vmap_of_vjp,
    "grad(vmap)": grad_of_vmap,
}
# These ask for one row an element of the input, or of the output.
WHOLE_MATRICES = {
    "autograd.functional", "func.jacrev", "func.jacfwd", "func.hessian", "jacfwd and jacrev nested",
}  # fmt: skip
OF_PARAMETERS = {"vmap over the weight", "vmap over both"}


@pytest.mark.filterwarnings(
    "error:There is a performance drop",
    "ignore:`torch.jit.script` is deprecated",  # torch's own, in forward mode
    "ignore:Attempted to insert a get_attr Node",  # torch's own, in linearize
)
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param(name, layer, marks=pytest.mark.cell("Transforms", name))
        for name in DERIVATIVES
        for layer in (WITH_PARAMETERS if name in OF_PARAMETERS else LAYERS)
    ],
)
def test_derivatives(name: str, layer: str) -> None:
    def compute(module: nn.Module, input: Tensor) -> Any:
        return DERIVATIVES[name](as_function(module), (input, *module.parameters()))

    compare(layer, compute, **({"batch": 1} if name in WHOLE_MATRICES else {}))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own
@pytest.mark.cell("Transforms", "forward mode: dual_level")
@every()
def test_forward_mode_where_no_graph_is_kept(layer: str) -> None:
    """A backward pass of which only tangents are wanted: torch's silu has none there."""
    module = LAYERS[layer].make()
    call, tensors = as_function(module), (LAYERS[layer].input(), *module.parameters())
    expected = [tangent.detach() for tangent in dual_level(call, tensors)]
    assert_close(dual_level(call, tensors, create_graph=False), expected)


@pytest.mark.cell("Transforms", "autograd.functional")
@every()
def test_strategies_of_autograd_functional(layer: str) -> None:
    """Against the matrices that test_derivatives holds against torch's: its max pooling has no
    batching rule for one of them."""
    module = LAYERS[layer].make()
    call, tensors = as_function(module), (LAYERS[layer].input(batch=1), *module.parameters())
    loss, every_one = loss_of(call), numbers(tensors)
    jacobian = func.jacrev(call, every_one)(*tensors)
    hessian = func.hessian(loss, every_one)(*tensors)
    forward = {"vectorize": True, "strategy": "forward-mode"}
    outer = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    assert_close(by_autograd.jacobian(call, tensors, vectorize=True), jacobian)
    assert_close(by_autograd.jacobian(call, tensors, **forward), jacobian)
    assert_close(by_autograd.hessian(loss, tensors, **outer), hessian)


@pytest.mark.cell("Transforms", "eager training")
@every()
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_eager_training(layer: str, optimizer: type[torch.optim.Optimizer]) -> None:
    """Ten steps; the input is trained with the parameters, so that pools have something to do."""
    options = {"momentum": 0.9, "nesterov": True} if optimizer is torch.optim.SGD else {}

    def train(module: nn.Module, input: Tensor) -> Any:
        leaves = [input, *module.parameters()]
        steps = optimizer(leaves, lr=0.01, weight_decay=0.1, **options)  # type: ignore[call-arg]
        losses = []
        for _ in range(10):
            steps.zero_grad()
            loss = (module(input) - 1).square().mean()
            loss.backward()
            steps.step()
            losses.append(loss.detach())
        assert losses[-1] < losses[0]
        return losses, leaves

    compare(layer, train)
