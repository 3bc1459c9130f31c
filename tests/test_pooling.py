"""Pooling (L8): max and average, against the reference, torch, and numerical derivatives."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import in_layout, integers, normal
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import torch_convbp as bp
from torch_convbp import reference

ops = torch.ops.torch_convbp
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Pool:
    """One pooling."""

    name: str
    size: tuple[int, ...] = (2, 3, 7, 8)
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def maximum(self) -> tuple[Any, ...]:
        """max_pool2d's arguments after the input."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @property
    def average(self) -> tuple[Any, ...]:
        """avg_pool2d's arguments after the input, for those that have no dilation."""
        return self.kernel, self.stride, self.padding, self.ceil_mode

    @property
    def windows(self) -> reference.Windows:
        return reference.Windows(self.kernel, self.stride, self.padding, self.dilation)


POOLS = [
    Pool("halves"),
    Pool("overlapping", kernel=(3, 3), padding=(1, 1)),
    Pool("stride_1", kernel=(3, 2), stride=(1, 1), padding=(1, 1)),
    Pool("asymmetric", kernel=(1, 4), stride=(3, 1), padding=(0, 2)),
    Pool("gaps", kernel=(2, 1), stride=(3, 4)),
    Pool("dilation", kernel=(2, 3), stride=(1, 2), dilation=(3, 2)),
    Pool("dilation_and_padding", kernel=(3, 3), stride=(2, 1), padding=(1, 1), dilation=(2, 2)),
    Pool("ceil", size=(2, 3, 8, 9), kernel=(3, 3), ceil_mode=True),
    Pool("ceil_and_padding", size=(1, 2, 6, 5), kernel=(3, 2), stride=(2, 3), padding=(1, 1),
         ceil_mode=True),
    Pool("whole_input", kernel=(7, 8)),
    Pool("one_by_one", kernel=(1, 1), stride=(1, 1)),
    Pool("one_channel", size=(2, 1, 5, 6)),
    Pool("one_pixel", size=(2, 3, 1, 1), kernel=(2, 2), padding=(1, 1)),
    Pool("wide", size=(1, 2, 3, 301), kernel=(3, 3), stride=(1, 1), padding=(1, 1)),
    Pool("many_channels", size=(2, 150, 5, 4), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    Pool("large_window", size=(1, 2, 17, 19), kernel=(16, 16), stride=(1, 2)),
    Pool("batch_0", size=(0, 3, 7, 8)),
]  # fmt: skip
BY_NAME = {pool.name: pool for pool in POOLS}
UNDILATED = [pool for pool in POOLS if pool.dilation == (1, 1)]


def pools(some: list[Pool]) -> list[Any]:
    return [pytest.param(pool, id=pool.name) for pool in some]


def distinct(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """All values different, and farther apart than gradcheck's steps."""
    generator = torch.Generator().manual_seed(1)
    return torch.randperm(math.prod(size), generator=generator).reshape(size).to(dtype) / 16


def with_gradient(pool: Any, input: Tensor, delta_of: Any) -> list[Tensor]:
    leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    results = pool(leaf)
    results = list(results) if isinstance(results, tuple) else [results]
    return [*results, *torch.autograd.grad(results[0], leaf, delta_of(results[0]))]


@pytest.mark.parametrize("pool", pools([p for p in POOLS if p.size[0] and p.name != "wide"]))
def test_is_the_reference(pool: Pool) -> None:
    input = integers(pool.size, torch.float64, 1)
    output, grad = with_gradient(
        lambda a: bp.functional.max_pool2d(a, *pool.maximum),
        input,
        lambda out: integers(tuple(out.shape), torch.float64, 2),
    )
    delta = integers(tuple(output.shape), torch.float64, 2)
    assert torch.equal(reference.max_pool(input, pool.windows, output.shape[2:]), output)
    assert torch.equal(reference.max_pool_input_grad(input, delta, pool.windows), grad)


@pytest.mark.parametrize("pool", pools([p for p in UNDILATED if p.size[0] and not p.ceil_mode]))
def test_average_is_the_reference(pool: Pool) -> None:
    input = normal(pool.size, torch.float64, 1)
    delta = None

    def delta_of(out: Tensor) -> Tensor:
        nonlocal delta
        delta = normal(tuple(out.shape), torch.float64, 2)
        return delta

    output, grad = with_gradient(
        lambda a: bp.functional.avg_pool2d(a, *pool.average), input, delta_of
    )
    assert delta is not None
    torch.testing.assert_close(
        output, reference.average_pool(input, pool.windows, output.shape[2:])
    )
    expected = reference.average_pool_input_grad(pool.size[2:], delta, pool.windows)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("pool", pools(POOLS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("values", ["ties", "nan", "-inf"])
def test_max_is_torchs(pool: Pool, dtype: torch.dtype, layout: str, values: str) -> None:
    """Values, winners and gradients, to the last bit; ties, NaN, infinities."""
    input = integers(pool.size, dtype, 1, bound=2)
    if values == "nan" and input.numel():
        input.view(-1)[::5] = math.nan
    elif values == "-inf":
        input[...] = -math.inf
    input = in_layout(input, layout)
    results = [
        with_gradient(
            lambda a, f=f: f.max_pool2d(a, *pool.maximum, return_indices=True),
            input,
            lambda out: integers(tuple(out.shape), dtype, 2, bound=1),
        )
        for f in (bp.functional, F)
    ]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
        if layout != "strided" and min(pool.size) > 1:
            assert ours.is_contiguous(memory_format=torch.channels_last) == (
                theirs.is_contiguous(memory_format=torch.channels_last)
            )


@pytest.mark.parametrize("pool", pools(UNDILATED))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("divisor", ["padding", "inside", "-3"])
def test_average_is_torchs(pool: Pool, dtype: torch.dtype, layout: str, divisor: str) -> None:
    rest = (divisor == "padding", int(divisor) if divisor == "-3" else None)
    results = [
        with_gradient(
            lambda a, f=f: f.avg_pool2d(a, *pool.average, *rest),
            in_layout(normal(pool.size, dtype, 1), layout).to(kind),
            lambda out, kind=kind: normal(tuple(out.shape), dtype, 2).to(kind),
        )
        for f, kind in ((bp.functional, dtype), (F, torch.float64))
    ]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype
        # A sum of as many as a window has, rounded once.
        terms = pool.kernel[0] * pool.kernel[1]
        eps = torch.finfo(dtype).eps + terms * torch.finfo(torch.float32).eps * (
            dtype != torch.float64
        )
        bound = 2 * eps + terms * torch.finfo(torch.float64).eps
        torch.testing.assert_close(ours.double(), theirs, rtol=bound, atol=4 * bound)


@pytest.mark.parametrize("function", ["max_pool2d", "avg_pool2d"])
def test_random_windows(function: str) -> None:
    """Sizes, strides, paddings and ceil_mode in every combination that torch takes, or refuses."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    taken = 0
    for _ in range(600):
        size = (draw(1, 2), draw(1, 3), draw(1, 8), draw(1, 8))
        rest = [(draw(1, 4), draw(1, 4)), (draw(1, 4), draw(1, 4)), (draw(0, 2), draw(0, 2))]
        ceil_mode = bool(draw(0, 1))
        input = integers(size, torch.float64, draw(0, 99))
        try:
            theirs = getattr(F, function)(input, *rest, ceil_mode=ceil_mode)
        except RuntimeError:
            with pytest.raises(RuntimeError, match=r"pad should be at most|[Oo]utput size"):
                getattr(bp.functional, function)(input, *rest, ceil_mode=ceil_mode)
            continue
        taken += 1
        torch.testing.assert_close(
            getattr(bp.functional, function)(input, *rest, ceil_mode=ceil_mode), theirs
        )
    assert taken > 100


def test_a_window_with_nothing_inside() -> None:
    """Dilated over a small input: -inf, no position, no gradient."""
    input = torch.ones(1, 1, 2, 2, requires_grad=True)
    output, index = bp.functional.max_pool2d(input, 2, 1, 1, 3, return_indices=True)
    assert output.shape == (1, 1, 1, 1) and output.item() == -math.inf and index.item() == -1
    (grad,) = torch.autograd.grad(output, input, torch.ones_like(output))
    assert torch.equal(grad, torch.zeros_like(input))


DERIVATIVES = ["overlapping", "dilation_and_padding", "ceil_and_padding"]


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_derivatives_of_every_order_and_mode(name: str, kind: str) -> None:
    pool = BY_NAME[name]
    input = distinct((1, 2, *pool.size[2:])).requires_grad_()

    def pooled(a: Tensor) -> Tensor:
        if kind == "max":
            return bp.functional.max_pool2d(a, *pool.maximum)
        return bp.functional.avg_pool2d(a, *pool.average, count_include_pad=False)

    checks = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(pooled, input, **checks, check_batched_forward_grad=True)
    assert gradgradcheck(pooled, input, check_fwd_over_rev=True)

    def loss(a: Tensor) -> Tensor:
        return pooled(a).pow(3).sum()

    hessian = torch.func.hessian(loss)(input.detach())
    expected = torch.autograd.functional.hessian(loss, input)
    torch.testing.assert_close(hessian, expected)


def operators(pool: Pool, layout: str) -> list[tuple[Any, tuple[Any, ...]]]:
    input = in_layout(distinct(pool.size, torch.float32), layout).requires_grad_()
    output, offset = ops.max_pool2d(input.detach(), *pool.maximum)
    delta = output.clone().requires_grad_()
    average = (*pool.average, True, None)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.max_pool2d, (input, *pool.maximum)),
        (ops.max_pool2d_input_grad, (pool.size, delta, offset, *pool.maximum)),
        (ops.max_pool2d_gather, (input, offset, *pool.maximum)),
    ]
    if pool.dilation == (1, 1):
        calls += [
            (ops.avg_pool2d, (input, *average)),
            (ops.avg_pool2d_input_grad, (pool.size, delta, *average)),
        ]
    return calls


@pytest.mark.parametrize("name", ["overlapping", "dilation", "ceil", "large_window"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(name: str, layout: str) -> None:
    for operator, arguments in operators(BY_NAME[name], layout):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("pool", pools([BY_NAME["overlapping"], BY_NAME["many_channels"]]))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_at_any_thread_count(pool: Pool, layout: str) -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append([operator(*a) for operator, a in operators(pool, layout)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
            assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("function", ["max_pool2d", "avg_pool2d"])
def test_vmap_compile_and_unbatched(function: str) -> None:
    ours, theirs = getattr(bp.functional, function), getattr(F, function)
    input = distinct((3, 2, 4, 7, 8))
    for dim in (0, 1, 2):
        pooled = [torch.vmap(lambda a, f=f: f(a, 3, 2, 1), dim)(input) for f in (ours, theirs)]
        torch.testing.assert_close(*pooled)
        gradients = [
            torch.vmap(torch.func.grad(lambda a, f=f: f(a, 3, 2, 1).pow(2).sum()), dim)(input)
            for f in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients)
    assert torch.equal(ours(input[0, 0], 2), theirs(input[0, 0], 2))
    compiled = torch.compile(lambda a: ours(a, 3, 2, 1), backend="aot_eager", fullgraph=True)
    results = [
        with_gradient(f, input[0], torch.ones_like) for f in (compiled, lambda a: ours(a, 3, 2, 1))
    ]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_max_keeps_one_byte_an_output() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = bp.functional.max_pool2d(torch.randn(2, 3, 8, 8, requires_grad=True), 2)
        bp.functional.avg_pool2d(output, 2)
    assert [(t.dtype, t.shape) for t in kept] == [(torch.uint8, output.shape)]


MODULES = {
    "max": (bp.MaxPoolBP2d, nn.MaxPool2d, dict(kernel_size=3, stride=2, padding=1)),
    "max_all": (bp.MaxPoolBP2d, nn.MaxPool2d,
                dict(kernel_size=(2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1),
                     ceil_mode=True, return_indices=True)),
    "average": (bp.AvgPoolBP2d, nn.AvgPool2d, dict(kernel_size=2)),
    "average_all": (bp.AvgPoolBP2d, nn.AvgPool2d,
                    dict(kernel_size=(3, 2), stride=(2, 1), padding=1, ceil_mode=True,
                         count_include_pad=False, divisor_override=5)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    ours_class, theirs_class, arguments = MODULES[name]
    ours, theirs = ours_class(**arguments), theirs_class(**arguments)
    assert isinstance(ours, theirs_class)
    assert repr(ours) == repr(theirs).replace("Pool2d", "PoolBP2d")
    input = distinct((2, 3, 9, 10), torch.float32)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(input), theirs(input))


def test_convert_and_revert() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(),
                          nn.Linear(4, 5))  # fmt: skip
    parameters = list(model.parameters())
    input = normal((1, 3, 7, 8), torch.float32, 1)
    expected = model(input)
    kinds = [type(m) for m in model]
    bp.convert(model)
    assert [type(m) for m in model] == [bp.ConvBP2d, *kinds[1:]]
    bp.convert(model, pooling=True, dense=True)
    assert [type(m) for m in model] == [
        bp.ConvBP2d, bp.MaxPoolBP2d, bp.AvgPoolBP2d, nn.Flatten, bp.LinearBP,
    ]  # fmt: skip
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(input), expected)
    torch.testing.assert_close(copy.deepcopy(model)(input), expected)
    bp.revert(model)
    assert [type(m) for m in model] == kinds


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "numpy": (lambda f: f(torch.ones(1, 1, 4, 4).numpy(), 2), TypeError, "'input' must be Tensor"),
    "two_dimensions": (lambda f: f(torch.ones(4, 4), 2), RuntimeError, "Expected 3D .* or 4D"),
    "integers": (lambda f: f(torch.ones(1, 1, 4, 4).int(), 2), RuntimeError,
                 "not implemented for 'Int'"),
    "sparse": (lambda f: f(torch.ones(1, 1, 4, 4).to_sparse(), 2), RuntimeError, "dense tensor"),
    "kernel_0": (lambda f: f(torch.ones(1, 1, 4, 4), 0), RuntimeError,
                 "kernel size should be greater than zero"),
    "kernel_3": (lambda f: f(torch.ones(1, 1, 4, 4), (1, 2, 3)), RuntimeError, "kernel_size"),
    "kernel_float": (lambda f: f(torch.ones(1, 1, 4, 4), 2.5), TypeError, "'kernel_size'"),
    "stride_0": (lambda f: f(torch.ones(1, 1, 4, 4), 2, 0), RuntimeError,
                 "stride should not be zero"),
    "negative_padding": (lambda f: f(torch.ones(1, 1, 4, 4), 2, 1, -1), RuntimeError,
                         "pad must be non-negative"),
    "padding": (lambda f: f(torch.ones(1, 1, 4, 4), 2, 1, 2), RuntimeError,
                "pad should be at most half of effective kernel size"),
    "too_small": (lambda f: f(torch.ones(1, 1, 4, 4), 5), RuntimeError, "Output size is too small"),
    "no_channels": (lambda f: f(torch.ones(1, 0, 4, 4), 2), RuntimeError, "optional 0 dim batch"),
    "huge": (lambda f: f(torch.ones(1, 1, 4, 4), 2**40), RuntimeError, "kernel_size"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", ["max_pool2d", "avg_pool2d"])
def test_bad_input(name: str, function: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message) as raised:
        call(getattr(bp.functional, function))
    if name not in ("numpy", "integers", "sparse"):
        with torch.device("meta"), pytest.raises(error) as on_meta:
            call(getattr(bp.functional, function))
        assert str(on_meta.value).splitlines()[0] == str(raised.value).splitlines()[0]


def test_bad_arguments_of_single_functions() -> None:
    four = torch.ones(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="dilation should be greater than zero"):
        bp.functional.max_pool2d(four, 2, dilation=0)
    with pytest.raises(RuntimeError, match="divisor must be not zero"):
        bp.functional.avg_pool2d(four, 2, divisor_override=0)
    wrongs: list[tuple[dict[str, int], str]] = [
        (dict(kernel_size=0), "kernel_size must be an int >= 1"),
        (dict(kernel_size=2, stride=0), "stride must be an int >= 1"),
        (dict(kernel_size=2, padding=-1), "padding must be an int >= 0"),
    ]
    for wrong, message in wrongs:
        for layer in (bp.MaxPoolBP2d, bp.AvgPoolBP2d):
            with pytest.raises(ValueError, match=message):
                layer(**wrong)
    with pytest.raises(ValueError, match="divisor_override must be not zero"):
        bp.AvgPoolBP2d(2, divisor_override=0)
    offset = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=r"Expected offset of type Byte|Expected offset of"):
            ops.max_pool2d_gather(four.to(device), offset.to(device), [2, 2], [2, 2], [0, 0],
                                  [1, 1], False)  # fmt: skip
        with pytest.raises(RuntimeError, match="Expected delta to have the size of the output"):
            ops.avg_pool2d_input_grad([1, 1, 4, 4], four.to(device), [2, 2], [2, 2], [0, 0],
                                      False, True, None)  # fmt: skip
