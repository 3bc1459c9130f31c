"""The derivatives of the convolution: the backward pass L3 to L6, and the derivatives of that pass.

conv2d (L1), conv2d_input_grad (L6) and conv2d_weight_grad (L4) are one trilinear form

    T(a, w, delta) = sum over m, n, r, s of delta_o[m, n] a_k[m + r, n + s] w_ok[r, s]

seen from three sides: dT/ddelta, dT/da and dT/dw. So the derivative of each side is written
with the other two, and gradients of every order need no further kernel.

Conv2dWeightBiasGrad is no fourth side, but L4 and L5 from the same pass over delta.

An activation g turns the gradient of a layer's output into the error signal (L3), which L4 to L6
use (``_error_signal``, ``_gradients``). A layer's backward pass runs them in one operator
(ops/conv2d_backward.py) of the same bits; these equations are its derivative's definition, and run
where the operator does not: while error signals are recorded, and under torch.func.

Shapes: a, input and input_grad [N, K, H, W]; w, weight and weight_grad [O, K / groups, R, S];
delta and output [N, O, M, N']; bias and bias_grad [O]. N is the batch; an output map is M x N'
(height, width). a' = g(p) is the layer's output.

Every Function saves only what the requested gradients need, and computes only those gradients.
``geometry`` is (stride, padding, dilation, groups); delta is the error signal dL/dp of L3;
``layer`` is the module whose error signals are being recorded (error_signals), None as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_convbp import activations
from torch_convbp.activations import Activation
from torch_convbp.autograd.saved import save_present, saved_or_none
from torch_convbp.autograd.terms import sum_present
from torch_convbp.error_signals import recording
from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops import conv2d_backward as backward_ops
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops.memory_format import result_format
from torch_convbp.ops.registration import register
from torch_convbp.ops.torch_private import (
    autograd_kernel,
    is_recorded,
    is_transformed,
    needs_derivative,
    plain_call,
    redispatch_below_autograd,
    skip_autograd_unless_needed,
)

# Of the input, the weight and the bias; None for what is not asked for.
Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]

# Is a layer's backward pass one operator? Else it is the equations below, with the same bits.
ONE_OPERATOR = True


def _error_signal(
    grad: Tensor,
    saved: Tensor | None,
    name: str,
    parameters: Sequence[float],
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """delta = dL/dp (L3), and the bias gradient (L5) where it comes of the same pass.

    grad is dL/da of the layer's output; ``saved`` is what activations.py says, and None without an
    activation: then grad is delta.
    """
    if saved is None:
        return grad, None
    if needs_bias_grad:
        return elementwise_ops.error_signal_bias_grad(grad, saved, name, parameters)
    return elementwise_ops.error_signal(grad, saved, name, parameters), None


def _gradients(
    delta: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    geometry: Sequence[Any],
    needs_bias_grad: bool,
    memory_format: torch.memory_format | None,
) -> Gradients:
    """Gradients of a convolution's input, weight and bias, from its error signal: of the input
    where the weight is given, of the weight where the input is."""
    input_grad = weight_grad = bias_grad = None
    if weight is not None:  # L6
        input_grad = conv2d_ops.conv2d_input_grad(
            input_size, weight, delta, *geometry, memory_format=memory_format
        )
    if input is not None and needs_bias_grad:  # L4 and L5 in one pass
        weight_grad, bias_grad = conv2d_ops.conv2d_weight_bias_grad(
            input, weight_size, delta, *geometry, memory_format=memory_format
        )
    elif input is not None:  # L4
        weight_grad = conv2d_ops.conv2d_weight_grad(
            input, weight_size, delta, *geometry, memory_format=memory_format
        )
    elif needs_bias_grad:  # L5, with the sign of L2: bias = -sum_k b_ok
        bias_grad = delta.sum((0, 2, 3))
    return input_grad, weight_grad, bias_grad


def _equations(
    grad: Tensor | None,
    p_grad: Tensor | None,
    saved: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    geometry: Sequence[Any],
    g: tuple[str, Sequence[float]],
    needs_bias_grad: bool,
    memory_format: torch.memory_format | None,
) -> tuple[Tensor, Gradients]:
    """L3 to L6: delta, and the gradients. p_grad is the gradient of p where p is an output too."""
    delta, bias_grad = None, None
    if grad is not None:  # L3, and L5 in one pass
        delta, bias_grad = _error_signal(grad, saved, *g, needs_bias_grad and p_grad is None)
    delta = sum_present(delta, p_grad)
    assert delta is not None  # one of the two is there
    needs_l5 = needs_bias_grad and bias_grad is None
    input_grad, weight_grad, l5 = _gradients(  # L4 to L6
        delta, input, weight, input_size, weight_size, geometry, needs_l5, memory_format
    )
    return delta, (input_grad, weight_grad, l5 if needs_l5 else bias_grad)


def _backward(
    ctx: Any,
    grad: Tensor | None,
    saved: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    p_grad: Tensor | None = None,
) -> Gradients:
    """L3 to L6 of a layer. p_grad is the gradient of p, where p is an output of its own."""
    if grad is None and p_grad is None:
        return None, None, None
    needs_input_grad, needs_weight_grad, needs_bias_grad = ctx.needs_input_grad[:3]
    operands = (
        input if needs_weight_grad else None,
        weight if needs_input_grad else None,
        ctx.input_size,
        ctx.weight_size,
    )
    with skip_autograd_unless_needed(
        grad, p_grad, saved=(input, weight, saved), saved_has_tangents=ctx.has_tangents
    ):
        if ONE_OPERATOR and p_grad is None and ctx.layer is None and not is_transformed(grad):
            return backward_ops.conv2d_backward(
                grad,
                saved,
                *operands,
                *ctx.geometry,
                *ctx.g,
                needs_bias_grad,
                memory_format=ctx.memory_format,
            )
        # A recording wants delta, and torch.func has rules for each equation.
        delta, gradients = _equations(
            grad, p_grad, saved, *operands, ctx.geometry, ctx.g, needs_bias_grad, ctx.memory_format
        )
    if ctx.layer is not None:
        recording.record(ctx.layer, delta, *gradients)
    return gradients


def _tangent(ctx: Any, input: Tensor, weight: Tensor, input_t, weight_t, bias_t) -> Tensor:
    """The tangent of a convolution p, which is linear in its input and in its weight."""
    ctx.has_tangents = True
    along_input = along_weight = along_bias = None
    if input_t is not None:
        along_input = conv2d_ops.conv2d(input_t, weight, None, *ctx.geometry)
    if weight_t is not None:
        along_weight = conv2d_ops.conv2d(input, weight_t, None, *ctx.geometry)
    if bias_t is not None:
        along_bias = bias_t.reshape(1, -1, 1, 1).expand(ctx.output_size)
    total = sum_present(along_input, along_weight, along_bias)
    assert total is not None  # torch calls jvp only where there is a tangent
    return total


def _save(ctx: Any, input: Tensor, weight: Tensor, output: Tensor, saved: Tensor | None) -> None:
    """What backward and jvp need of a forward pass."""
    needs_input_grad, needs_weight_grad = ctx.needs_input_grad[:2]
    save_present(
        ctx, input if needs_weight_grad else None, weight if needs_input_grad else None, saved
    )
    ctx.save_for_forward(input, weight, saved)
    ctx.input_size, ctx.weight_size, ctx.output_size = input.shape, weight.shape, output.shape
    ctx.memory_format = result_format(input, weight)
    ctx.layer = recording.here.layer
    ctx.has_tangents = False  # jvp runs after this, and sets it


class Conv2d(torch.autograd.Function):
    """p = conv2d(a, w) + bias (L1, L2)."""

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups):  # type: ignore[override]
        return redispatch_below_autograd(
            conv2d_ops.conv2d, input, weight, bias, stride, padding, dilation, groups
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        ctx.g = ("", ())
        _save(ctx, input, weight, output, None)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, _ = saved_or_none(ctx)
        return *_backward(ctx, delta, None, input, weight), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t, weight_t, bias_t, *_) -> Tensor | None:  # type: ignore[override]
        input, weight, _ = ctx.saved_tensors
        return _tangent(ctx, input, weight, input_t, weight_t, bias_t)


class Conv2dActivation(torch.autograd.Function):
    """a' = g(p), p = conv2d(a, w) + bias (L1, L2), where a' is enough to know g'(p)."""

    @staticmethod
    def forward(input, weight, bias, *geometry_and_g):  # type: ignore[override]
        return redispatch_below_autograd(
            conv2d_ops.conv2d_activation, input, weight, bias, *geometry_and_g
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, weight, _, *ctx.geometry, name, parameters = inputs
        ctx.g = name, parameters
        saved = output if isinstance(output, Tensor) else output[1]  # a', or p of the pair
        _save(ctx, input, weight, saved, saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor | None, p_grad: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        # Non-reentrant checkpointing lets saved_tensors be unpacked once, so unpack all here.
        input, weight, saved = saved_or_none(ctx)
        gradients = _backward(ctx, grad, saved, input, weight, p_grad)
        return *gradients, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t, weight_t, bias_t, *_) -> Any:  # type: ignore[override]
        return Conv2dActivation.tangents(ctx, input_t, weight_t, bias_t)[0]

    @staticmethod
    def tangents(ctx: Any, input_t, weight_t, bias_t) -> tuple[Tensor, Tensor]:
        """The tangents of a' and of p."""
        input, weight, saved = ctx.saved_tensors
        p_t = _tangent(ctx, input, weight, input_t, weight_t, bias_t)
        return elementwise_ops.error_signal(p_t, saved, *ctx.g), p_t


class Conv2dActivationPair(Conv2dActivation):
    """(a', p), where g'(p) needs p: as an output, p can be saved for backward."""

    @staticmethod
    def forward(input, weight, bias, *geometry_and_g):  # type: ignore[override]
        return redispatch_below_autograd(
            conv2d_ops.conv2d_activation_pair, input, weight, bias, *geometry_and_g
        )

    @staticmethod
    def jvp(ctx: Any, input_t, weight_t, bias_t, *_) -> Any:  # type: ignore[override]
        return Conv2dActivation.tangents(ctx, input_t, weight_t, bias_t)


class Conv2dInputGrad(torch.autograd.Function):
    """dL/da = sum_o delta_o convolved in full with w_o (L6)."""

    @staticmethod
    def forward(input_size, weight, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return redispatch_below_autograd(
            conv2d_ops.conv2d_input_grad,
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
        save_present(
            ctx, weight if needs_delta_grad else None, delta if needs_weight_grad else None
        )
        ctx.save_for_forward(weight, delta)
        ctx.weight_size = weight.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, delta = saved_or_none(ctx)
        needs_weight_grad, needs_delta_grad = ctx.needs_input_grad[1:3]
        weight_grad = delta_grad = None
        if needs_weight_grad:
            weight_grad = conv2d_ops.conv2d_weight_grad(grad, ctx.weight_size, delta, *ctx.geometry)
        if needs_delta_grad:
            delta_grad = conv2d_ops.conv2d(grad, weight, None, *ctx.geometry)
        return None, weight_grad, delta_grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, _, weight_t, delta_t, *__) -> Tensor | None:  # type: ignore[override]
        weight, delta = ctx.saved_tensors
        along_weight = along_delta = None
        if weight_t is not None:
            along_weight = conv2d_ops.conv2d_input_grad(
                ctx.input_size, weight_t, delta, *ctx.geometry
            )
        if delta_t is not None:
            along_delta = conv2d_ops.conv2d_input_grad(
                ctx.input_size, weight, delta_t, *ctx.geometry
            )
        return sum_present(along_weight, along_delta)


class Conv2dWeightGrad(torch.autograd.Function):
    """dL/dw = delta_o correlated with a_k (L4)."""

    @staticmethod
    def forward(input, weight_size, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return redispatch_below_autograd(
            conv2d_ops.conv2d_weight_grad,
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
        save_present(ctx, input if needs_delta_grad else None, delta if needs_input_grad else None)
        ctx.save_for_forward(input, delta)
        ctx.input_size = input.shape

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, bias_grad: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        input, delta = saved_or_none(ctx)
        needs_input_grad, _, needs_delta_grad = ctx.needs_input_grad[:3]
        input_grad = delta_grad = None
        if needs_input_grad:
            input_grad = conv2d_ops.conv2d_input_grad(ctx.input_size, grad, delta, *ctx.geometry)
        if needs_delta_grad:
            delta_grad = conv2d_ops.conv2d(input, grad, bias_grad, *ctx.geometry)
        return input_grad, None, delta_grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t, _, delta_t, *__) -> Tensor | None:  # type: ignore[override]
        input, delta = ctx.saved_tensors
        along_input = along_delta = None
        if input_t is not None:
            along_input = conv2d_ops.conv2d_weight_grad(
                input_t, ctx.weight_size, delta, *ctx.geometry
            )
        if delta_t is not None:
            along_delta = conv2d_ops.conv2d_weight_grad(
                input, ctx.weight_size, delta_t, *ctx.geometry
            )
        return sum_present(along_input, along_delta)


class Conv2dWeightBiasGrad(Conv2dWeightGrad):
    """L4 and, from the same pass over delta, the bias gradient dL/dbias = sum delta_o (L5)."""

    @staticmethod
    def forward(input, weight_size, delta, *geometry_and_format):  # type: ignore[override]
        *geometry, memory_format = geometry_and_format
        return redispatch_below_autograd(
            conv2d_ops.conv2d_weight_bias_grad,
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


_conv2d_activation = autograd_kernel(conv2d_ops.conv2d_activation, Conv2dActivation)


def _conv2d_activation_kernel(input, weight, bias, *geometry_and_g):
    # Where g' needs p and a derivative may be asked for, p is computed as an output too.
    *_, name, parameters = geometry_and_g
    activations.check(name, parameters)
    if Activation(name, tuple(parameters)).saves_output or not needs_derivative(
        input, weight, bias
    ):
        return _conv2d_activation(input, weight, bias, *geometry_and_g)
    return conv2d_ops.conv2d_activation_pair(input, weight, bias, *geometry_and_g)[0]


def _conv2d_backward_kernel(
    grad, saved, input, weight, input_size, weight_size, *rest, memory_format=None
):
    # The operator's own derivative is that of the equations.
    operands = input, weight, input_size, weight_size
    if not needs_derivative(grad, saved, input, weight):
        return redispatch_below_autograd(
            backward_ops.conv2d_backward,
            grad,
            saved,
            *operands,
            *rest,
            memory_format=memory_format,
        )
    *geometry, name, parameters, needs_bias_grad = rest
    g = name, parameters
    return _equations(grad, None, saved, *operands, geometry, g, needs_bias_grad, memory_format)[1]


register(backward_ops.conv2d_backward, "Autograd", _conv2d_backward_kernel)
register(conv2d_ops.conv2d_activation, "Autograd", _conv2d_activation_kernel)
for _operator, _function in (
    (conv2d_ops.conv2d, Conv2d),
    (conv2d_ops.conv2d_activation_pair, Conv2dActivationPair),
    (conv2d_ops.conv2d_input_grad, Conv2dInputGrad),
    (conv2d_ops.conv2d_weight_grad, Conv2dWeightGrad),
    (conv2d_ops.conv2d_weight_bias_grad, Conv2dWeightBiasGrad),
):
    register(_operator, "Autograd", autograd_kernel(_operator, _function))


def plain_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
    g: Activation | None,
) -> Tensor:
    """The convolution, and g, of a plain call (``is_plain_call``)."""
    if g is None:
        return plain_call(conv2d_ops.conv2d, Conv2d, input, weight, bias, *geometry)
    operands = input, weight, bias, *geometry, *g
    if g.saves_output or not is_recorded(input, weight, bias):
        return plain_call(conv2d_ops.conv2d_activation, Conv2dActivation, *operands)
    pair = plain_call(conv2d_ops.conv2d_activation_pair, Conv2dActivationPair, *operands)
    return pair[0]
