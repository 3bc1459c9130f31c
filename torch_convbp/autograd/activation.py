"""The derivative of the activation g (L2), which is L3, and the derivative of L3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_convbp import activations
from torch_convbp.activations import Activation
from torch_convbp.ops import checks
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops.registration import register
from torch_convbp.ops.torch_private import (
    autograd_kernel,
    needs_derivative,
    redispatch_below_autograd,
)


class ActivationOf(torch.autograd.Function):
    """a' = g(p) (L2), for layers whose kernel does not include g; backward is L3."""

    @staticmethod
    def forward(p, name, parameters):  # type: ignore[override]
        return redispatch_below_autograd(elementwise_ops.activation, p, name, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        p, name, parameters = inputs
        ctx.g = Activation(name, tuple(parameters))
        saved = output if ctx.g.saves_output else p
        ctx.save_for_backward(saved)
        ctx.save_for_forward(saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (saved,) = ctx.saved_tensors
        return elementwise_ops.error_signal(grad, saved, *ctx.g), None, None

    @staticmethod
    def jvp(ctx: Any, p_t, *_) -> Tensor:  # type: ignore[override]
        (saved,) = ctx.saved_tensors
        return elementwise_ops.error_signal(p_t, saved, *ctx.g)


def _error_signal_kernel(grad, saved, name, parameters):
    # A differentiable L3 needs torch's operators: delta is not linear in ``saved``.
    if not needs_derivative(grad, saved):
        return redispatch_below_autograd(
            elementwise_ops.error_signal, grad, saved, name, parameters
        )
    activations.check(name, parameters)
    checks.check_same_size("grad", grad.shape, "saved", saved.shape)
    return activations.error_signal(grad, saved, name, parameters)


def _error_signal_bias_grad_kernel(grad, saved, name, parameters):
    if not needs_derivative(grad, saved):
        return redispatch_below_autograd(
            elementwise_ops.error_signal_bias_grad, grad, saved, name, parameters
        )
    delta = elementwise_ops.error_signal(grad, saved, name, parameters)
    return delta, activations.bias_grad(delta)


register(
    elementwise_ops.activation,
    "Autograd",
    autograd_kernel(elementwise_ops.activation, ActivationOf),
)
register(elementwise_ops.error_signal, "Autograd", _error_signal_kernel)
register(elementwise_ops.error_signal_bias_grad, "Autograd", _error_signal_bias_grad_kernel)
