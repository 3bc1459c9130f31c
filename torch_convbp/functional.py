"""The functions users call: conv2d and its two gradients, the dense layer, pooling.

Arguments are those of conv2d, linear, max_pool2d and avg_pool2d in torch.nn.functional, and of
conv2d_input and conv2d_weight in torch.nn.grad. All are differentiable to any order.

In shapes N is the batch; an output map is M x N' (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_convbp.ops.dynamo_rules  # noqa: F401  (for torch.compile)
from torch_convbp import activations
from torch_convbp.activations import ActivationLike
from torch_convbp.autograd.conv2d import plain_conv2d
from torch_convbp.autograd.linear import plain_linear
from torch_convbp.autograd.pool2d import plain_avg_pool2d, plain_max_pool2d
from torch_convbp.ops import checks
from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops import linear as linear_ops
from torch_convbp.ops import pool2d as pool2d_ops
from torch_convbp.ops.memory_format import format_of, result_format
from torch_convbp.ops.subclasses import torch_function_for_subclasses
from torch_convbp.ops.torch_private import is_plain_call

__all__ = [
    "avg_pool2d",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "linear",
    "max_pool2d",
]

IntOrPair: TypeAlias = int | Sequence[int]


# Functions are nodes of a torch.fx graph: a Proxy has no sizes to check.
for _name in __all__:
    torch.fx.wrap(_name)


def _activated(output: Tensor, g: activations.Activation | None) -> Tensor:
    if g is None:
        return output
    if output.is_complex():  # torch's g, which raises where it has none
        return activations.TABLE[g.name].g(output, *g.parameters)
    return elementwise_ops.activation(output, *g)


def _complex_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any]
) -> Tensor:
    """conv2d of complex numbers by one of real numbers; torch's autograd does the rest.

    (a + bi)(c + di) = (ac - bd) + (ad + bc)i: each channel becomes two channels, real and imaginary
    part. Each filter becomes two filters, one for each part of the output.
    """
    checks.check_alike("conv2d", input=input, weight=weight, bias=bias)
    checks.conv2d_output_size(
        input.shape,
        weight.shape,
        *geometry,
        input.element_size(),  # type: ignore[call-arg]
    )
    if bias is not None:
        checks.check_bias(bias.shape, weight.shape)
        bias = torch.stack([bias.real, bias.imag], 1).flatten()
    # stack, not view_as_real, which torch cannot differentiate for empty tensors.
    channels = torch.stack([input.real, input.imag], 2).flatten(1, 2)
    channels = channels.contiguous(memory_format=format_of(input))
    c, d = weight.real, weight.imag
    filters = torch.stack([torch.stack([c, -d], 2), torch.stack([d, c], 2)], 1)
    filters = filters.flatten(2, 3).flatten(0, 1)
    filters = filters.contiguous(memory_format=result_format(weight, weight))
    # Autocast leaves complex numbers alone, so it must not cast their parts.
    with torch.autocast("cuda" if input.is_cuda else "cpu", enabled=False):
        output = conv2d_ops.conv2d(channels, filters, bias, *geometry)
    # view_as_complex, not torch.complex, which saves both parts for backward.
    result = torch.view_as_complex(torch.stack([output[:, 0::2], output[:, 1::2]], -1))
    return result.contiguous(memory_format=format_of(output))


@torch_function_for_subclasses(F.conv2d)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    activation: ActivationLike = None,
) -> Tensor:
    """Two-dimensional cross-correlation with a filter bank (L1) plus bias, and activation (L2).

        output[b, o, m, n] = bias[o] + sum over k, r, s of
            input[b, k, m * stride - padding + r * dilation, n * stride - padding + s * dilation]
            * weight[o, k, r, s]

    where k runs over the input channels of o's group; positions outside the input are zero.
    With an activation the result is g(output). Same result as
    ``torch.nn.functional.conv2d`` followed by the activation, in one pass over the output.

    Args:
        input: [N, K, H, W], or [K, H, W] without a batch; float32, float64, bfloat16 or float16
            (the last two are summed in float32), or complex; any strides.
        weight: [O, K / groups, R, S], of input's dtype: the lecture's filter, flipped.
        bias: [O], of input's dtype, or None: the lecture's -sum_k b_ok.
        stride: int or (height, width), at least 1.
        padding: int or (height, width), at least 0, on both sides; "valid" for none; "same" for
            an output of input's size (with stride 1; an odd total pads one more at the end).
        dilation: int or (height, width), at least 1.
        groups: divides K and O.
        activation: a name as in torch.nn.functional ("relu", "leaky_relu(0.2)", "relu6",
            "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardswish", "softplus(1, 20)",
            "hardsigmoid", "mish", "elu(1)"), the torch.nn module, or None. Saved for backward
            is at most what nn.Conv2d and the activation save: the output where g' follows from
            it, else the pre-activation. Complex numbers: sigmoid, tanh, and silu without a
            derivative, as in torch.

    Returns:
        [N, O, M, N'] or [O, M, N'], channels_last if input or weight is.

    Raises:
        TypeError: an argument is of another type (a numpy array, a float stride).
        ValueError: activation is unknown, or a number has more than 64 bits.
        RuntimeError: sizes, dtypes or devices do not fit together, or a value is out of range.
        NotImplementedError: a CUDA tensor where the CUDA kernels are not built.
    """
    checks.check_is_tensor("conv2d", input=input, weight=weight)
    if bias is not None:
        checks.check_is_tensor("conv2d", bias=bias)
    checks.check_dim("conv2d", "input", input.shape)
    checks.check_weight_dim(weight.shape)
    geometry = checks.geometry("conv2d", weight.shape, stride, padding, dilation, groups)
    g = activations.parse("conv2d", activation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    if input.is_complex():
        output = _activated(_complex_conv2d(batched, weight, bias, geometry), g)
    elif is_plain_call(batched, weight, bias):
        output = plain_conv2d(batched, weight, bias, geometry, g)
    elif g is None:
        output = conv2d_ops.conv2d(batched, weight, bias, *geometry)
    else:
        output = conv2d_ops.conv2d_activation(batched, weight, bias, *geometry, *g)
    return output if input.dim() == 4 else output.squeeze(0)


@torch_function_for_subclasses(F.linear)
def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: ActivationLike = None,
) -> Tensor:
    """The dense layer: a' = g(W a + bias) (L7; bias = -b). The matrix product is torch's.

    Same result as ``torch.nn.functional.linear`` followed by the activation.

    Args:
        input: [..., J]: a, of any dtype that torch's linear takes; with an activation float32,
            float64, bfloat16 or float16.
        weight: [I, J]: W, of input's dtype; or [J], for an output without the last dimension.
        bias: [I] (for a weight [J] a single number, []), of input's dtype, or None.
        activation: as ``conv2d``'s.

    Returns:
        [..., I], or [...] for a weight [J].

    Raises:
        TypeError: an argument is of another type.
        ValueError: activation is unknown, has a wrong number of parameters, or one is no number.
        RuntimeError: sizes, dtypes or devices do not fit together (torch's message); a tensor is
            not dense; with an activation, another dtype.
        NotImplementedError: an activation on CUDA where the CUDA kernels are not built.
    """
    checks.check_is_tensor("linear", input=input, weight=weight)
    if bias is not None:
        checks.check_is_tensor("linear", bias=bias)
    checks.check_linear_dim(input.shape, weight.shape)
    g = activations.parse("linear", activation)
    if weight.dim() == 1:
        output = linear_ops.linear(input, weight.unsqueeze(0), bias).squeeze(-1)
    elif is_plain_call(input, weight, bias):
        output = plain_linear(input, weight, bias)
    else:
        output = linear_ops.linear(input, weight, bias)
    return _activated(output, g)


def conv2d_input_grad(
    input_size: Sequence[int],
    weight: Tensor,
    delta: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of the loss by conv2d's input (L6): the full convolution of delta with the filter.

        input_grad[b, k, i, j] = sum over o, and over those m, n, r, s that meet at (i, j), of
            delta[b, o, m, n] * weight[o, k, r, s]

    Same result as ``torch.nn.grad.conv2d_input``; a transposed convolution.

    Args:
        input_size: [N, K, H, W] or [K, H, W], the size of conv2d's input.
        weight: [O, K / groups, R, S], float32, float64, bfloat16 or float16: no complex numbers.
        delta: the error signal dL/dp, of the size and dtype of conv2d's output.
        stride, padding, dilation, groups: as given to ``conv2d``.

    Returns:
        A tensor of input_size, channels_last if weight or delta is.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as ``conv2d``.
    """
    name = "conv2d_input_grad"
    checks.check_is_tensor(name, weight=weight, delta=delta)
    input_size = checks.check_size(name, "input_size", input_size)
    checks.check_dim(name, "input_size", input_size)
    checks.check_same_dim(name, "input_size", input_size, "delta", delta.shape)
    checks.check_weight_dim(weight.shape)
    geometry = checks.geometry(name, weight.shape, stride, padding, dilation, groups)
    if len(input_size) == 3:
        return conv2d_ops.conv2d_input_grad(
            [1, *input_size], weight, delta.unsqueeze(0), *geometry
        ).squeeze(0)
    return conv2d_ops.conv2d_input_grad(input_size, weight, delta, *geometry)


def conv2d_weight_grad(
    input: Tensor,
    weight_size: Sequence[int],
    delta: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of the loss by conv2d's weight (L4): the valid convolution of input with delta.

        weight_grad[o, k, r, s] = sum over b, m, n of delta[b, o, m, n]
            * input[b, k, m * stride - padding + r * dilation, n * stride - padding + s * dilation]

    Same result as ``torch.nn.grad.conv2d_weight``. The bias gradient (L5) is
    ``delta.sum((0, 2, 3))``.

    Args:
        input: [N, K, H, W] or [K, H, W], conv2d's input, float32, float64, bfloat16 or float16:
            no complex numbers.
        weight_size: [O, K / groups, R, S], the size of conv2d's weight.
        delta: the error signal dL/dp, of the size and dtype of conv2d's output.
        stride, padding, dilation, groups: as given to ``conv2d``.

    Returns:
        A tensor of weight_size, channels_last if input or delta is.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as ``conv2d``.
    """
    name = "conv2d_weight_grad"
    checks.check_is_tensor(name, input=input, delta=delta)
    checks.check_dim(name, "input", input.shape)
    checks.check_same_dim(name, "input", input.shape, "delta", delta.shape)
    weight_size = checks.check_size(name, "weight_size", weight_size)
    checks.check_weight_dim(weight_size)
    geometry = checks.geometry(name, weight_size, stride, padding, dilation, groups)
    if input.dim() == 3:
        input, delta = input.unsqueeze(0), delta.unsqueeze(0)
    return conv2d_ops.conv2d_weight_grad(input, weight_size, delta, *geometry)


def _windows(function: str, kernel_size: IntOrPair, stride: Any, padding: IntOrPair) -> list[Any]:
    """kernel_size, stride and padding as pairs; a pool's stride is its kernel_size by default."""
    kernel = checks.pair(function, "kernel_size", kernel_size, checks.POOLING_PAIR)
    # An empty list counts as "not given" too, as in torch.
    given = stride is not None and not (checks.is_sequence(stride) and len(stride) == 0)
    step = checks.pair(function, "stride", stride, checks.POOLING_PAIR) if given else kernel
    return [kernel, step, checks.pair(function, "padding", padding, checks.POOLING_PAIR)]


@torch_function_for_subclasses(F.max_pool2d)
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest input of each window (L8). Backward sends the window's delta to that input.

    Same result as ``torch.nn.functional.max_pool2d``: the first of equal inputs wins, NaN wins
    over all. Saved for backward is one byte per output, if windows have at most 255 positions.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16; any strides.
            Other dtypes go to torch's function, which may refuse; they have no gradient here.
        kernel_size: int or (height, width), at least 1.
        stride: int or (height, width), at least 1; kernel_size by default.
        padding: int or (height, width), at most half the kernel_size; padding never wins.
        dilation: int or (height, width), at least 1.
        ceil_mode: also windows that end outside, if they start inside.
        return_indices: also return the index of each output's input.

    Returns:
        [N, C, M, N'] or [C, M, N'], in input's memory format; with return_indices also a tensor
        of int64 of that size, i * W + j of the input that won.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a number has more than 64 bits.
        RuntimeError: a value is out of range; the message names it.
        NotImplementedError: a CUDA tensor where the CUDA kernels are not built; a dtype that torch
            does not pool either.
    """
    checks.check_is_tensor("max_pool2d", input=input)
    checks.check_pool_dim("max_pool2d", input.shape)
    windows = _windows("max_pool2d", kernel_size, stride, padding)
    dilation = checks.pair("max_pool2d", "dilation", dilation, checks.POOLING_PAIR)
    ceil_mode = checks.check_bool("max_pool2d", "ceil_mode", ceil_mode)
    return_indices = checks.check_bool("max_pool2d", "return_indices", return_indices)
    if input.dtype not in checks.DTYPES:
        torchs: Any = F.max_pool2d
        return torchs(input, *windows, dilation, ceil_mode, return_indices)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    pool = plain_max_pool2d if is_plain_call(batched) else pool2d_ops.max_pool2d
    output, offset = pool(batched, *windows, dilation, ceil_mode)
    results = [output]
    if return_indices:
        kernel, step, pad = windows
        results.append(pool2d_ops.indices(offset, batched.shape, kernel, step, pad, dilation))
    if input.dim() == 3:
        results = [result.squeeze(0) for result in results]
    return (results[0], results[1]) if return_indices else results[0]


@torch_function_for_subclasses(F.avg_pool2d)
def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window (L8). Backward spreads delta evenly over the window.

    Same result as ``torch.nn.functional.avg_pool2d``. Nothing is saved for backward.

    Args:
        input: as ``max_pool2d``'s.
        kernel_size: int or (height, width), at least 1.
        stride: int or (height, width), at least 1; kernel_size by default.
        padding: int or (height, width), at most half the kernel_size; zeros.
        ceil_mode: also windows that end outside, if they start inside.
        count_include_pad: divide by the window's size with the padding in it, or without.
        divisor_override: a divisor to use instead; not 0.

    Returns:
        [N, C, M, N'] or [C, M, N'], in input's memory format.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as ``max_pool2d``.
    """
    checks.check_is_tensor("avg_pool2d", input=input)
    checks.check_pool_dim("avg_pool2d", input.shape)
    windows = _windows("avg_pool2d", kernel_size, stride, padding)
    ceil_mode = checks.check_bool("avg_pool2d", "ceil_mode", ceil_mode)
    count_include_pad = checks.check_bool("avg_pool2d", "count_include_pad", count_include_pad)
    if divisor_override is not None:
        divisor_override = checks.check_int("avg_pool2d", "divisor_override", divisor_override)
    if input.dtype not in checks.DTYPES:
        torchs: Any = F.avg_pool2d
        return torchs(input, *windows, ceil_mode, count_include_pad, divisor_override)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    pool = plain_avg_pool2d if is_plain_call(batched) else pool2d_ops.avg_pool2d
    output = pool(batched, *windows, ceil_mode, count_include_pad, divisor_override)
    return output if input.dim() == 4 else output.squeeze(0)
