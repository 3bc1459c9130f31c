"""Activations in the layer (L2, L3) and the dense layer (L7), against torch's own."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, RAGGED, SMALL, Case, in_layout, integers, normal, parameters, small
from configurations import ACTIVATIONS
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from twins import Calls, bytes_of, kept

import torch_convbp as bp
from torch_convbp import activations
from torch_convbp.activations import TABLE, Activation

pytestmark = pytest.mark.every_device

ops = torch.ops.torch_convbp

# As users write them, and torch's own: with the defaults and corners of the parameters.
G: dict[str, Callable[[Tensor], Tensor]] = ACTIVATIONS | {
    "leaky_relu": F.leaky_relu,
    "leaky_relu(0)": lambda p: F.leaky_relu(p, 0.0),
    "softplus(2, 1)": lambda p: F.softplus(p, 2, 1),
}
MODULES: dict[str, nn.Module] = {
    "relu": nn.ReLU(inplace=True),
    "leaky_relu(0.2)": nn.LeakyReLU(0.2),
    "relu6": nn.ReLU6(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(),
    "softplus(2, 1)": nn.Softplus(2, 1),
    "hardsigmoid": nn.Hardsigmoid(),
    "mish": nn.Mish(),
    "elu(0.5)": nn.ELU(0.5),
}
# Rounding of one value: of the result, and of p before g where torch rounds that too.
EPSILON = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32,
                                                       torch.bfloat16, torch.float16)}  # fmt: skip
CASES = [case for case in SMALL + RAGGED if case.symmetric and case.in_channels]


def parsed(name: str) -> Activation:
    g = activations.parse("test", name)
    assert g is not None
    return g


def tensors(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
    scale = math.sqrt(case.reduction("conv2d"))  # p is of the order of 1
    return [
        in_layout(normal(case.input_size, dtype, 1), layout),
        in_layout(normal(case.weight_size, dtype, 2) / scale, layout),
        normal((case.out_channels,), dtype, 3),
    ]


def outputs_and_gradients(
    conv: Callable[..., Tensor], tensors: list[Tensor], delta: Tensor
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = conv(*leaves)
    return [output, *torch.autograd.grad(output, leaves, delta)]


def test_the_two_tables_are_one() -> None:
    rows = ", ".join(f"{name} {len(row.parameters)}" for name, row in TABLE.items())
    assert ops._activations() == rows
    for name, row in TABLE.items():
        module = row.module(approximate="tanh") if name == "gelu_tanh" else row.module()
        assert activations.of_module(module) == Activation(name, tuple(row.parameters.values()))


@pytest.mark.parametrize("name", G)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_rows_compute_what_torch_computes(name: str, dtype: torch.dtype) -> None:
    """g and its error signal, in C++ and in Python, against torch and its autograd."""
    p = torch.cat([normal((3000,), dtype, 1) * 3, torch.linspace(-9, 9, 73, dtype=dtype)])
    grad = normal(p.shape, dtype, 2)
    g = parsed(name)
    p.requires_grad_()
    expected = G[name](p)
    (expected_delta,) = torch.autograd.grad(expected, p, grad)
    output = ops.activation(p.detach(), *g)
    # A few roundings, of terms as large as p, some of which cancel.
    tolerance = {"rtol": 8 * EPSILON[dtype], "atol": 8 * 9 * EPSILON[dtype]}
    torch.testing.assert_close(output, expected.detach(), **tolerance)
    kept = expected.detach() if g.saves_output else p.detach()
    delta = ops.error_signal(grad, kept, *g)
    torch.testing.assert_close(delta, expected_delta, **tolerance)
    in_python = TABLE[g.name].error_signal(grad.double(), kept.double(), *g.parameters)
    torch.testing.assert_close(delta.double(), in_python, **tolerance)


@pytest.mark.parametrize("name", G)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_error_signal_is_the_same_if_it_is_to_be_differentiated(
    name: str, dtype: torch.dtype
) -> None:
    """Both are float32, rounded once: at most the next number of the dtype apart."""
    g, kept = parsed(name), normal((3000,), dtype, 1) * 3
    kept = ops.activation(kept, *g) if g.saves_output else kept
    grad = normal((3000,), dtype, 2)
    expected = ops.error_signal(grad, kept, *g)
    delta = ops.error_signal(grad.requires_grad_(), kept, *g)
    assert delta.requires_grad
    # Some of g' cancels: absolutely, a few roundings of float32 of terms of the order of 10.
    torch.testing.assert_close(delta, expected, rtol=EPSILON[dtype], atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_a_tangent_of_the_bias_alone_needs_no_convolution(name: str) -> None:
    input, weight, bias = tensors(small("slides"), torch.float64)
    tangent = normal(bias.shape, torch.float64, 4)

    def along_the_bias(conv: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda b: conv(input, weight, b), (bias,), (tangent,))

    with Calls() as calls:
        ours = along_the_bias(functools.partial(bp.functional.conv2d, activation=name))
    assert sum(operator.startswith("conv2d") for operator in calls.names) == 1
    torch.testing.assert_close(ours, along_the_bias(lambda *t: G[name](F.conv2d(*t))))


# Where torch's scalar and vector kernels, or its dtypes, disagree among themselves.
EITHER = {
    ("relu6", "nan", "delta"): (0.0, 1.0),
    ("hardswish", "nan", "delta"): (1.0, math.nan),
    ("elu", "nan", "delta"): (1.0, math.nan),
    ("gelu", "inf", "output"): (math.inf, math.nan),
}


@pytest.mark.parametrize("name", G)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kinks_nan_and_infinity(name: str, dtype: torch.dtype) -> None:
    g, torch_g = parsed(name), G[name]
    for value in (0.0, -0.0, 3.0, -3.0, 6.0, 0.5, math.nan, math.inf, -math.inf):
        p = torch.full((1, 1, 1, 40), value, dtype=dtype)
        results = []
        for conv in (
            lambda x: bp.functional.conv2d(x, torch.ones(1, 1, 1, 1, dtype=dtype), activation=g),
            torch_g,
        ):
            leaf = p.clone().requires_grad_()
            output = conv(leaf)
            (delta,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
            results.append((output.detach(), delta))
        for what, ours, theirs in zip(("output", "delta"), *results, strict=True):
            allowed = EITHER.get((g.name, str(value), what))
            if allowed is None:
                torch.testing.assert_close(ours, theirs, equal_nan=True)
            else:
                assert str(ours.flatten()[0].item()) in map(str, allowed)


@pytest.mark.parametrize("case", parameters(CASES))
@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_layer_is_convolution_then_activation(case: Case, name: str, layout: str) -> None:
    arguments = tensors(case, torch.float64, layout)
    stride, padding, dilation, groups = case.geometry
    rest = (stride, (padding[0], padding[2]), dilation, groups)
    delta = in_layout(normal(case.output_size, torch.float64, 4), layout)
    ours = outputs_and_gradients(
        lambda *t: bp.functional.conv2d(*t, *rest, activation=name), arguments, delta
    )
    theirs = outputs_and_gradients(lambda *t: G[name](F.conv2d(*t, *rest)), arguments, delta)
    depth = max(case.reduction(o) for o in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"))
    for a, b in zip(ours, theirs, strict=True):
        bound = 8 * EPSILON[torch.float64] * max(depth, 1)
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * max(1, depth**0.5))


@pytest.mark.parametrize("name", G)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_activation_in_every_dtype(name: str, dtype: torch.dtype, layout: str) -> None:
    case = small("groups", size=(9, 8), padding=(1, 1, 1, 1))
    arguments = tensors(case, dtype, layout)
    delta = normal(case.output_size, dtype, 4)
    ours = outputs_and_gradients(
        lambda *t: bp.functional.conv2d(*t, padding=1, groups=2, activation=name), arguments, delta
    )
    exact = outputs_and_gradients(
        lambda *t: G[name](F.conv2d(*t, padding=1, groups=2)),
        [t.double() for t in arguments],
        delta.double(),
    )
    assert ours[0].dtype == dtype
    for a, b in zip(ours, exact, strict=True):
        # p, a, delta and the sum are rounded; a kink may be crossed by the first of these.
        scale = b.abs().max().item()
        error = (a.double() - b).abs().max().item()
        assert error <= 32 * EPSILON[dtype] * scale, error / scale / EPSILON[dtype]


@pytest.mark.parametrize("algorithm", ["direct", "plain"])
def test_exact_on_integers(algorithm: str) -> None:
    case = small("padding", out_channels=19)
    input, weight = (integers(s, torch.float32, i) for i, s in
                     enumerate((case.input_size, case.weight_size)))  # fmt: skip
    bias, delta = (integers(s, torch.float32, i + 2) for i, s in
                   enumerate(((case.out_channels,), case.output_size)))  # fmt: skip
    arguments = [input, weight, bias]
    with bp.backends.cpu.flags(conv_algorithm=algorithm):
        ours = outputs_and_gradients(
            lambda *t: bp.functional.conv2d(*t, padding=1, activation="relu"), arguments, delta
        )
    theirs = outputs_and_gradients(lambda *t: F.relu(F.conv2d(*t, padding=1)), arguments, delta)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", G)
def test_gradcheck(name: str) -> None:
    case = small("slides", batch=1, in_channels=2, out_channels=2, size=(4, 4))
    leaves = [t.requires_grad_() for t in tensors(case, torch.float64)]

    def layer(*t: Tensor) -> Tensor:
        return bp.functional.conv2d(*t, activation=name)

    assert gradcheck(
        layer, leaves, check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True, fast_mode=False,
    )  # fmt: skip
    assert gradgradcheck(layer, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_vmap_over_models_and_batches() -> None:
    weights, bias = normal((3, 4, 2, 3, 3), torch.float64, 1), normal((3, 4), torch.float64, 3)
    inputs = normal((3, 2, 2, 6, 6), torch.float64, 2)

    def gradients(conv: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return torch.func.grad(lambda w, b, a: conv(a, w, b).pow(2).sum(), (0, 1, 2))

    for name, g in (("relu", F.relu), ("gelu", F.gelu)):
        ours = gradients(functools.partial(bp.functional.conv2d, activation=name))
        theirs = gradients(functools.partial(lambda g, *t: g(F.conv2d(*t)), g))
        for dims in ((0, 0, 0), (None, None, 0), (0, None, None)):
            arguments = [
                t if d == 0 else t[0] for t, d in zip((weights, bias, inputs), dims, strict=True)
            ]
            for a, b in zip(
                torch.vmap(ours, dims)(*arguments),
                torch.vmap(theirs, dims)(*arguments),
                strict=True,
            ):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_compile_and_opcheck(name: str) -> None:
    case = small("padding")
    input, weight, bias = (t.requires_grad_() for t in tensors(case, torch.float32))
    layer = lambda *t: bp.functional.conv2d(*t, padding=1, activation=name)  # noqa: E731
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    delta = normal(case.output_size, torch.float32, 4)
    arguments = [input, weight, bias]
    for a, b in zip(outputs_and_gradients(compiled, arguments, delta),
                    outputs_and_gradients(layer, arguments, delta), strict=True):  # fmt: skip
        assert torch.equal(a, b)
    row = (name, ())
    for operator in (ops.conv2d_activation, ops.conv2d_activation_pair):
        torch.library.opcheck(operator.default, (input, weight, bias, *case.geometry, *row))
        last = input.detach().contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(operator.default, (last, weight, bias, *case.geometry, *row))
    for grad in (delta, delta.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(ops.activation.default, (grad, *row))
        torch.library.opcheck(ops.error_signal.default, (delta, grad, *row))
        torch.library.opcheck(ops.error_signal_bias_grad.default, (delta, grad, *row))
    torch.library.opcheck(
        ops.linear.default,
        (normal((3, 4), torch.float32, 1).requires_grad_(), normal((5, 4), torch.float32, 2), None),
    )


FOUR = [(2, 3, 5, 7), (3, 70, 4, 4), (2, 2, 40, 41), (5, 1, 1, 1), (0, 3, 2, 2), (1, 2000, 1, 1),
        (2, 0, 3, 3)]  # fmt: skip
OTHERS = [(70, 40), (9, 1500), (2, 3, 4), (2, 0), (0, 3), (2, 3, 0)]
SHAPES = [
    *((size, layout) for size in FOUR for layout in (*LAYOUTS, "expanded")),
    *((size, "contiguous") for size in OTHERS),
]


@pytest.mark.parametrize(("size", "layout"), SHAPES, ids=str)
def test_error_signal_and_bias_gradient(size: tuple[int, ...], layout: str) -> None:
    grad, kept = (integers(size, torch.float32, i) for i in range(2))
    if layout == "expanded":
        grad = grad[:, :, :1, :1].expand(size)
    elif len(size) == 4:
        kept = in_layout(kept, layout)
    delta, bias_grad = ops.error_signal_bias_grad(grad, kept, "relu", [])
    expected = torch.where(kept > 0, grad, 0.0)
    assert torch.equal(delta, expected)
    assert torch.equal(bias_grad, expected.sum([d for d in range(len(size)) if d != 1]))
    assert torch.equal(ops.error_signal(grad, kept, "relu", []), expected)
    assert torch.equal(ops.activation(kept, "relu", []), kept.relu())


# Sums are cut into chunks: of few channels those of contiguous tensors, of many of channels_last.
@pytest.mark.parametrize("channels", [3, 33])
def test_same_bits_at_any_thread_count(channels: int, set_threads: Callable[[int], None]) -> None:
    results = []
    grad, kept = (normal((7, channels, 31, 30), torch.float32, i) for i in range(2))
    last = kept.contiguous(memory_format=torch.channels_last)
    for count in (1, 2, 3, 7):
        set_threads(count)
        results.append([
            *ops.error_signal_bias_grad(grad, kept, "tanh", []),
            *ops.error_signal_bias_grad(grad, last, "tanh", []),
        ])  # fmt: skip
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("name", ["leaky_relu", "relu6"])
def test_keeps_less_where_torch_keeps_the_input(name: str) -> None:
    """Counted over two layers, since the next one keeps this one's output in any case."""
    first = nn.Conv2d(3, 8, 3, padding=1)
    input = normal((2, 3, 12, 12), torch.float32, 1)
    weight = normal((4, 8, 3, 3), torch.float32, 2).requires_grad_()
    _, theirs = kept(lambda: F.conv2d(G[name](first(input)), weight))
    _, ours = kept(
        lambda: F.conv2d(
            bp.functional.conv2d(input, first.weight, first.bias, padding=1, activation=name),
            weight,
        )
    )
    assert bytes_of(ours) < bytes_of(theirs)


def test_computes_and_keeps_only_what_is_asked_for() -> None:
    input, weight, bias = tensors(small("slides"), torch.float64)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        arguments = [t.detach().requires_grad_(w) for t, w in
                     zip((input, weight, bias), wanted, strict=True)]  # fmt: skip
        output = bp.functional.conv2d(*arguments, activation="tanh")
        output.sum().backward()
        theirs = [t.detach().requires_grad_(w) for t, w in
                  zip((input, weight, bias), wanted, strict=True)]  # fmt: skip
        torch.tanh(F.conv2d(*theirs)).sum().backward()
        for a, b in zip(arguments, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)
    with torch.no_grad():
        assert not bp.functional.conv2d(input, weight, activation="silu").requires_grad


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module = MODULES[name]
    torch.manual_seed(0)
    ours = bp.ConvBP2d(3, 4, 3, activation=module)
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(module))
    assert f"activation={name})" in repr(ours)
    assert ours.activation == bp.ConvBP2d(3, 4, 3, activation=name).activation
    assert list(ours.state_dict()) == ["weight", "bias"]
    input = normal((2, 3, 7, 7), torch.float32, 1)
    torch.testing.assert_close(ours(input), theirs(input))
    torch.testing.assert_close(ours(input[0]), theirs(input[0]))
    assert torch.equal(copy.deepcopy(ours)(input), ours(input))


BAD: dict[str, tuple[object, type[Exception], str]] = {
    "unknown": ("swish", ValueError,
        "argument 'activation' must be one of relu, leaky_relu.*, but got 'swish'"),
    "too_many": ("relu(1)", ValueError, "activation relu takes no parameters"),
    "no_number": ("leaky_relu(x)", ValueError, "activation leaky_relu takes negative_slope"),
    "nothing": ("leaky_relu(,0.2)", ValueError, "activation leaky_relu takes negative_slope"),
    "nothing_between": ("softplus(1,,2)", ValueError,
        "activation softplus takes beta and threshold"),
    "nan": ("leaky_relu(nan)", ValueError, "activation leaky_relu takes negative_slope"),
    "open": ("leaky_relu(0.1", ValueError, "activation leaky_relu takes negative_slope, but got "),
    "function": (F.relu, TypeError,
        "argument 'activation' must be None, a name or a torch.nn module, not function"),
    "class": (nn.ReLU, TypeError,
        "argument 'activation' must be None, a name or a torch.nn module, not type"),
    "module": (nn.PReLU(), TypeError,
        "argument 'activation' must be one of nn.ReLU.*, but got PReLU"),
    "module_nan": (nn.LeakyReLU(math.nan), ValueError,
        "activation leaky_relu takes negative_slope"),
    "module_text": (nn.LeakyReLU("x"), ValueError,
        r"activation leaky_relu takes negative_slope, but got LeakyReLU\(negative_slope=x\)"),
    "module_kind": (nn.GELU("foo"), ValueError,
        r"activation gelu takes no parameters, but got GELU\(approximate='foo'\)"),
    "hand_made_text": (Activation("leaky_relu", ("x",)), ValueError,
        "activation leaky_relu takes negative_slope"),
    "hand_made": (Activation("nope"), ValueError,
        r"argument 'activation' must be one of relu.*, but got Activation\(name='nope'"),
    "hand_made_parameters": (Activation("relu", (1.0,)), ValueError,
        "activation relu takes no parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("make", [lambda: bp.ConvBP2d(2, 3, 1), lambda: bp.LinearBP(4, 3)])
def test_assigned_to_a_layer(name: str, make: Callable[[], nn.Module]) -> None:
    """A name, a module, a row or None, later than in the constructor; and then it is no child."""
    layer = make()
    input = normal((1, 2, 4, 4), torch.float32, 1)
    p = layer(input)
    for activation in (name, MODULES[name]):
        layer.activation = activation
        assert str(layer.activation) == name and not list(layer.children())
        torch.testing.assert_close(layer(input), MODULES[name](p.clone()))
        row, layer.activation = layer.activation, None
        assert torch.equal(layer(input), p)
    layer.activation = row
    torch.testing.assert_close(layer(input), MODULES[name](p.clone()))


def test_an_activation_is_not_lost_by_del() -> None:
    """Libraries that keep an attribute of that name delete it, if hasattr() finds one."""
    layer = bp.ConvBP2d(2, 3, 1)
    del layer.activation
    assert layer.activation is None
    layer.activation = "relu"
    with pytest.raises(AttributeError, match="activation relu of a ConvBP2d cannot be deleted"):
        del layer.activation
    assert str(layer.activation) == "relu"
    del layer.bias
    assert not hasattr(layer, "bias")


def test_a_row_prints_even_if_the_table_lacks_it() -> None:
    assert str(Activation("nope", (1.0, 2.0))) == "nope(1, 2)"


@pytest.mark.parametrize("name", BAD)
def test_bad_activations(name: str) -> None:
    activation, error, message = BAD[name]
    for call in (
        lambda: bp.ConvBP2d(3, 4, 3, activation=activation),  # type: ignore[arg-type]
        lambda: bp.LinearBP(3, 4, activation=activation),  # type: ignore[arg-type]
        lambda: setattr(bp.ConvBP2d(3, 4, 3), "activation", activation),
        lambda: bp.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1),
                                     activation=activation),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(error, match=rf"\(\): {message}"):
            call()


# --- the dense layer -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("features", [5, 0])
@pytest.mark.parametrize("size", [(4,), (3, 4), (2, 3, 4), (0, 4), (0,), (3, 0), (2, 3, 0)],
                         ids=str)  # fmt: skip
def test_linear_is_torchs(size: tuple[int, ...], features: int, name: str | None) -> None:
    torch.manual_seed(0)
    ours = bp.LinearBP(size[-1], features, activation=name, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = nn.Linear(size[-1], features, dtype=torch.float64)
    g = G[name] if name else lambda p: p
    assert isinstance(ours, nn.Linear) and torch.equal(ours.weight, theirs.weight)
    input = normal(size, torch.float64, 1)
    delta = normal((*size[:-1], features), torch.float64, 2)
    results = []
    for layer in (ours, lambda a: g(theirs(a))):
        leaf = input.clone().requires_grad_()
        output = layer(leaf)
        module = ours if layer is ours else theirs
        results.append([output, *torch.autograd.grad(output, (leaf, *module.parameters()), delta)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


# Sizes of input, weight and bias that torch takes beyond [..., J], [I, J] and [I].
UNUSUAL = [
    ((3, 4), (4,), None),
    ((4,), (4,), None),
    ((2, 3, 4), (4,), None),
    ((4,), (4,), ()),
    ((2, 3), (4, 3), ()),
    ((2, 3), (4, 3), (1,)),
    ((2, 3), (4, 3), (2, 4)),
    ((2, 2, 3), (4, 3), (2, 1, 4)),
    ((2, 0), (4, 0), (2, 1)),
    ((3, 0), (5, 0), (5,)),
    ((3, 4), (0, 4), (0,)),
    ((2, 0, 4), (5, 4), (5,)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("sizes", UNUSUAL, ids=str)
def test_unusual_sizes_of_linear(
    sizes: tuple[tuple[int, ...] | None, ...], dtype: torch.dtype
) -> None:
    """Gradients, tangents and torch.vmap, where those of F.linear itself do not always come."""

    def written_out(a: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return a @ w.t() if bias is None else a @ w.t() + bias

    given = [normal((2, *s), dtype, i) for i, s in enumerate(sizes) if s is not None]
    arguments, tangents = (tuple(t[index] for t in given) for index in range(2))
    expected = F.linear(*arguments)
    assert expected.shape == written_out(*arguments).shape
    delta = normal(expected.shape, dtype, 5)

    def loss(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *t: linear(*t).abs().square().sum()

    alone = [(0, *(None,) * (len(given) - 1)), (None, 0, *(None,) * (len(given) - 2))]
    ours, theirs = (
        [
            *outputs_and_gradients(linear, list(arguments), delta),
            torch.func.jvp(linear, arguments, tangents)[1],
            torch.vmap(linear)(*given),
            *(
                torch.vmap(linear, dims)(
                    *(g if d == 0 else g[0] for g, d in zip(given, dims, strict=True))
                )
                for dims in alone
            ),
            *torch.vmap(torch.func.grad(loss(linear)))(*given),
        ]
        for linear in (bp.functional.linear, written_out)
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours[0], expected)


def test_a_number_as_bias_of_many_rows() -> None:
    """As torch.nn.functional.linear is documented, and does not do."""
    input, weight, bias = (normal(s, torch.float64, i) for i, s in enumerate(((3, 4), (4,), ())))
    torch.testing.assert_close(bp.functional.linear(input, weight, bias), input @ weight + bias)


@pytest.mark.parametrize("name", [None, "tanh", "silu"])
def test_linear_gradcheck(name: str | None) -> None:
    leaves = [normal(s, torch.float64, i).requires_grad_() for i, s in
              enumerate(((3, 4), (2, 4), (2,)))]  # fmt: skip

    def layer(*t: Tensor) -> Tensor:
        return bp.functional.linear(*t, activation=name)

    assert gradcheck(layer, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(layer, leaves, check_fwd_over_rev=True)


def test_linear_under_vmap_compile_and_autocast() -> None:
    input, weight, bias = (normal(s, torch.float32, i) for i, s in
                           enumerate(((3, 2, 4), (3, 5, 4), (3, 5))))  # fmt: skip
    for dims in ((0, 0, 0), (0, None, None), (None, 0, None), (0, None, 0)):
        arguments = [
            t if d == 0 else t[0] for t, d in zip((input, weight, bias), dims, strict=True)
        ]
        torch.testing.assert_close(torch.vmap(bp.functional.linear, dims)(*arguments),
                                   torch.vmap(F.linear, dims)(*arguments))  # fmt: skip
    layer = bp.LinearBP(4, 5, activation="silu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input), layer(input))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(input).dtype == torch.bfloat16
