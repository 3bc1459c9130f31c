"""The derivatives: the backward pass L4 to L6, and that of the backward pass itself.

conv2d (L1), conv2d_input_grad (L6) and conv2d_weight_grad (L4) are one trilinear form

    T(a, w, delta) = sum over m, n, r, s of delta_o[m, n] a_k[m + r, n + s] w_ok[r, s]

seen from its three sides: dT/ddelta, dT/da and dT/dw. So the derivative of each is written
with the other two, and gradients of every order need no further kernel.

Conv2dWeightBiasGrad is no fourth one, but L4 and L5 from the same pass over delta.

Shapes: a, input and input_grad [N, K, H, W]; w, weight and weight_grad [O, K / groups, R, S];
delta and output [N, O, M, N']; bias and bias_grad [O].

Every Function saves only what the gradients asked for will need, and computes only those.
``geometry`` is (stride, padding, dilation, groups); delta is the error signal dL/dp of L3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_convbp import ops, shapes
from torch_convbp._single_level import autograd_kernel, below_autograd


def _sum(*terms: Tensor | None) -> Tensor | None:
    """Sum of the terms that are there."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


class Conv2d(torch.autograd.Function):
    """p = conv2d(a, w) + bias (L1, L2)."""

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups):  # type: ignore[override]
        return below_autograd(ops.conv2d, input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        needs_input_grad, needs_weight_grad = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            input if needs_weight_grad else None, weight if needs_input_grad else None
        )
        ctx.save_for_forward(input, weight)
        ctx.input_size, ctx.weight_size, ctx.output_size = input.shape, weight.shape, output.shape
        ctx.memory_format = shapes.result_format(input, weight)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        needs_input_grad, needs_weight_grad, needs_bias_grad = ctx.needs_input_grad[:3]
        input_grad = weight_grad = bias_grad = None
        if needs_input_grad:  # L6
            input_grad = ops.conv2d_input_grad(
                ctx.input_size, weight, delta, *ctx.geometry, memory_format=ctx.memory_format
            )
        if needs_weight_grad and needs_bias_grad:  # L4 and L5 in one pass
            weight_grad, bias_grad = ops.conv2d_weight_bias_grad(
                input, ctx.weight_size, delta, *ctx.geometry, memory_format=ctx.memory_format
            )
        elif needs_weight_grad:  # L4
            weight_grad = ops.conv2d_weight_grad(
                input, ctx.weight_size, delta, *ctx.geometry, memory_format=ctx.memory_format
            )
        elif needs_bias_grad:  # L5, with the sign of L2: bias = -sum_k b_ok
            bias_grad = delta.sum((0, 2, 3))
        return input_grad, weight_grad, bias_grad, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t, weight_t, bias_t, *_) -> Tensor | None:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        along_input = along_weight = along_bias = None
        if input_t is not None:
            along_input = ops.conv2d(input_t, weight, None, *ctx.geometry)
        if weight_t is not None:
            along_weight = ops.conv2d(input, weight_t, None, *ctx.geometry)
        if bias_t is not None:
            along_bias = bias_t.reshape(1, -1, 1, 1).expand(ctx.output_size)
        return _sum(along_input, along_weight, along_bias)


class Conv2dInputGrad(torch.autograd.Function):
    """dL/da = sum_o delta_o convolved in full with w_o (L6)."""

    @staticmethod
    def forward(input_size, weight, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return below_autograd(
            ops.conv2d_input_grad,
            input_size,
            weight,
            delta,
            *geometry,
            memory_format=memory_format,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.input_size, weight, delta, *ctx.geometry, _ = inputs
        needs_weight_grad, needs_delta_grad = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(
            weight if needs_delta_grad else None, delta if needs_weight_grad else None
        )
        ctx.save_for_forward(weight, delta)
        ctx.weight_size = weight.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, delta = ctx.saved_tensors
        needs_weight_grad, needs_delta_grad = ctx.needs_input_grad[1:3]
        weight_grad = delta_grad = None
        if needs_weight_grad:
            weight_grad = ops.conv2d_weight_grad(grad, ctx.weight_size, delta, *ctx.geometry)
        if needs_delta_grad:
            delta_grad = ops.conv2d(grad, weight, None, *ctx.geometry)
        return None, weight_grad, delta_grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, _, weight_t, delta_t, *__) -> Tensor | None:  # type: ignore[override]
        weight, delta = ctx.saved_tensors
        along_weight = along_delta = None
        if weight_t is not None:
            along_weight = ops.conv2d_input_grad(ctx.input_size, weight_t, delta, *ctx.geometry)
        if delta_t is not None:
            along_delta = ops.conv2d_input_grad(ctx.input_size, weight, delta_t, *ctx.geometry)
        return _sum(along_weight, along_delta)


class Conv2dWeightGrad(torch.autograd.Function):
    """dL/dw = delta_o correlated with a_k (L4)."""

    @staticmethod
    def forward(input, weight_size, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return below_autograd(
            ops.conv2d_weight_grad,
            input,
            weight_size,
            delta,
            *geometry,
            memory_format=memory_format,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, ctx.weight_size, delta, *ctx.geometry, _ = inputs
        needs_input_grad, _, needs_delta_grad = ctx.needs_input_grad[:3]
        ctx.save_for_backward(
            input if needs_delta_grad else None, delta if needs_input_grad else None
        )
        ctx.save_for_forward(input, delta)
        ctx.input_size = input.shape

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, bias_grad: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        input, delta = ctx.saved_tensors
        needs_input_grad, _, needs_delta_grad = ctx.needs_input_grad[:3]
        input_grad = delta_grad = None
        if needs_input_grad:
            input_grad = ops.conv2d_input_grad(ctx.input_size, grad, delta, *ctx.geometry)
        if needs_delta_grad:
            delta_grad = ops.conv2d(input, grad, bias_grad, *ctx.geometry)
        return input_grad, None, delta_grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t, _, delta_t, *__) -> Tensor | None:  # type: ignore[override]
        input, delta = ctx.saved_tensors
        along_input = along_delta = None
        if input_t is not None:
            along_input = ops.conv2d_weight_grad(input_t, ctx.weight_size, delta, *ctx.geometry)
        if delta_t is not None:
            along_delta = ops.conv2d_weight_grad(input, ctx.weight_size, delta_t, *ctx.geometry)
        return _sum(along_input, along_delta)


class Conv2dWeightBiasGrad(Conv2dWeightGrad):
    """L4 and, from the same pass over delta, the bias gradient dL/dbias = sum delta_o (L5)."""

    @staticmethod
    def forward(input, weight_size, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return below_autograd(
            ops.conv2d_weight_bias_grad,
            input,
            weight_size,
            delta,
            *geometry,
            memory_format=memory_format,
        )

    @staticmethod
    def jvp(ctx: Any, input_t, _, delta_t, *__) -> Any:  # type: ignore[override]
        weight_grad_t = Conv2dWeightGrad.jvp(ctx, input_t, None, delta_t)
        return weight_grad_t, None if delta_t is None else delta_t.sum((0, 2, 3))


for _operator, _function in (
    (ops.conv2d, Conv2d),
    (ops.conv2d_input_grad, Conv2dInputGrad),
    (ops.conv2d_weight_grad, Conv2dWeightGrad),
    (ops.conv2d_weight_bias_grad, Conv2dWeightBiasGrad),
):
    ops.register(_operator, "Autograd", autograd_kernel(_operator, _function))
