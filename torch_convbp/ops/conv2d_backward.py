"""The operator of a convolution's whole backward pass, L3 to L6.

A layer's backward pass is one call of it: a call costs as much as a small convolution. What it
means is written down in autograd/conv2d.py, whose equations give the same bits. On the CPU it is
these equations in C++ (csrc/torch/conv2d.h). On a GPU that of a depthwise layer is one pass over
memory (csrc/cuda/depthwise/backward.cuh): such a layer has at most as many products as filter taps
for each number read, and one after the other, L3 to L6 read or write seven tensors of its size
where four would do.

In shapes N is the batch; an output map is M x N' (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torch_convbp import activations
from torch_convbp.ops import checks
from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops.memory_format import new_tensor, result_format
from torch_convbp.ops.registration import (
    Ints,
    fold,
    refuse_cuda,
    refuse_what_is_not_dense,
    unfold,
)

conv2d_backward = torch.ops.torch_convbp.conv2d_backward.default


@torch.library.register_fake("torch_convbp::conv2d_backward")
def _(
    grad: Tensor,
    saved: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: Ints,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str,
    parameters: Sequence[float],
    needs_bias_grad: bool,
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input [N, K, H, W] where weight is given, of the weight
    [O, K / groups, R, S] where input is given, and of the bias [O] where asked for; else None.

    grad and saved are [N, O, M, N'], padding (top, bottom, left, right); all tensors have one of
    the four dtypes. RuntimeError where they do not fit together.
    """
    checks.check_tensors("conv2d_backward", grad=grad, saved=saved, input=input, weight=weight)
    size = checks.conv2d_output_size(
        input_size, weight_size, stride, padding, dilation, groups, grad.element_size()
    )
    checks.check_same_size("grad", grad.shape, "conv2d's output", size)
    if saved is not None:
        checks.check_same_size("saved", saved.shape, "conv2d's output", size)
    if input is not None:
        checks.check_same_size("input", input.shape, "input_size", input_size)
    if weight is not None:
        checks.check_same_size("weight", weight.shape, "weight_size", weight_size)
    if saved is not None:
        activations.check(activation, parameters)
    delta = grad if saved is None else saved  # of delta's format
    input_grad = weight_grad = bias_grad = None
    if weight is not None:
        input_grad = new_tensor(delta, input_size, result_format(weight, delta, memory_format))
    if input is not None:
        weight_grad = new_tensor(delta, weight_size, result_format(input, delta, memory_format))
    if needs_bias_grad:
        bias_grad = delta.new_empty(weight_size[0])
    return input_grad, weight_grad, bias_grad


refuse_what_is_not_dense((conv2d_backward,))
refuse_cuda((conv2d_backward,))


@torch.library.register_vmap("torch_convbp::conv2d_backward")
def _(
    info: Any,
    in_dims: Any,
    grad: Tensor,
    saved: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: Ints,
    weight_size: Ints,
    *rest: Any,
    **format: Any,
) -> Any:
    # Indices become groups, as for the weight gradients in conv2d.py.
    size = info.batch_size
    folded = [
        None if tensor is None else fold(tensor, dim, size, into)
        for tensor, dim, into in zip(
            (grad, saved, input, weight), in_dims, (1, 1, 1, 0), strict=False
        )
    ]
    batch, channels, *pixels = input_size
    filters, *taps = weight_size
    stride, padding, dilation, groups, *others = rest
    gradients = conv2d_backward(
        *folded,
        [batch, size * channels, *pixels],
        [size * filters, *taps],
        stride,
        padding,
        dilation,
        groups * size,
        *others,
        **format,
    )
    unfolded = [
        (None, None) if gradient is None else unfold(gradient, dim, (size, length))
        for gradient, dim, length in zip(
            gradients, (1, 0, 0), (channels, filters, filters), strict=True
        )
    ]
    return tuple(zip(*unfolded, strict=True))


@register_flop_formula([torch.ops.torch_convbp.conv2d_backward])
def _(
    grad: Ints,
    saved: Ints | None,
    input: Ints | None,
    weight: Ints | None,
    input_size: Ints,
    weight_size: Ints,
    *_: Any,
    **__: Any,
) -> int:
    return ((input is not None) + (weight is not None)) * conv2d_ops.flops(weight_size, grad)
