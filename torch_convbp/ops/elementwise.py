"""The operators of the activation g (L2) and of its error signal (L3), element by element.

``saved`` is what autograd/ saves for L3: a or p, as activations.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_convbp import activations
from torch_convbp.ops import checks
from torch_convbp.ops.memory_format import format_of
from torch_convbp.ops.registration import fold, refuse_cuda, refuse_what_is_not_dense, unfold

activation = torch.ops.torch_convbp.activation.default
error_signal = torch.ops.torch_convbp.error_signal.default
error_signal_bias_grad = torch.ops.torch_convbp.error_signal_bias_grad.default

ELEMENTWISE = (activation, error_signal, error_signal_bias_grad)


# --- fake kernels ---------------------------------------------------------------------------


@torch.library.register_fake("torch_convbp::activation")
def _(input: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    checks.check_tensors("activation", input=input)
    activations.check(name, parameters)
    checks.check_fits(input.shape, input.element_size())
    return torch.empty_like(input)


def _fake_error_signal(
    op: str, grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]
) -> Tensor:
    activations.check(name, parameters)
    checks.check_tensors(op, grad=grad, saved=saved)
    checks.check_same_size("grad", grad.shape, "saved", saved.shape)
    checks.check_fits(saved.shape, saved.element_size())
    return torch.empty_like(saved, memory_format=format_of(saved))


@torch.library.register_fake("torch_convbp::error_signal")
def _(grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    return _fake_error_signal("error_signal", grad, saved, name, parameters)


@torch.library.register_fake("torch_convbp::error_signal_bias_grad")
def _(grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]) -> tuple[Tensor, Tensor]:
    checks.check_has_channels(saved.shape)
    delta = _fake_error_signal("error_signal_bias_grad", grad, saved, name, parameters)
    return delta, saved.new_empty(saved.shape[1])


# --- batching (torch.vmap) ------------------------------------------------------------------


@torch.library.register_vmap("torch_convbp::activation")
def _(info: Any, in_dims: Any, input: Tensor, name: str, parameters: Sequence[float]) -> Any:
    return activation(input, name, parameters), in_dims[0]


@torch.library.register_vmap("torch_convbp::error_signal")
def _(info: Any, in_dims: Any, grad: Tensor, saved: Tensor, *row: Any) -> Any:
    size = info.batch_size
    folded = error_signal(fold(grad, in_dims[0], size, 0), fold(saved, in_dims[1], size, 0), *row)
    return unfold(folded, 0, (size, folded.shape[0] // size))


@torch.library.register_vmap("torch_convbp::error_signal_bias_grad")
def _(info: Any, in_dims: Any, grad: Tensor, saved: Tensor, *row: Any) -> Any:
    # One bias gradient for each index: the indices become channels.
    size = info.batch_size
    delta, bias_grad = error_signal_bias_grad(
        fold(grad, in_dims[0], size, 1), fold(saved, in_dims[1], size, 1), *row
    )
    channels = bias_grad.shape[0] // size
    return (
        (delta.unflatten(1, (size, channels)), bias_grad.unflatten(0, (size, channels))),
        (1, 0),
    )


refuse_what_is_not_dense(ELEMENTWISE)
refuse_cuda(ELEMENTWISE)
