"""Configurations that a fuzzer draws: plain data, each of which can check itself.

A configuration says everything about one computation: sizes, where the elements lie in memory,
element type, activation, algorithm, which gradients are wanted, numbers and their seed. ``check``
computes it with torch_convbp and raises AssertionError unless results and gradients are those
of torch in float64: exactly for whole numbers, within their roundings otherwise.

    str(configuration)        one line of JSON
    parse(line).check()       the same case again
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case, integers, normal
from memory import in_memory, poisoned
from rounding import Bounds, round_off
from torch import Tensor
from twins import assert_same

import torch_convbp as bp
from torch_convbp.ops import conv2d as conv2d_ops

DTYPES = ("float32", "float64", "bfloat16", "float16")
ALGORITHMS = ("auto", "direct", "winograd", "plain")
NEAR = 3e-6  # how far Winograd's algorithm may lie from exact results, in units of the largest
VALUES = ("integers", "normal")


def hardsigmoid(p: Tensor) -> Tensor:
    """torch's own has 1/6 of float32 in it, of float64 too."""
    return F.relu6(p + 3) / 6 if p.dtype == torch.float64 else F.hardsigmoid(p)


# As users write them, and in torch's words.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu(0.5)": lambda p: F.leaky_relu(p, 0.5),
    "leaky_relu(-0.5)": lambda p: F.leaky_relu(p, -0.5),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda p: F.gelu(p, approximate="tanh"),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "hardsigmoid": hardsigmoid,
    "mish": F.mish,
    "elu": F.elu,
    "elu(-0.5)": lambda p: F.elu(p, -0.5),
}
# These keep whole numbers and halves exact.
EXACT = (None, "relu", "leaky_relu(0.5)", "leaky_relu(-0.5)", "relu6")


@dataclass(frozen=True)
class Common:
    """What every configuration has."""

    dtype: str = "float32"
    algorithm: str = "auto"
    values: str = "integers"
    seed: int = 0

    def __str__(self) -> str:
        said = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "name" and getattr(self, f.name) != f.default
        }
        return json.dumps({"kind": KIND[type(self)], **said}, separators=(",", ":"))

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def numbers(self, size: Sequence[int], memory: str, which: int, special: str = "") -> Tensor:
        make = normal if self.values == "normal" else integers
        numbers = make(tuple(size), self.torch_dtype, 8 * self.seed + which)
        if special:
            numbers[normal(tuple(size), torch.float64, 8 * self.seed) > 0.4] = float(special)
        return in_memory(numbers, memory)

    def check(self) -> bool:
        """True if torch computes it too, False if both refuse it."""
        raise NotImplementedError

    @staticmethod
    def refused(ours: Callable[[], Any], theirs: Callable[[], Any]) -> bool:
        """Does torch raise RuntimeError? Then ours must too."""
        try:
            theirs()
        except RuntimeError as error:
            try:
                ours()
            except RuntimeError:
                return True
            raise AssertionError(f"no error where torch says: {error}") from error
        return False


def plainly(tensor: Tensor) -> Tensor:
    """In float64 and contiguous: torch does not take every memory layout everywhere."""
    return tensor.detach().to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def within(name: str, actual: Tensor, exact: Tensor, bound: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == exact.shape, f"{name}: {actual.shape}, torch {exact.shape}"
    assert actual.dtype == dtype, f"{name}: {actual.dtype}"
    over = (actual.double() - exact).abs() - bound
    assert bool((over <= 0).all()), f"{name}: {over.max().item():.3g} beyond its bound"


def dense(name: str, actual: Tensor, channels_last: bool | None) -> None:
    """Results lie close together, in the format of the operands (None: either reading)."""
    if actual.dim() == 4 and actual.numel():
        last = actual.is_contiguous(memory_format=torch.channels_last)
        assert last or actual.is_contiguous(), f"{name}: strides {actual.stride()}"
        if channels_last is not None:
            fits = last if channels_last else actual.is_contiguous()
            assert fits, f"{name}: strides {actual.stride()}, channels_last: {channels_last}"


def format_of(*operands: Tensor) -> bool | None:
    """Is one channels_last? None where sizes or strides leave it open."""
    if any(t.dim() != 4 or min(t.shape) < 2 for t in operands):
        return None
    last = [t.is_contiguous(memory_format=torch.channels_last) for t in operands]
    plain = [t.is_contiguous() for t in operands]
    return any(last) if all(a or b for a, b in zip(last, plain, strict=True)) else None


@dataclass(frozen=True)
class _Layer(Common):
    """A layer with parameters: p = layer(input, weight, bias), and perhaps g(p)."""

    bias: bool = False
    activation: str | None = None
    wanted: str = "iwb"  # gradients: by the input, the weight, the bias
    near = 0.0

    def compare(
        self,
        ours: Callable[..., Tensor],
        theirs: Callable[..., Tensor],
        tensors: Sequence[Tensor | None],
        delta: Tensor,
        terms: int,
        format: bool | None,
    ) -> None:
        names = [
            n for n, t in zip("iwb", tensors, strict=True) if n in self.wanted and t is not None
        ]
        leaves = [
            t if t is None else t.detach().requires_grad_(n in names)
            for n, t in zip("iwb", tensors, strict=True)
        ]
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        with poisoned(self.algorithm):
            output = ours(*leaves)
            grads = torch.autograd.grad(output, wanted, delta) if wanted else ()
        actual = dict(zip(["output", *names], [output.detach(), *grads], strict=True))
        for name, result in actual.items():
            dense(name, result, format)

        exact, bound = round_off(
            theirs,
            ACTIVATIONS.get(self.activation or ""),
            [None if t is None else plainly(t) for t in tensors],
            plainly(delta),
            Bounds.of(self.torch_dtype, terms, isinstance(self, Linear), near=self.near),
            names,
        )
        for name, result in actual.items():
            if self.values == "integers" and self.activation in EXACT and not self.near:
                assert_same(result, exact[name].to(self.torch_dtype))
            else:
                within(name, result, exact[name], bound[name], self.torch_dtype)


@dataclass(frozen=True)
class Conv2d(_Layer, Case):
    """A convolution, in the fields of Case."""

    name: str = "conv2d"
    unbatched: bool = False
    input_memory: str = "nchw"
    weight_memory: str = "nchw"
    delta_memory: str = "nchw"

    @property
    def near(self) -> float:  # type: ignore[override]
        may_be = self.algorithm in ("auto", "winograd") and self.torch_dtype != torch.float64
        return NEAR if may_be and self.has_winograd else 0.0

    def theirs(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        top, bottom, left, right = self.padding
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def ours(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.symmetric:
            return bp.functional.conv2d(
                input, weight, bias, self.stride, (self.padding[0], self.padding[2]),
                self.dilation, self.groups, activation=self.activation,
            )  # fmt: skip
        if self.activation is None:
            return conv2d_ops.conv2d(input, weight, bias, *self.geometry)
        g = bp.activations.parse("conv2d", self.activation)
        return conv2d_ops.conv2d_activation(input, weight, bias, *self.geometry, *g)

    def check(self) -> bool:
        input = self.numbers(self.input_size, self.input_memory, 1)
        weight = self.numbers(self.weight_size, self.weight_memory, 2)
        bias = self.numbers((self.out_channels,), "w", 3) if self.bias else None
        if self.unbatched and self.batch == 1 and self.symmetric:
            input = input[0]
        if min(self.output_size[2:]) < 1:
            assert self.refused(
                lambda: self.ours(input, weight, bias), lambda: self.theirs(input, weight, bias)
            ), "torch computes an output without pixels"
            return False
        delta = self.numbers(self.output_size, self.delta_memory, 4)
        if input.dim() == 3:
            delta = delta[0]
        operators = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad")
        terms = max(self.reduction(operator) for operator in operators)
        self.compare(
            self.ours, self.theirs, (input, weight, bias), delta, terms, format_of(input, weight)
        )
        return True


@dataclass(frozen=True)
class Linear(_Layer):
    rows: tuple[int, ...] = (2,)
    in_features: int = 3
    out_features: int = 4
    input_memory: str = "hw"
    weight_memory: str = "hw"
    delta_memory: str = "hw"

    def check(self) -> bool:
        input = self.numbers((*self.rows, self.in_features), self.input_memory, 1)
        weight = self.numbers((self.out_features, self.in_features), self.weight_memory, 2)
        bias = self.numbers((self.out_features,), "w", 3) if self.bias else None
        delta = self.numbers((*self.rows, self.out_features), self.delta_memory, 4)
        rows = delta.numel() // max(1, self.out_features)
        self.compare(
            lambda *t: bp.functional.linear(*t, activation=self.activation),
            F.linear,
            (input, weight, bias),
            delta,
            max(rows, self.in_features, self.out_features),
            None,
        )
        return True


@dataclass(frozen=True)
class _Pool(Common):
    batch: int = 2
    channels: int = 3
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    unbatched: bool = False
    wanted: bool = True
    input_memory: str = "nchw"
    delta_memory: str = "nchw"

    def tensor(self, pixels: Sequence[int], memory: str, which: int, special: str = "") -> Tensor:
        size = (self.batch, self.channels, *pixels)
        tensor = self.numbers(size, memory, which, special)
        return tensor[0] if self.unbatched and self.batch == 1 else tensor

    def results(self, pool: Callable[..., Any], input: Tensor, delta: Tensor) -> list[Tensor]:
        """What a pool returns, and the gradient for delta."""
        a = input.detach().requires_grad_(self.wanted)
        output = pool(a)
        results = list(output) if isinstance(output, tuple) else [output]
        if self.wanted:
            results += torch.autograd.grad(results[0], a, delta)
        return [result.detach() for result in results]


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    dilation: tuple[int, int] = (1, 1)
    special: str = ""  # "nan", "-inf" or "inf": what some of the numbers are instead

    def check(self) -> bool:
        arguments = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, True)

        def ours(a: Tensor) -> Any:
            return bp.functional.max_pool2d(a, *arguments)

        def theirs(a: Tensor) -> Any:
            return F.max_pool2d(a, *arguments)

        input = self.tensor(self.size, self.input_memory, 1, self.special)
        if self.refused(lambda: ours(input), lambda: theirs(plainly(input))):
            return False
        outside = theirs(torch.zeros(input.shape))[0].isinf()
        delta = self.tensor(outside.shape[-2:], self.delta_memory, 2)
        with poisoned(self.algorithm):
            actual = self.results(ours, input, delta)
        dense("output", actual[0], format_of(input))
        a, d = plainly(input), plainly(delta)
        if outside.any():
            # A dilation can step over all of a small input. torch's gradient then writes beyond
            # its memory: of that, our loops are all there is to compare with.
            with poisoned("plain"):
                exact, size = (self.results(ours, a, x) for x in (d, d.abs()))
            exact[:2] = theirs(a)
            exact[1] = torch.where(outside, -1, exact[1])
        else:
            exact, size = (self.results(theirs, a, x) for x in (d, d.abs()))
        assert_same(actual[0], exact[0].to(self.torch_dtype))
        assert_same(actual[1], exact[1])
        if self.wanted and self.values == "integers":
            assert_same(actual[2], exact[2].to(self.torch_dtype))
        elif self.wanted:
            bounds = Bounds.of(self.torch_dtype, self.kernel[0] * self.kernel[1])
            within("i", actual[2], exact[2], bounds.sum(size[2], exact[2]), self.torch_dtype)
        return True


@dataclass(frozen=True)
class AvgPool2d(_Pool):
    count_include_pad: bool = True
    divisor_override: int | None = None

    def check(self) -> bool:
        arguments = (self.kernel, self.stride, self.padding, self.ceil_mode,
                     self.count_include_pad)  # fmt: skip

        def ours(a: Tensor) -> Tensor:
            return bp.functional.avg_pool2d(a, *arguments, self.divisor_override)

        def theirs(a: Tensor) -> Tensor:
            return F.avg_pool2d(a, *arguments, self.divisor_override)

        def magnitude(a: Tensor) -> Tensor:
            divisor = self.divisor_override
            return F.avg_pool2d(a, *arguments, None if divisor is None else abs(divisor))

        input = self.tensor(self.size, self.input_memory, 1)
        if self.refused(lambda: ours(input), lambda: theirs(plainly(input))):
            return False
        delta = self.tensor(theirs(plainly(input)).shape[-2:], self.delta_memory, 2)
        with poisoned(self.algorithm):
            actual = self.results(ours, input, delta)
        dense("output", actual[0], format_of(input))
        a, d = plainly(input), plainly(delta)
        exact = self.results(theirs, a, d)
        size = self.results(magnitude, a.abs(), d.abs())
        bounds = Bounds.of(self.torch_dtype, self.kernel[0] * self.kernel[1] + 1)
        for name, result, b, s in zip(("output", "i"), actual, exact, size, strict=False):
            if self.values == "integers" and self.divisor_override in (1, -2, 4):
                assert_same(result, b.to(self.torch_dtype))
            else:
                within(name, result, b, bounds.sum(s, b), self.torch_dtype)
        return True


KINDS: dict[str, type[Common]] = {
    "conv2d": Conv2d,
    "linear": Linear,
    "max_pool2d": MaxPool2d,
    "avg_pool2d": AvgPool2d,
}
KIND = {kind: name for name, kind in KINDS.items()}


def parse(line: str) -> Common:
    said = json.loads(line)
    kind = KINDS[said.pop("kind")]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items()})
