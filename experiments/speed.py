"""Times the kernels against torch's own: ``python -m experiments.speed [TABLE ...]``.

The tables: ``operators``, the convolution and its two gradients, torch's through
aten.convolution_backward with only the one gradient asked for; ``activations``, a layer that ends
with one; ``pooling``. All sides run in one process, in turn, on the same tensors, so that whatever
else the machine does falls on all. Prints Markdown tables of medians in milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_convbp as bp
from experiments.machine import processor
from experiments.options import whole


class Shape(NamedTuple):
    batch: int
    channels: int
    pixels: int
    filters: int
    kernel: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        extra = f" stride {self.stride}" if self.stride > 1 else ""
        extra += f" groups {self.groups}" if self.groups > 1 else ""
        return (
            f"{self.batch}x{self.channels}x{self.pixels}², "
            f"{self.filters} filters {self.kernel}x{self.kernel}{extra}"
        )


SHAPES = [
    Shape(64, 64, 32, 64, 3),
    Shape(64, 3, 32, 64, 3),
    Shape(64, 64, 32, 128, 3, stride=2),
    Shape(64, 128, 16, 128, 3),
    Shape(64, 256, 8, 256, 3),
    Shape(64, 512, 4, 512, 3),
    Shape(64, 64, 32, 64, 1),
    Shape(16, 64, 56, 64, 3),
    Shape(8, 3, 224, 64, 7, stride=2),
    Shape(64, 16, 32, 16, 3),
    Shape(1, 64, 56, 64, 3),
    Shape(64, 96, 32, 96, 3, groups=96),
]


def medians(functions: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Median seconds of each function, all run in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(2):
        for function in functions:
            function()
    for _ in range(runs):
        for taken, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def operators(shape: Shape, memory_format: torch.memory_format) -> list[Callable[[], Tensor]]:
    """torch's and our forward, input gradient and weight gradient: six functions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).contiguous(memory_format=memory_format)

    input = normal(shape.batch, shape.channels, shape.pixels, shape.pixels)
    weight = normal(shape.filters, shape.channels // shape.groups, shape.kernel, shape.kernel)
    geometry = (shape.stride, shape.kernel // 2, 1, shape.groups)
    stride, padding = [shape.stride] * 2, [shape.kernel // 2] * 2
    delta = torch.randn_like(torch.nn.functional.conv2d(input, weight, None, *geometry))

    def backward(*mask: bool) -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward(
            delta, input, weight, None, stride, padding, [1, 1], False, [0, 0], shape.groups, mask
        )

    functional = bp.functional
    return [
        lambda: torch.nn.functional.conv2d(input, weight, None, *geometry),
        lambda: functional.conv2d(input, weight, None, *geometry),
        lambda: backward(True, False, False)[0],
        lambda: functional.conv2d_input_grad(input.shape, weight, delta, *geometry),
        lambda: backward(False, True, False)[1],
        lambda: functional.conv2d_weight_grad(input, weight.shape, delta, *geometry),
    ]


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@torch.no_grad()
def operators_table(runs: int) -> None:
    """Each cell: torch / torch_convbp = ratio; above 1, torch_convbp is the faster one."""
    print("| shape | layout | forward | input gradient | weight gradient |")
    print("|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {}
    for shape in SHAPES:
        for layout, memory_format in LAYOUTS.items():
            taken = [1e3 * t for t in medians(list(operators(shape, memory_format)), runs)]
            cells = []
            for theirs, ours in zip(taken[::2], taken[1::2], strict=True):
                ratios.setdefault(layout, []).append(theirs / ours)
                cells.append(f"{theirs:.1f} / {ours:.1f} = {theirs / ours:.2f}")
            print(f"| {shape} | {layout} | {' | '.join(cells)} |", flush=True)
    print()
    for name, values in ratios.items():
        mean = math.exp(statistics.fmean(math.log(v) for v in values))
        print(f"geometric mean, {name}: {mean:.2f}")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


def activations_table(runs: int) -> None:
    """Each cell: torch's convolution and activation / ours apart / ours in one layer."""
    shape = SHAPES[0]
    print(f"{shape} with bias: torch / torch_convbp, apart / torch_convbp, in the layer\n")
    print("| activation | layout | forward | forward and backward |")
    print("|---|---|---|---|")
    for layout, memory_format in LAYOUTS.items():
        for name, g in ACTIVATIONS.items():
            cells = []
            for function in (torch.no_grad()(layer_forward), layer_training):
                layers = layer_variants(shape, memory_format, name, g)
                runs_of = [functools.partial(function, layer) for layer in layers]
                cells.append(" / ".join(f"{1e3 * t:.1f}" for t in medians(runs_of, runs)))
            print(f"| {name} | {layout} | {' | '.join(cells)} |", flush=True)


class Layer(NamedTuple):
    function: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]
    input: Tensor
    delta: Tensor


def layer_variants(
    shape: Shape, memory_format: torch.memory_format, name: str, g: Callable[[Tensor], Tensor]
) -> list[Layer]:
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.channels, shape.pixels, shape.pixels)
    input, delta = (
        torch.randn(size, generator=generator).contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    torch.manual_seed(0)
    layer = nn.Conv2d(shape.channels, shape.filters, shape.kernel, padding=shape.kernel // 2)
    layer = layer.to(memory_format=memory_format)
    weight, bias = layer.parameters()
    conv2d = functools.partial(bp.functional.conv2d, padding=shape.kernel // 2)
    input.requires_grad_()
    return [
        Layer(function, [weight, bias], input, delta)
        for function in (
            lambda a: g(layer(a)),
            lambda a: g(conv2d(a, weight, bias)),
            lambda a: conv2d(a, weight, bias, activation=name),
        )
    ]


def layer_forward(layer: Layer) -> Tensor:
    return layer.function(layer.input)


def layer_training(layer: Layer) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer_forward(layer), [layer.input, *layer.parameters], layer.delta)


POOLINGS = [((64, 64, 32, 32), (2, 2, 0)), ((64, 64, 56, 56), (3, 2, 1))]


def pooling_table(runs: int) -> None:
    """Each cell: torch / torch_convbp = ratio; above 1, torch_convbp is the faster one."""
    print("| pooling | input | layout | forward | backward |")
    print("|---|---|---|---|---|")
    for size, (kernel, stride, padding) in POOLINGS:
        for layout, memory_format in LAYOUTS.items():
            for name in ("max_pool2d", "avg_pool2d"):
                input = torch.randn(size).contiguous(memory_format=memory_format)
                input.requires_grad_()
                sides = [
                    functools.partial(getattr(of, name), input, kernel, stride, padding)
                    for of in (F, bp.functional)
                ]
                cells = []
                for functions in (
                    [torch.no_grad()(side) for side in sides],
                    [pooling_backward(side(), input) for side in sides],
                ):
                    theirs, ours = (1e3 * t for t in medians(functions, runs))
                    cells.append(f"{theirs:.1f} / {ours:.1f} = {theirs / ours:.2f}")
                title = f"{name} {kernel}x{kernel} stride {stride} padding {padding}"
                shape = "x".join(map(str, size))
                print(f"| {title} | {shape} | {layout} | {' | '.join(cells)} |", flush=True)


def pooling_backward(output: Tensor, input: Tensor) -> Callable[[], object]:
    delta = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, input, delta, retain_graph=True)


TABLES = {
    "operators": operators_table,
    "activations": activations_table,
    "pooling": pooling_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)"
    )
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    parser.add_argument("--runs", type=whole(1), default=15, help="timed runs of each (default 15)")
    options = parser.parse_args()
    for name in options.tables:
        if name not in TABLES:
            parser.error(f"no table {name!r}: choose from {', '.join(TABLES)}")
    torch.set_num_threads(options.threads)

    print(
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, "
        f"torch_convbp {bp.__version__} ({bp.backends.cpu.capability()}), float32, "
        f"medians of {options.runs} runs in ms\n"
    )
    for name in options.tables or TABLES:
        TABLES[name](options.runs)
        print()


if __name__ == "__main__":
    main()
