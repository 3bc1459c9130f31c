"""The derivatives of pooling (L8): the error signal passes back through the pooling window, to the
position that won (max), or spread evenly (average).

With its winners fixed, max pooling is a linear map, max_pool2d_gather, whose transpose is
max_pool2d_input_grad; average pooling is always linear. A map and its transpose are each
other's derivatives, so gradients of every order need no further kernel.

Shapes: a and input_grad [N, C, H, W]; output a', delta and offset [N, C, M, N'], where N is the
batch and M x N' an output map. ``offset`` says which position of the window won, in a byte for
windows of up to 255: all that max pooling saves for backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_convbp.error_signals import recording
from torch_convbp.ops import pool2d as pool2d_ops
from torch_convbp.ops.memory_format import result_format
from torch_convbp.ops.registration import register
from torch_convbp.ops.torch_private import (
    autograd_kernel,
    plain_call,
    redispatch_below_autograd,
    skip_autograd_unless_needed,
)


def _no_gradients(ctx: Any) -> tuple[None, ...]:
    """None for each argument that describes the pooling: kernel_size, stride, padding ..."""
    return (None,) * len(ctx.geometry)


class MaxPool2d(torch.autograd.Function):
    """a' = max over the window of a; and the winner's offset in the window."""

    @staticmethod
    def forward(input, *geometry):  # type: ignore[override]
        return redispatch_below_autograd(pool2d_ops.max_pool2d, input, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, *ctx.geometry = inputs
        offset = output[1]
        ctx.mark_non_differentiable(offset)
        ctx.set_materialize_grads(False)  # no zeros as the offset's gradient
        ctx.save_for_backward(offset)
        ctx.save_for_forward(offset)
        ctx.input_size, ctx.memory_format = input.shape, result_format(input, input)
        ctx.layer = recording.here.layer

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if delta is None:
            return None, *_no_gradients(ctx)
        (offset,) = ctx.saved_tensors
        with skip_autograd_unless_needed(delta, saved=(offset,)):
            input_grad = pool2d_ops.max_pool2d_input_grad(
                ctx.input_size, delta, offset, *ctx.geometry, memory_format=ctx.memory_format
            )
        if ctx.layer is not None:
            recording.record(ctx.layer, delta, input_grad, None, None)
        return input_grad, *_no_gradients(ctx)

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor, *_: Any) -> Any:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        return pool2d_ops.max_pool2d_gather(input_t, offset, *ctx.geometry), None


class MaxPool2dInputGrad(torch.autograd.Function):
    """dL/da: each delta at the position that won its window, summed where windows overlap."""

    @staticmethod
    def forward(input_size, delta, offset, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return redispatch_below_autograd(
            pool2d_ops.max_pool2d_input_grad,
            input_size,
            delta,
            offset,
            *geometry,
            memory_format=memory_format,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.input_size, _, offset, *ctx.geometry, _ = inputs
        ctx.save_for_backward(offset)
        ctx.save_for_forward(offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        delta_grad = pool2d_ops.max_pool2d_gather(grad, offset, *ctx.geometry)
        return None, delta_grad, None, *_no_gradients(ctx), None

    @staticmethod
    def jvp(ctx: Any, _: Any, delta_t: Tensor, *__: Any) -> Tensor:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        return pool2d_ops.max_pool2d_input_grad(ctx.input_size, delta_t, offset, *ctx.geometry)


class MaxPool2dGather(torch.autograd.Function):
    """The values at the winning positions, from a tensor of the input's size."""

    @staticmethod
    def forward(input, offset, *geometry):  # type: ignore[override]
        return redispatch_below_autograd(pool2d_ops.max_pool2d_gather, input, offset, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, offset, *ctx.geometry = inputs
        ctx.save_for_backward(offset)
        ctx.save_for_forward(offset)
        ctx.input_size = input.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        input_grad = pool2d_ops.max_pool2d_input_grad(ctx.input_size, grad, offset, *ctx.geometry)
        return input_grad, None, *_no_gradients(ctx)

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        return pool2d_ops.max_pool2d_gather(input_t, offset, *ctx.geometry)


class AvgPool2d(torch.autograd.Function):
    """a' = the sum over the window of a, divided by the window's size."""

    @staticmethod
    def forward(input, *geometry):  # type: ignore[override]
        return redispatch_below_autograd(pool2d_ops.avg_pool2d, input, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.geometry = inputs
        ctx.input_size, ctx.memory_format = input.shape, result_format(input, input)
        ctx.layer = recording.here.layer

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with skip_autograd_unless_needed(delta):
            input_grad = pool2d_ops.avg_pool2d_input_grad(
                ctx.input_size, delta, *ctx.geometry, memory_format=ctx.memory_format
            )
        if ctx.layer is not None:
            recording.record(ctx.layer, delta, input_grad, None, None)
        return input_grad, *_no_gradients(ctx)

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        return pool2d_ops.avg_pool2d(input_t, *ctx.geometry)


class AvgPool2dInputGrad(torch.autograd.Function):
    """dL/da: each delta, divided by its window's size, at every position of the window."""

    @staticmethod
    def forward(input_size, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return redispatch_below_autograd(
            pool2d_ops.avg_pool2d_input_grad,
            input_size,
            delta,
            *geometry,
            memory_format=memory_format,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.input_size, _, *ctx.geometry, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, pool2d_ops.avg_pool2d(grad, *ctx.geometry), *_no_gradients(ctx), None

    @staticmethod
    def jvp(ctx: Any, _: Any, delta_t: Tensor, *__: Any) -> Tensor:  # type: ignore[override]
        return pool2d_ops.avg_pool2d_input_grad(ctx.input_size, delta_t, *ctx.geometry)


for _operator, _function in (
    (pool2d_ops.max_pool2d, MaxPool2d),
    (pool2d_ops.max_pool2d_input_grad, MaxPool2dInputGrad),
    (pool2d_ops.max_pool2d_gather, MaxPool2dGather),
    (pool2d_ops.avg_pool2d, AvgPool2d),
    (pool2d_ops.avg_pool2d_input_grad, AvgPool2dInputGrad),
):
    register(_operator, "Autograd", autograd_kernel(_operator, _function))


def plain_max_pool2d(input: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Max pooling of a plain call (``is_plain_call``)."""
    return plain_call(pool2d_ops.max_pool2d, MaxPool2d, input, *geometry)


def plain_avg_pool2d(input: Tensor, *geometry: Any) -> Tensor:
    """Average pooling of a plain call."""
    return plain_call(pool2d_ops.avg_pool2d, AvgPool2d, input, *geometry)
