"""The derivatives of the dense layer (L7), whose matrix products are torch's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_convbp.autograd.saved import save_present, saved_or_none
from torch_convbp.autograd.terms import sum_present
from torch_convbp.error_signals import recording
from torch_convbp.ops import linear as linear_ops
from torch_convbp.ops.registration import register
from torch_convbp.ops.torch_private import (
    autograd_kernel,
    plain_call,
    redispatch_below_autograd,
)


def _rows(tensor: Tensor) -> Tensor:
    """[..., J] as [rows, J]."""
    # -1 for the number of rows would be ambiguous where J is 0.
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


class Linear(torch.autograd.Function):
    """p_i = sum_j W_ij a_j + bias_i (L7). Shapes: a [..., J], W [I, J], bias [I], p [..., I].

    Gradients of complex numbers are by the conjugate, as in torch; real tensors are their own
    conjugates. The bias may be anything that broadcasts to p, as in torch.
    """

    @staticmethod
    def forward(input, weight, bias):  # type: ignore[override]
        return redispatch_below_autograd(linear_ops.linear, input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias = inputs
        needs_input_grad, needs_weight_grad = ctx.needs_input_grad[:2]
        save_present(
            ctx, input if needs_weight_grad else None, weight if needs_input_grad else None
        )
        ctx.save_for_forward(input, weight)
        ctx.output_size, ctx.bias_size = output.shape, None if bias is None else bias.shape
        ctx.layer = recording.here.layer

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = saved_or_none(ctx)
        needs_input_grad, needs_weight_grad, needs_bias_grad = ctx.needs_input_grad
        input_grad = weight_grad = bias_grad = None
        if needs_input_grad:  # dL/da_j = sum_i delta_i W_ij
            input_grad = torch.matmul(delta, weight.conj())
        if needs_weight_grad:  # dL/dW_ij = delta_i a_j
            weight_grad = torch.matmul(_rows(delta).t(), _rows(input).conj())
        if needs_bias_grad:  # dL/dbias_i = delta_i, over all rows
            bias_grad = delta.sum_to_size(ctx.bias_size)
        if ctx.layer is not None:
            recording.record(ctx.layer, delta, input_grad, weight_grad, bias_grad)
        return input_grad, weight_grad, bias_grad

    @staticmethod
    def jvp(ctx: Any, input_t, weight_t, bias_t) -> Tensor | None:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        return sum_present(
            None if input_t is None else linear_ops.linear(input_t, weight, None),
            None if weight_t is None else linear_ops.linear(input, weight_t, None),
            None if bias_t is None else bias_t.expand(ctx.output_size),
        )


register(linear_ops.linear, "Autograd", autograd_kernel(linear_ops.linear, Linear))


def plain_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The dense layer of a plain call (``is_plain_call``)."""
    return plain_call(linear_ops.linear, Linear, input, weight, bias)
