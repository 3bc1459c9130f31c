"""The operators as ATen ones, for compilers and file formats that do not know ours.

Arguments are those of csrc/torch/schema.cpp. Results have the operators' memory formats; numbers
differ by rounding, and each sum of float16 or bfloat16 runs in float32 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_convbp import activations
from torch_convbp.ops import checks
from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops import conv2d_backward as backward_ops
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops import linear as linear_ops
from torch_convbp.ops import pool2d as pool2d_ops
from torch_convbp.ops.memory_format import format_of, result_format
from torch_convbp.ops.registration import Ints

__all__ = ["decompositions"]

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How each operator ``torch.ops.torch_convbp.*`` is written with torch's own.

        program = torch.export.export(model, (input,)).run_decompositions(bp.decompositions())

    leaves a program that needs no torch_convbp: for torch.onnx.export, say, or another backend.
    For core ATen, ``update`` the table torch.export.default_decompositions() with this table.
    torch.compile's backends take such a table at construction (aot_autograd's argument
    ``decompositions``).

    In float16 and bfloat16 a convolution with its activation differs by more than the last place:
    here g and g' get a rounded p, in our kernels the sum itself.

    Returns:
        A new dictionary, from operator to function.
    """
    return dict(_TABLE)


# --- convolution ----------------------------------------------------------------------------


def _symmetric(padding: Ints) -> bool:
    top, bottom, left, right = padding
    return top == bottom and left == right


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    format = result_format(input, weight)
    if input.shape[1] == 0:  # ATen would give no channels
        size = checks.conv2d_output_size(
            input.shape,
            weight.shape,
            stride,
            padding,
            dilation,
            groups,
            input.element_size(),  # type: ignore[call-arg]
        )
        zeros = input.new_zeros(size).contiguous(memory_format=format)
        return zeros if bias is None else zeros + bias[:, None, None]
    top, bottom, left, right = padding
    if not _symmetric(padding):
        input = F.pad(input, [left, right, top, bottom])
        top = left = 0
    output = aten.conv2d(input, weight, bias, stride, [top, left], dilation, groups)
    return output.contiguous(memory_format=format)


def _conv2d_gradients(
    input: Tensor, weight: Tensor, delta: Tensor, geometry: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight, each only if wanted."""
    stride, (top, _, left, _), dilation, groups = geometry
    grads = aten.convolution_backward(
        delta, input, weight, None, stride, [top, left], dilation, False, [0, 0], groups,
        [*wanted, False],
    )  # fmt: skip
    return grads[0], grads[1]


def conv2d_input_grad(
    input_size: Ints,
    weight: Tensor,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    stride, padding, *rest = geometry
    top, bottom, left, right = padding
    batch, channels, height, width = input_size
    if not _symmetric(padding):
        size = [batch, channels, height + top + bottom, width + left + right]
        grad = conv2d_input_grad(size, weight, delta, stride, [0] * 4, *rest)
        grad = grad[:, :, top : top + height, left : left + width]
    else:
        empty = delta.new_empty(input_size)
        grad = _conv2d_gradients(empty, weight, delta, geometry, (True, False))[0]
    format = result_format(weight, delta, memory_format)
    return grad.contiguous(memory_format=format)


def conv2d_weight_grad(
    input: Tensor,
    weight_size: Ints,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    format = result_format(input, delta, memory_format)
    stride, padding, *rest = geometry
    if not _symmetric(padding):
        top, bottom, left, right = padding
        input = F.pad(input, [left, right, top, bottom])
        geometry = (stride, [0] * 4, *rest)
    empty = delta.new_empty(weight_size)
    grad = _conv2d_gradients(input, empty, delta, geometry, (False, True))[1]
    return grad.contiguous(memory_format=format)


def conv2d_weight_bias_grad(
    input: Tensor, weight_size: Ints, delta: Tensor, *geometry: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    weight_grad = conv2d_weight_grad(input, weight_size, delta, *geometry, **options)
    return weight_grad, delta.sum((0, 2, 3))


# --- activations and the dense layer --------------------------------------------------------


def activation(input: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    return activations.TABLE[name].g(input, *parameters)


def conv2d_activation_pair(*arguments: Any) -> tuple[Tensor, Tensor]:
    *of_conv2d, name, parameters = arguments
    p = conv2d(*of_conv2d)
    return activation(p, name, parameters), p


def conv2d_activation(*arguments: Any) -> Tensor:
    return conv2d_activation_pair(*arguments)[0]


def error_signal(grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    delta = activations.error_signal(grad, saved, name, parameters)
    return delta.contiguous(memory_format=format_of(saved))


def error_signal_bias_grad(
    grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]
) -> tuple[Tensor, Tensor]:
    delta = error_signal(grad, saved, name, parameters)
    return delta, activations.bias_grad(delta)


def conv2d_backward(
    grad: Tensor,
    saved: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: Ints,
    weight_size: Ints,
    *rest: Any,
    **format: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *geometry, name, parameters, needs_bias_grad = rest
    delta = grad if saved is None else error_signal(grad, saved, name, parameters)
    return (
        None
        if weight is None
        else conv2d_input_grad(input_size, weight, delta, *geometry, **format),
        None
        if input is None
        else conv2d_weight_grad(input, weight_size, delta, *geometry, **format),
        activations.bias_grad(delta) if needs_bias_grad else None,
    )


# --- pooling --------------------------------------------------------------------------------


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    geometry = kernel_size, stride, padding, dilation, ceil_mode
    # Two calls: where nobody needs the offsets, the first alone is left in a traced program.
    output = aten.max_pool2d(input, *geometry)
    index = aten.max_pool2d_with_indices(input, *geometry)[1]
    height, width = input.shape[2:]
    row = index // width
    column = index - row * width  # not %, which ONNX lacks where width is symbolic
    # Tap of the window (m, n) at the position (i, j); none where all are outside.
    taps, inside = [], []
    for axis, (size, position) in enumerate(((height, row), (width, column))):
        count, step, spread = kernel_size[axis], stride[axis], dilation[axis]
        window = torch.arange(output.shape[2 + axis], device=input.device)
        first = (window * step - padding[axis])[(slice(None), None)[: 2 - axis]]
        taps.append((position - first) // spread)
        # Position of the window's first tap that is inside or after the input.
        start = torch.where(first < 0, first + (spread - 1 - first) // spread * spread, first)
        inside.append((start < size) & (start < first + count * spread))
    dtype = checks.offset_dtype(kernel_size)
    nowhere = torch.iinfo(dtype).max if dtype == torch.uint8 else -1
    offset = torch.where(inside[0] & inside[1], taps[0] * kernel_size[1] + taps[1], nowhere)
    format = format_of(input)
    return (
        output.contiguous(memory_format=format),
        offset.to(dtype).contiguous(memory_format=format),
    )


def max_pool2d_input_grad(
    input_size: Ints,
    delta: Tensor,
    offset: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    batch, channels, height, width = input_size
    index = pool2d_ops.indices(offset, input_size, *geometry[:4]).flatten(2)
    # Sums run in float32 at least, as in the kernels.
    wide = torch.promote_types(delta.dtype, torch.float32)
    shares = torch.where(index < 0, 0, delta.flatten(2).to(wide))
    grad = shares.new_zeros([batch, channels, height * width])
    grad = grad.scatter_add(2, index.clamp(min=0), shares)
    format = result_format(delta, delta, memory_format)
    return grad.to(delta.dtype).reshape(input_size).contiguous(memory_format=format)


def max_pool2d_gather(input: Tensor, offset: Tensor, *geometry: Any) -> Tensor:
    index = pool2d_ops.indices(offset, input.shape, *geometry[:4]).flatten(2)
    values = torch.where(index < 0, 0, input.flatten(2).gather(2, index.clamp(min=0)))
    return values.reshape(offset.shape).contiguous(memory_format=format_of(input))


def avg_pool2d(input: Tensor, *geometry: Any) -> Tensor:
    return aten.avg_pool2d(input, *geometry).contiguous(memory_format=format_of(input))


def avg_pool2d_input_grad(
    input_size: Ints,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    grad = aten.avg_pool2d_backward(delta, delta.new_empty(input_size), *geometry)
    format = result_format(delta, delta, memory_format)
    return grad.contiguous(memory_format=format)


_TABLE: dict[Any, Callable[..., Any]] = {
    conv2d_ops.conv2d: conv2d,
    conv2d_ops.conv2d_activation: conv2d_activation,
    conv2d_ops.conv2d_activation_pair: conv2d_activation_pair,
    conv2d_ops.conv2d_input_grad: conv2d_input_grad,
    conv2d_ops.conv2d_weight_grad: conv2d_weight_grad,
    conv2d_ops.conv2d_weight_bias_grad: conv2d_weight_bias_grad,
    backward_ops.conv2d_backward: conv2d_backward,
    elementwise_ops.activation: activation,
    elementwise_ops.error_signal: error_signal,
    elementwise_ops.error_signal_bias_grad: error_signal_bias_grad,
    linear_ops.linear: F.linear,
    pool2d_ops.max_pool2d: max_pool2d,
    pool2d_ops.max_pool2d_input_grad: max_pool2d_input_grad,
    pool2d_ops.max_pool2d_gather: max_pool2d_gather,
    pool2d_ops.avg_pool2d: avg_pool2d,
    pool2d_ops.avg_pool2d_input_grad: avg_pool2d_input_grad,
}
