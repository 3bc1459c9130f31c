"""The backward pass of a depthwise layer, L3 to L6, as one operator.

Such a layer is memory-bound: it has at most as many products as filter taps for each number read.
One after the other, L3 to L6 read or write seven tensors of the layer's size; one pass needs four.
csrc/cuda/depthwise/backward.cuh is this pass on a GPU. Elsewhere, and under torch.func, the
operator is the four equations.
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
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops.registration import (
    Ints,
    fold,
    refuse_cuda,
    refuse_what_is_not_dense,
    register,
)
from torch_convbp.ops.torch_private import needs_derivative, redispatch_below_autograd

depthwise_backward = torch.ops.torch_convbp.depthwise_backward.default

# Device types on which one pass is faster.
ONE_PASS_ON = {"cuda"}


def is_one_pass(grad: Tensor, weight_size: Sequence[int], groups: int) -> bool:
    """Should this operator be the layer's whole backward pass?"""
    # Every layer calls this, and most are not depthwise: the cheapest test first.
    return groups > 1 and (
        weight_size[1] == 1 and weight_size[0] == groups and grad.device.type in ONE_PASS_ON
    )


def equations(
    grad: Tensor,
    saved: Tensor | None,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str,
    parameters: Sequence[float],
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator as one equation after the other.

    Gradients of input [N, C, H, W], weight [C, 1, R, S] and bias [C], from ``grad`` and ``saved``
    [N, C, M, N'], as error_signal's; without an activation ``saved`` is None and grad is delta.
    """
    if saved is not None:
        activations.check(activation, parameters)
    checks.check_tensors("depthwise_backward", grad=grad, input=input, weight=weight, saved=saved)
    geometry = (stride, padding, dilation, groups)
    size = checks.conv2d_output_size(input.shape, weight.shape, *geometry, input.element_size())
    checks.check_depthwise(weight.shape, groups)
    checks.check_same_size("grad", grad.shape, "conv2d's output", size)
    delta = grad
    if saved is not None:
        checks.check_same_size("saved", saved.shape, "conv2d's output", size)
        delta = elementwise_ops.error_signal(grad, saved, activation, parameters)  # L3
    input_grad = conv2d_ops.conv2d_input_grad(  # L6
        input.shape, weight, delta, *geometry, memory_format=memory_format
    )
    weight_grad, bias_grad = conv2d_ops.conv2d_weight_bias_grad(  # L4, L5
        input, weight.shape, delta, *geometry, memory_format=memory_format
    )
    return input_grad, weight_grad, bias_grad


def _autograd(
    grad: Tensor, saved: Tensor | None, input: Tensor, weight: Tensor, *rest: Any, **format: Any
) -> Any:
    # The operator's own derivative is the derivative of the equations.
    if needs_derivative(grad, saved, input, weight):
        return equations(grad, saved, input, weight, *rest, **format)
    return redispatch_below_autograd(
        depthwise_backward, grad, saved, input, weight, *rest, **format
    )


torch.library.register_fake("torch_convbp::depthwise_backward")(equations)
register(depthwise_backward, "CPU", equations)
register(depthwise_backward, "Autograd", _autograd)
refuse_what_is_not_dense((depthwise_backward,))
refuse_cuda((depthwise_backward,))


@torch.library.register_vmap("torch_convbp::depthwise_backward")
def _(info: Any, in_dims: Any, *arguments: Any, **format: Any) -> Any:
    # Indices become channels, as for the weight gradients in conv2d.py.
    size = info.batch_size
    folded = [
        None if tensor is None else fold(tensor, dim, size, into)
        for tensor, dim, into in zip(arguments[:4], in_dims, (1, 1, 1, 0), strict=False)
    ]
    stride, padding, dilation, groups, *row = arguments[4:]
    gradients = depthwise_backward(
        *folded, stride, padding, dilation, groups * size, *row, **format
    )
    dims = (1, 0, 0)
    return tuple(
        gradient.unflatten(dim, (size, groups))
        for gradient, dim in zip(gradients, dims, strict=True)
    ), dims


@register_flop_formula([torch.ops.torch_convbp.depthwise_backward])
def _(grad: Ints, saved: Ints | None, input: Ints, weight: Ints, *_: Any, **__: Any) -> int:
    return 2 * conv2d_ops.flops(weight, grad)
