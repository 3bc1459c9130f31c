"""PyTorch's own cases: the samples and errors of its OpInfo and ModuleInfo tables.

Each sample is computed by our function in the sample's dtype and by torch's in double; what lies
between may be the rounding of a sum of so many products, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import integers
from deviations import DEVIATIONS, what_happens
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import noncontiguous_like
from torch.utils._pytree import tree_flatten, tree_unflatten
from twins import assert_same

import torch_convbp as bp
from torch_convbp.ops import checks

f = bp.functional
TABLE = "PyTorch's own cases"
pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """torch's, as the input gradient that it is; output_padding says of which input size."""

    def two(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else value

    *batch, _, height, width = input.shape
    step, pad, behind, spread = (two(v) for v in (stride, padding, output_padding, dilation))
    size = [
        (n - 1) * step[i] - 2 * pad[i] + spread[i] * (weight.shape[2 + i] - 1) + 1 + behind[i]
        for i, n in enumerate((height, width))
    ]
    # A convolution of that size has further outputs where output_padding is a stride or more.
    delta = F.pad(input, (0, behind[1] // step[1], 0, behind[0] // step[0]))
    output = f.conv2d_input_grad(
        [*batch, weight.shape[1] * groups, *size], weight, delta, stride, padding, dilation, groups
    )
    return output if bias is None else output + bias[:, None, None]


# How many products are summed: in an element of the output, and of each tensor's gradient.


def terms_of_convolution(tensors: list[Tensor], output: Tensor) -> list[int]:
    input, weight = tensors[:2]
    pixels = max(t.numel() for t in (input, output))  # at most, of all images
    return [weight[0].numel() + 1, weight[:, 0].numel(), pixels, pixels]


def terms_of_transposed(tensors: list[Tensor], output: Tensor) -> list[int]:
    first, *rest = terms_of_convolution(tensors, output)
    return [rest[0] + 1, first, *rest[1:]]


def terms_of_linear(tensors: list[Tensor], output: Tensor) -> list[int]:
    rows = output.numel()
    return [tensors[0].shape[-1] + 1, tensors[1].numel(), rows, rows]


def terms_of_average(tensors: list[Tensor], output: Tensor) -> list[int]:
    return [tensors[0].numel()] * 2


@dataclass(frozen=True)
class Subject:
    """A function of ours, torch's, and the layers of both."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    terms: Callable[[list[Tensor], Tensor], list[int]] | None  # None: results are exact
    modules: Any = None  # ours and torch's
    # Beside ours; the others are refused (deviations.py).
    more_dtypes: tuple[torch.dtype, ...] = ()


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
COMPLEX = (torch.complex64, torch.complex128)
SUBJECTS = {
    "conv2d": Subject(f.conv2d, F.conv2d, terms_of_convolution, (bp.ConvBP2d, nn.Conv2d), COMPLEX),
    "conv_transpose2d": Subject(conv_transpose2d, F.conv_transpose2d, terms_of_transposed),
    "max_pool2d": Subject(
        f.max_pool2d, F.max_pool2d, None, (bp.MaxPoolBP2d, nn.MaxPool2d), INTEGERS
    ),
    "avg_pool2d": Subject(
        f.avg_pool2d, F.avg_pool2d, terms_of_average, (bp.AvgPoolBP2d, nn.AvgPool2d), INTEGERS
    ),
    "linear": Subject(
        f.linear, F.linear, terms_of_linear, (bp.LinearBP, nn.Linear), INTEGERS + COMPLEX
    ),
}
# What torch's tables expect -> what we say instead.
OTHERWISE = {d.instead_of: d.we_say for d in DEVIATIONS.values() if d.instead_of}
OPINFOS = {op.name.removeprefix("nn.functional."): op for op in op_db if not op.variant_test_name}
every = pytest.mark.parametrize("layer", SUBJECTS)


def samples(layer: str, dtype: torch.dtype) -> list[Any]:
    op = OPINFOS[layer]
    result = list(op.sample_inputs("cpu", dtype))
    if op.reference_inputs_func is not None:  # else they are the same
        result += op.reference_inputs("cpu", dtype)
    assert result
    return result


def tensors_of(*args: Any, **kwargs: Any) -> tuple[list[Tensor], Callable[..., Any]]:
    """The tensors among arguments, and what calls a function with others in their places."""
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(function: Callable[..., Any], *tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        return function(*args, **kwargs)

    return [leaves[i].detach() for i in places], call


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def results(call: Callable[..., Any], tensors: list[Tensor], delta: Tensor | None) -> list[Tensor]:
    """Output and, where there is a delta for it, the gradient of each tensor; further outputs."""
    leaves = [t.detach().requires_grad_(delta is not None) for t in tensors]
    output = call(*leaves)
    output, *more = output if isinstance(output, tuple) else (output,)
    gradients = [] if delta is None else torch.autograd.grad(output, leaves, delta)
    return [output.detach(), *gradients, *more]


def check(
    ours: Callable[..., Any],
    torchs: Callable[..., Any],
    tensors: list[Tensor],
    terms: Callable[[list[Tensor], Tensor], list[int]] | None,
) -> None:
    """Output and gradients of both on those tensors."""
    dtype = tensors[0].dtype
    plain = [t.resolve_neg().resolve_conj().contiguous() for t in tensors]
    like = torchs(*plain)
    like = like[0] if isinstance(like, tuple) else like
    if not (dtype.is_floating_point or dtype.is_complex):
        return assert_same(results(ours, tensors, None), results(torchs, plain, None))
    delta = integers(tuple(like.shape), dtype, 7)
    got = results(ours, tensors, delta)
    assert [t.dtype for t in got[: 1 + len(tensors)]] == [dtype] * (1 + len(tensors))
    if terms is None:
        return assert_same(got, results(torchs, plain, delta))
    doubles = [t.to(wide(dtype)) for t in plain]
    exact = results(torchs, doubles, delta.to(wide(dtype)))
    magnitude = results(torchs, [t.abs() for t in doubles], delta.to(wide(dtype)).abs())
    summed_in = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for result, true, sum_of_absolutes, count in zip(
        got, exact, magnitude, terms(tensors, like)[: len(exact)], strict=True
    ):
        assert result.shape == true.shape
        rounding = 2 * (count + 1) * summed_in + 2 * torch.finfo(dtype).eps
        error = (result.to(wide(dtype)) - true).abs()
        assert bool((error <= rounding * sum_of_absolutes.abs()).all()), (error.max(), rounding)


def neg_view(t: Tensor) -> Tensor:
    view = torch._neg_view(-t)
    assert view.is_neg()
    return view


def conj_view(t: Tensor) -> Tensor:
    view = t.conj().resolve_conj().conj()
    assert view.is_conj()
    return view


def expanded(t: Tensor) -> Tensor:
    """Other values: the first of each dimension, strides 0."""
    return t[(slice(0, 1),) * t.dim()].expand_as(t)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


VIEWS = {
    "non-contiguous": noncontiguous_like,
    "channels_last": channels_last,
    "expanded": expanded,
    "negative bit": neg_view,
    "conjugate bit": conj_view,
}


def rows(name: str, *dtypes: torch.dtype, take: Callable[[str, torch.dtype], bool]) -> Any:
    """A test for each layer and dtype, each a cell of the row with that name."""
    return pytest.mark.parametrize(
        "layer, dtype",
        [
            pytest.param(
                layer,
                dtype,
                marks=pytest.mark.cell(TABLE, name.format(str(dtype).removeprefix("torch."))),
                id=f"{layer}-{str(dtype).removeprefix('torch.')}",
            )
            for dtype in dtypes
            for layer in SUBJECTS
            if take(layer, dtype)
        ],
    )


def is_supported(layer: str, dtype: torch.dtype) -> bool:
    known = (*checks.DTYPES, *SUBJECTS[layer].more_dtypes)
    return dtype in OPINFOS[layer].dtypes and dtype in known


def check_samples(layer: str, dtype: torch.dtype, view: Callable[[Tensor], Tensor]) -> None:
    subject = SUBJECTS[layer]
    for sample in samples(layer, dtype):
        tensors, call = tensors_of(sample.input, *sample.args, **sample.kwargs)
        check(
            lambda *t, call=call: call(subject.ours, *t),
            lambda *t, call=call: call(subject.torchs, *t),
            [view(t) for t in tensors],
            subject.terms,
        )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@rows("OpInfo samples, {}", *checks.DTYPES, *INTEGERS, *COMPLEX, take=is_supported)
def test_samples(layer: str, dtype: torch.dtype) -> None:
    check_samples(layer, dtype, lambda t: t)


@pytest.mark.parametrize(
    "layer, view",
    [
        pytest.param(
            layer,
            view,
            marks=pytest.mark.cell(TABLE, f"OpInfo samples as views: {view}"),
            id=f"{layer}-{view}",
        )
        for view in VIEWS
        for layer in SUBJECTS
        if view != "conjugate bit" or is_supported(layer, torch.complex64)
    ],
)
def test_views_of_samples(layer: str, view: str) -> None:
    dtype = torch.complex64 if view == "conjugate bit" else torch.float32
    check_samples(layer, dtype, VIEWS[view])


def is_refused(layer: str, dtype: torch.dtype) -> bool:
    return dtype in OPINFOS[layer].dtypes and not is_supported(layer, dtype)


@pytest.mark.parametrize(
    "layer, dtype",
    [
        pytest.param(layer, dtype, id=f"{layer}-{str(dtype).removeprefix('torch.')}")
        for layer in SUBJECTS
        for dtype in sorted(OPINFOS[layer].dtypes, key=str)
        if is_refused(layer, dtype)
    ],
)
def test_other_dtypes_are_refused(layer: str, dtype: torch.dtype) -> None:
    """The deviation "dtypes", for every sample."""
    for sample in samples(layer, dtype):
        tensors, call = tensors_of(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(RuntimeError, match=r"not implemented for '.*': expected .* of dtype"):
            call(SUBJECTS[layer].ours, *tensors)


STEP = {"max_pool2d": 29}  # of its more than a thousand


def differentiable(layer: str) -> Iterator[tuple[Callable[..., Tensor], list[Tensor]]]:
    """Our function of the samples' tensors, and these, with gradients wanted."""
    for sample in samples(layer, torch.float64)[:: STEP.get(layer, 1)]:
        tensors, call = tensors_of(sample.input, *sample.args, **sample.kwargs)
        yield (
            lambda *t, call=call: first(call(SUBJECTS[layer].ours, *t)),
            [t.requires_grad_() for t in tensors],
        )


# Where the OpInfo says that torch's own function has it, as it does for all of these.
@pytest.mark.cell(TABLE, "gradcheck, forward mode and batched gradients of the samples")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@every
def test_gradcheck(layer: str) -> None:
    op = OPINFOS[layer]
    for function, tensors in differentiable(layer):
        torch.autograd.gradcheck(
            function,
            tensors,
            fast_mode=True,
            check_forward_ad=op.supports_forward_ad,
            check_batched_grad=op.check_batched_grad,
            check_batched_forward_grad=op.check_batched_forward_grad,
        )


@pytest.mark.cell(TABLE, "gradgradcheck of the samples")
@every
def test_gradgradcheck(layer: str) -> None:
    op = OPINFOS[layer]
    for function, tensors in differentiable(layer):
        torch.autograd.gradgradcheck(
            function,
            tensors,
            fast_mode=True,
            gen_non_contig_grad_outputs=True,
            check_fwd_over_rev=op.supports_fwgrad_bwgrad,
            check_batched_grad=op.check_batched_gradgrad,
        )


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def error_inputs() -> list[Any]:
    result = []
    for layer, op in OPINFOS.items():
        if layer in SUBJECTS and op.error_inputs_func is not None:
            for number in range(len(list(op.error_inputs("cpu")))):
                marks = pytest.mark.cell(TABLE, "OpInfo error inputs, messages included")
                result.append(pytest.param(layer, number, marks=marks, id=f"{layer}-{number}"))
    return result


@pytest.mark.parametrize("layer, number", error_inputs())
def test_error_inputs(layer: str, number: int) -> None:
    error = list(OPINFOS[layer].error_inputs("cpu"))[number]
    regex = OTHERWISE.get(f"OpInfo: {error.error_regex}", error.error_regex)
    sample = error.sample_input
    with pytest.raises(error.error_type, match=regex):
        SUBJECTS[layer].ours(sample.input, *sample.args, **sample.kwargs)


# --- modules --------------------------------------------------------------------------------

MODULEINFOS = {info.module_cls: info for info in module_db}
WITH_MODULES = [layer for layer, subject in SUBJECTS.items() if subject.modules is not None]


@pytest.mark.cell(TABLE, "ModuleInfo, training and evaluation mode")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", WITH_MODULES)
def test_module_inputs(layer: str, training: bool) -> None:
    mine, theirs = SUBJECTS[layer].modules
    info = MODULEINFOS[theirs]
    for dtype in info.dtypes:
        inputs = info.module_inputs_func(info, "cpu", dtype, True, training)
        assert inputs
        for module_input in inputs:
            constructor, forward = module_input.constructor_input, module_input.forward_input
            layers = [cls(*constructor.args, **constructor.kwargs) for cls in (mine, theirs)]
            for module in layers:
                module.to(dtype).train(training)
            layers[0].load_state_dict(layers[1].state_dict())
            parameters = dict(layers[1].named_parameters())
            tensors, call = tensors_of(*forward.args, **forward.kwargs)

            def run(module: nn.Module, *t: Tensor, call=call, parameters=parameters) -> Any:
                count = len(t) - len(parameters)
                own = dict(zip(parameters, t[count:], strict=True))
                return call(
                    lambda *a, **k: torch.func.functional_call(module, own, a, k), *t[:count]
                )

            check(
                lambda *t, run=run, layers=layers: run(layers[0], *t),
                lambda *t, run=run, layers=layers: run(layers[1], *t),
                [*tensors, *(p.detach() for p in parameters.values())],
                SUBJECTS[layer].terms,
            )
            if module_input.reference_fn is not None:
                reference = module_input.reference_fn(layers[0], *forward.args, **forward.kwargs)
                assert torch.equal(layers[0](*forward.args, **forward.kwargs), reference)


@pytest.mark.cell(TABLE, "ModuleInfo error inputs, messages included")
@pytest.mark.parametrize(
    "layer",
    [
        layer
        for layer in WITH_MODULES
        if MODULEINFOS[SUBJECTS[layer].modules[1]].module_error_inputs_func is not None
    ],
)
def test_module_error_inputs(layer: str) -> None:
    mine, theirs = SUBJECTS[layer].modules
    info = MODULEINFOS[theirs]
    for error in info.module_error_inputs_func(info, "cpu", torch.float32, False, True):
        constructor = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        key = f"ModuleInfo: {error.error_regex}"
        if key in OTHERWISE:
            with pytest.raises(ValueError, match=OTHERWISE[key]):
                mine(*constructor.args, **constructor.kwargs)
        elif error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                mine(*constructor.args, **constructor.kwargs)
        else:
            module = mine(*constructor.args, **constructor.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*forward.args, **forward.kwargs)


# --- deviations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviations(name: str, cell: Callable[[str, str, str, str], None]) -> None:
    """Each is one still: torch does what the list says, and ours does."""
    deviation = DEVIATIONS[name]
    for column, call, expected in (
        ("torch", deviation.torchs, deviation.torch_says),
        ("torch_convbp", deviation.ours, deviation.we_say),
    ):
        said = what_happens(call)
        assert re.search(expected, said), said
        cell("Deviations", name, column, said)
    cell("Deviations", name, "why", deviation.why)
