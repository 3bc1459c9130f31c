"""Derivatives: gradcheck of every order and mode, and only what was asked for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import SMALL, Case, integers, normal, parameters, small
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from twins import Calls
from twins import kept as saved

import torch_convbp as bp
from torch_convbp.autograd import conv2d as autograd_conv2d

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp

# gradgradcheck costs the product of the sizes: the cases in miniature.
GRADIENT_CASES = [
    Case(
        name=case.name,
        batch=1,
        in_channels=min(case.in_channels, 2 * case.groups),
        out_channels=min(case.out_channels, 2 * case.groups),
        size=(min(case.size[0], 5), min(case.size[1], 5)),
        kernel=case.kernel,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
    )
    for case in SMALL
    if case.batch
]
GRADIENT_CASES = [case for case in GRADIENT_CASES if min(case.output_size[2:]) > 0]
assert len(GRADIENT_CASES) > 20


def leaf(size: tuple[int, ...], seed: int) -> Tensor:
    return normal(size, torch.float64, seed).requires_grad_()


def operators(case: Case) -> list[tuple[str, Callable[..., object], tuple[Tensor, ...]]]:
    """Each operator as a function of the tensors it is differentiable in."""
    input, weight = leaf(case.input_size, 1), leaf(case.weight_size, 2)
    bias, delta = leaf((case.out_channels,), 3), leaf(case.output_size, 4)
    return [
        ("conv2d", lambda a, w, b: ops.conv2d(a, w, b, *case.geometry), (input, weight, bias)),
        (
            "conv2d_input_grad",
            lambda w, d: ops.conv2d_input_grad(case.input_size, w, d, *case.geometry),
            (weight, delta),
        ),
        (
            "conv2d_weight_grad",
            lambda a, d: ops.conv2d_weight_grad(a, case.weight_size, d, *case.geometry),
            (input, delta),
        ),
        (
            "conv2d_weight_bias_grad",
            lambda a, d: ops.conv2d_weight_bias_grad(a, case.weight_size, d, *case.geometry),
            (input, delta),
        ),
    ]


@pytest.mark.parametrize("operator", range(4), ids=[o[0] for o in operators(small("slides"))])
@pytest.mark.parametrize("case", parameters(GRADIENT_CASES))
def test_gradcheck(case: Case, operator: int) -> None:
    """First and second derivatives, backward and forward mode, of every operator."""
    _, function, tensors = operators(case)[operator]
    assert gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", ["slides", "groups_and_everything", "padding_behind"])
def test_gradcheck_element_by_element(name: str) -> None:
    """The full Jacobian, not a random projection of it."""
    case = next(case for case in GRADIENT_CASES if case.name == name)
    for _, function, tensors in operators(case):
        assert gradcheck(function, tensors, check_forward_ad=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", parameters(GRADIENT_CASES))
def test_second_gradcheck_element_by_element(case: Case) -> None:
    for _, function, tensors in operators(case):
        assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_gradcheck_of_functional_and_module(mode: str) -> None:
    module = bp.ConvBP2d(
        4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, padding_mode=mode, dtype=torch.float64
    )
    input = leaf((2, 4, 5, 4), 1)
    parameters = dict(module.named_parameters())

    def call(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        values = {"weight": w, "bias": b}
        return torch.func.functional_call(module, values, (a,))

    tensors = (input, parameters["weight"], parameters["bias"])
    assert gradcheck(call, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True)

    def functional(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return bp.functional.conv2d(a, w, b, (2, 1), "valid", (1, 2), 2)

    assert gradcheck(functional, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(functional, tensors, fast_mode=True)


# What needs a gradient -> which tensors are saved for it, and what one equation after the other
# runs; as a rule a single operator runs them, of which test_conv2d_backward.py asks the same.
WANTED = {
    "everything": ((1, 1, 1), ["conv2d_input_grad", "conv2d_weight_bias_grad"], "input weight"),
    "frozen_input": ((0, 1, 1), ["conv2d_weight_bias_grad"], "input"),
    "frozen_weight": ((1, 0, 1), ["conv2d_input_grad"], "weight"),
    "frozen_bias": ((1, 1, 0), ["conv2d_input_grad", "conv2d_weight_grad"], "input weight"),
    "input_only": ((1, 0, 0), ["conv2d_input_grad"], "weight"),
    "weight_only": ((0, 1, 0), ["conv2d_weight_grad"], "input"),
    "bias_only": ((0, 0, 1), [], ""),
    "no_bias": ((1, 1, None), ["conv2d_input_grad", "conv2d_weight_grad"], "input weight"),
}


@pytest.mark.parametrize("one_operator", [True, False])
@pytest.mark.parametrize("wanted", WANTED)
def test_computes_and_saves_only_what_is_asked_for(
    wanted: str, one_operator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd_conv2d, "ONE_OPERATOR", one_operator)
    needs, runs, kept = WANTED[wanted]
    sizes = {"input": (2, 4, 6, 5), "weight": (6, 4, 3, 3), "bias": (6,)}
    leaves = {
        name: integers(size, torch.float32, seed).requires_grad_(bool(need))
        for seed, ((name, size), need) in enumerate(zip(sizes.items(), needs, strict=True))
        if need is not None
    }
    inner = {name: tensor * 1 for name, tensor in leaves.items()}
    references = {name: weakref.ref(inner[name]) for name in inner}
    output, tensors = saved(
        lambda: bp.functional.conv2d(inner["input"], inner["weight"], inner.get("bias"))
    )
    assert sorted(t.shape for t in tensors) == sorted(sizes[name] for name in kept.split())
    del tensors
    inner.clear()
    gc.collect()
    # The hooks above hand out the tensors themselves, so what lives is what was saved.
    assert {name for name, r in references.items() if r() is not None} <= set(kept.split())

    with Calls() as calls:
        output.sum().backward()
    assert calls.names == (["conv2d_backward"] if one_operator else runs)

    twins = {name: tensor.detach().clone() for name, tensor in leaves.items()}
    for name, tensor in leaves.items():
        twins[name].requires_grad_(tensor.requires_grad)
    F.conv2d(twins["input"], twins["weight"], twins.get("bias")).sum().backward()
    for name, tensor in leaves.items():
        if tensor.requires_grad:
            assert torch.equal(tensor.grad, twins[name].grad), name
        else:
            assert tensor.grad is None


def test_operators_called_directly_are_differentiable() -> None:
    case = small("groups_and_everything")
    tensors = [leaf(case.input_size, 1), leaf(case.weight_size, 2), leaf((case.out_channels,), 3)]
    direct = torch.autograd.grad(ops.conv2d(*tensors, *case.geometry).sin().sum(), tensors)
    stride, (vertical, _, horizontal, _), dilation, groups = case.geometry
    padding = (vertical, horizontal)
    through = bp.functional.conv2d(*tensors, stride, padding, dilation, groups)
    for a, b in zip(direct, torch.autograd.grad(through.sin().sum(), tensors), strict=True):
        assert torch.equal(a, b)


def test_the_functions_are_what_runs() -> None:
    """grad_fn is named after the Functions of autograd/."""
    output = bp.functional.conv2d(leaf((1, 2, 4, 4), 1), leaf((2, 2, 3, 3), 2))
    assert output.grad_fn.name() == "Conv2dBackward"
    assert not bp.functional.conv2d(output.detach(), leaf((2, 2, 1, 1), 3).detach()).requires_grad


IN_DIMS = [
    (0, None, None), (None, 0, None), (None, None, 0), (1, 2, 0), (2, None, 0), (None, 1, 0),
]  # fmt: skip


def test_vmap_over_nothing() -> None:
    weight = normal((4, 3, 3, 3), torch.float32, 1)
    output = torch.vmap(bp.functional.conv2d, (0, None))(torch.zeros(0, 2, 3, 5, 5), weight)
    assert output.shape == (0, 2, 4, 3, 3)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    """Every operator over every combination of batched tensors, against a loop."""
    case = small("groups_and_everything")
    indices = 3

    def batched(sizes: list[tuple[int, ...]]) -> list[Tensor]:
        tensors = []
        for seed, (size, dim) in enumerate(zip(sizes, in_dims, strict=False)):
            size = size if dim is None else (*size[:dim], indices, *size[dim:])
            tensors.append(integers(size, torch.float64, seed))
        return tensors

    def check(function: Callable[..., object], sizes: list[tuple[int, ...]]) -> None:
        tensors, dims = batched(sizes), in_dims[: len(sizes)]
        if not any(dim is not None for dim in dims):
            return
        loop = [
            function(*(t if d is None else t.select(d, i) for t, d in zip(tensors, dims)))  # noqa: B905
            for i in range(indices)
        ]
        actual = torch.vmap(function, in_dims=dims)(*tensors)
        if isinstance(actual, Tensor):
            assert torch.equal(actual, torch.stack(loop))
        else:
            for k, result in enumerate(actual):
                assert torch.equal(result, torch.stack([one[k] for one in loop]))

    a, w, b, d = (
        case.input_size, case.weight_size, (case.out_channels,), case.output_size,
    )  # fmt: skip
    geometry = case.geometry
    check(lambda a, w, b: ops.conv2d(a, w, b, *geometry), [a, w, b])
    check(lambda a, w: ops.conv2d(a, w, None, *geometry), [a, w])
    check(lambda w, d: ops.conv2d_input_grad(list(a), w, d, *geometry), [w, d])
    check(lambda a, d: ops.conv2d_weight_grad(a, list(w), d, *geometry), [a, d])
    check(lambda a, d: ops.conv2d_weight_bias_grad(a, list(w), d, *geometry), [a, d])


def test_a_backward_pass_within_autocast_keeps_its_dtype() -> None:
    input, weight = normal((2, 3, 8, 8), torch.float32, 1), normal((4, 3, 3, 3), torch.float32, 2)
    loss = bp.functional.conv2d(input, weight.requires_grad_()).square().sum()
    (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (grad,) = torch.autograd.grad(loss, weight)
    assert torch.equal(grad, expected)


OPCHECK_CASES = ["slides", "groups_and_everything", "padding_behind", "batch_0", "zero_channels"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", OPCHECK_CASES)
@pytest.mark.parametrize("operator", range(4), ids=[o[0] for o in operators(small("slides"))])
def test_opcheck(name: str, layout: str, operator: int) -> None:
    """torch's own check: schema, derivative registration, fake kernel and its strides, AOT."""
    case = small(name)
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)

    def tensor(size: tuple[int, ...], seed: int) -> Tensor:
        made = normal(size, torch.float32, seed).contiguous(memory_format=memory_format)
        return made.requires_grad_()

    a, w, d = (
        tensor(size, seed)
        for seed, size in enumerate((case.input_size, case.weight_size, case.output_size))
    )
    bias = normal((case.out_channels,), torch.float32, 5).requires_grad_()
    arguments = [
        (a, w, bias, *case.geometry),
        (list(case.input_size), w, d, *case.geometry),
        (a, list(case.weight_size), d, *case.geometry),
        (a, list(case.weight_size), d, *case.geometry),
    ][operator]
    checked = torch.library.opcheck(getattr(ops, operators(case)[operator][0]).default, arguments)
    assert set(checked.values()) == {"SUCCESS"}
