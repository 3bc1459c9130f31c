"""The functions users call: conv2d and its two gradients, and the dense layer.

Arguments are those of torch.nn.functional.conv2d, torch.nn.grad.conv2d_input and
torch.nn.grad.conv2d_weight. All three are differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

import torch_convbp.autograd  # noqa: F401  (registers the derivatives)
from torch_convbp import activations, ops, shapes
from torch_convbp.activations import ActivationLike

__all__ = ["conv2d", "conv2d_input_grad", "conv2d_weight_grad", "linear"]

IntOrPair: TypeAlias = int | Sequence[int]


def _geometry(
    function: str,
    weight_size: Sequence[int],
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Any, ...]:
    """The operators' own last four arguments."""
    stride = shapes.pair(function, "stride", stride)
    dilation = shapes.pair(function, "dilation", dilation)
    padding = shapes.four_paddings(function, padding, weight_size, stride, dilation)
    return stride, padding, dilation, shapes.whole_number(function, "groups", groups)


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

    where k runs over the input channels of o's group and positions outside the input are zero;
    and of it g(output), where an activation is named. Same result as
    :func:`torch.nn.functional.conv2d` followed by the activation, in one pass over the output.

    Args:
        input: [N, K, H, W], or [K, H, W] without a batch; float32, float64, bfloat16 or float16
            (the last two are summed in float32); any strides.
        weight: [O, K / groups, R, S], of input's dtype: the lecture's filter, flipped.
        bias: [O], of input's dtype, or None: the lecture's -sum_k b_ok.
        stride: int or (height, width), at least 1.
        padding: int or (height, width), at least 0, on both sides; "valid" for none; "same" for
            an output of input's size (with stride 1; an odd total pads one more behind).
        dilation: int or (height, width), at least 1.
        groups: divides K and O.
        activation: a name as in torch.nn.functional ("relu", "leaky_relu(0.2)", "relu6",
            "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardswish", "softplus(1, 20)"), the
            torch.nn module, or None. For backward is kept what nn.Conv2d and the activation would
            keep, or less: the output where it determines g', else the pre-activation.

    Returns:
        [N, O, M, N'] or [O, M, N'], channels_last if input or weight is.

    Raises:
        TypeError: an argument is of another type (a numpy array, a float stride).
        ValueError: no activation of that name.
        RuntimeError: sizes, dtypes or devices do not fit together, or a value is out of range.
        NotImplementedError: a CUDA tensor where the CUDA kernels are not built.
    """
    shapes.check_is_tensor("conv2d", input=input, weight=weight)
    if bias is not None:
        shapes.check_is_tensor("conv2d", bias=bias)
    shapes.check_dim("conv2d", "input", input.shape)
    shapes.check_weight_dim(weight.shape)
    geometry = _geometry("conv2d", weight.shape, stride, padding, dilation, groups)
    g = activations.parse("conv2d", activation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    if g is None:
        output = ops.conv2d(batched, weight, bias, *geometry)
    else:
        output = ops.conv2d_activation(batched, weight, bias, *geometry, *g)
    return output if input.dim() == 4 else output.squeeze(0)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: ActivationLike = None,
) -> Tensor:
    """The dense layer: a' = g(W a + bias) (L7; bias = -b). The matrix product is torch's.

    Same result as :func:`torch.nn.functional.linear` followed by the activation.

    Args:
        input: [..., J]: a.
        weight: [I, J]: W, of input's dtype.
        bias: [I] or None.
        activation: as :func:`conv2d`'s.

    Returns:
        [..., I].

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`conv2d`; the sizes are checked by torch.
    """
    shapes.check_is_tensor("linear", input=input, weight=weight)
    if bias is not None:
        shapes.check_is_tensor("linear", bias=bias)
    g = activations.parse("linear", activation)
    output = ops.linear(input, weight, bias)
    return output if g is None else ops.activation(output, *g)


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

    Same result as :func:`torch.nn.grad.conv2d_input`; a transposed convolution.

    Args:
        input_size: [N, K, H, W] or [K, H, W], the size of conv2d's input.
        weight: [O, K / groups, R, S].
        delta: the error signal dL/dp, of the size and dtype of conv2d's output.
        stride, padding, dilation, groups: as they were given to :func:`conv2d`.

    Returns:
        A tensor of input_size, channels_last if weight or delta is.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`conv2d`.
    """
    name = "conv2d_input_grad"
    shapes.check_is_tensor(name, weight=weight, delta=delta)
    input_size = shapes.size_list(name, "input_size", input_size)
    shapes.check_dim(name, "input_size", input_size)
    shapes.check_same_dim(name, "input_size", input_size, "delta", delta.shape)
    shapes.check_weight_dim(weight.shape)
    geometry = _geometry(name, weight.shape, stride, padding, dilation, groups)
    if len(input_size) == 3:
        return ops.conv2d_input_grad(
            [1, *input_size], weight, delta.unsqueeze(0), *geometry
        ).squeeze(0)
    return ops.conv2d_input_grad(input_size, weight, delta, *geometry)


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

    Same result as :func:`torch.nn.grad.conv2d_weight`. The bias gradient (L5) is
    ``delta.sum((0, 2, 3))``.

    Args:
        input: [N, K, H, W] or [K, H, W], conv2d's input.
        weight_size: [O, K / groups, R, S], the size of conv2d's weight.
        delta: the error signal dL/dp, of the size and dtype of conv2d's output.
        stride, padding, dilation, groups: as they were given to :func:`conv2d`.

    Returns:
        A tensor of weight_size, channels_last if input or delta is.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as :func:`conv2d`.
    """
    name = "conv2d_weight_grad"
    shapes.check_is_tensor(name, input=input, delta=delta)
    shapes.check_dim(name, "input", input.shape)
    shapes.check_same_dim(name, "input", input.shape, "delta", delta.shape)
    weight_size = shapes.size_list(name, "weight_size", weight_size)
    shapes.check_weight_dim(weight_size)
    geometry = _geometry(name, weight_size, stride, padding, dilation, groups)
    if input.dim() == 3:
        input, delta = input.unsqueeze(0), delta.unsqueeze(0)
    return ops.conv2d_weight_grad(input, weight_size, delta, *geometry)
