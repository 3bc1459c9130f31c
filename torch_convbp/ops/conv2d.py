"""The operators of the convolution: with and without an activation (L1, L2), and its gradients by
input (L6), weight (L4) and bias (L5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torch_convbp import activations
from torch_convbp.ops import checks
from torch_convbp.ops.autocast import autocast
from torch_convbp.ops.memory_format import new_tensor, result_format
from torch_convbp.ops.registration import (
    Ints,
    fold,
    refuse_cuda,
    refuse_what_is_not_dense,
    register,
    unfold,
)
from torch_convbp.ops.torch_private import Operator

conv2d = torch.ops.torch_convbp.conv2d.default
conv2d_activation = torch.ops.torch_convbp.conv2d_activation.default
conv2d_activation_pair = torch.ops.torch_convbp.conv2d_activation_pair.default
conv2d_input_grad = torch.ops.torch_convbp.conv2d_input_grad.default
conv2d_weight_grad = torch.ops.torch_convbp.conv2d_weight_grad.default
conv2d_weight_bias_grad = torch.ops.torch_convbp.conv2d_weight_bias_grad.default

CONVOLUTIONS = (
    conv2d,
    conv2d_activation,
    conv2d_activation_pair,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv2d_weight_bias_grad,
)

# --- fake kernels ---------------------------------------------------------------------------


def _fake_conv2d(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any]
) -> Tensor:
    checks.check_tensors(op, input=input, weight=weight, bias=bias)
    size = checks.conv2d_output_size(
        input.shape,
        weight.shape,
        *geometry,
        input.element_size(),  # type: ignore[call-arg]
    )
    if bias is not None:
        checks.check_bias(bias.shape, weight.shape)
    return new_tensor(input, size, result_format(input, weight))


@torch.library.register_fake("torch_convbp::conv2d")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return _fake_conv2d("conv2d", input, weight, bias, geometry)


@torch.library.register_fake("torch_convbp::conv2d_activation")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *geometry, name, parameters = rest
    activations.check(name, parameters)
    return _fake_conv2d("conv2d_activation", input, weight, bias, geometry)


@torch.library.register_fake("torch_convbp::conv2d_activation_pair")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *geometry, name, parameters = rest
    activations.check(name, parameters)
    output = _fake_conv2d("conv2d_activation_pair", input, weight, bias, geometry)
    return output, torch.empty_like(output)


@torch.library.register_fake("torch_convbp::conv2d_input_grad")
def _(
    input_size: Ints,
    weight: Tensor,
    delta: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    checks.check_tensors("conv2d_input_grad", weight=weight, delta=delta)
    output_size = checks.conv2d_output_size(
        input_size, weight.shape, stride, padding, dilation, groups, delta.element_size()
    )
    checks.check_same_size("delta", delta.shape, "conv2d's output", output_size)
    return new_tensor(delta, input_size, result_format(weight, delta, memory_format))


def _fake_weight_grad(
    op: str,
    input: Tensor,
    weight_size: Ints,
    delta: Tensor,
    geometry: Any,
    memory_format: torch.memory_format | None,
) -> Tensor:
    checks.check_tensors(op, input=input, delta=delta)
    output_size = checks.conv2d_output_size(
        input.shape,
        weight_size,
        *geometry,
        delta.element_size(),  # type: ignore[call-arg]
    )
    checks.check_same_size("delta", delta.shape, "conv2d's output", output_size)
    return new_tensor(delta, weight_size, result_format(input, delta, memory_format))


@torch.library.register_fake("torch_convbp::conv2d_weight_grad")
def _(
    input: Tensor,
    weight_size: Ints,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    return _fake_weight_grad(
        "conv2d_weight_grad", input, weight_size, delta, geometry, memory_format
    )


@torch.library.register_fake("torch_convbp::conv2d_weight_bias_grad")
def _(
    input: Tensor,
    weight_size: Ints,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor, Tensor]:
    weight_grad = _fake_weight_grad(
        "conv2d_weight_bias_grad", input, weight_size, delta, geometry, memory_format
    )
    return weight_grad, delta.new_empty(weight_size[0])


# --- batching (torch.vmap) ------------------------------------------------------------------
#
# A dimension over which only input or delta varies becomes more batch. A dimension over which
# filters vary, or with a weight gradient for each index, becomes more groups: index b has the
# groups b * groups ... (b + 1) * groups - 1, with their own channels and filters.


def _geometry_of_groups(geometry: Sequence[Any], size: int) -> tuple[Any, ...]:
    stride, padding, dilation, groups, *rest = geometry
    return stride, padding, dilation, groups * size, *rest


def _vmap_conv2d(operator: Operator) -> Callable[..., Any]:
    def rule(
        info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
    ) -> Any:
        size = info.batch_size
        input_dim, weight_dim, bias_dim = in_dims[:3]
        if weight_dim is None and bias_dim is None:
            batch = input.movedim(input_dim, 0).shape[1]
            output = operator(fold(input, input_dim, size, 0), weight, bias, *rest)
            return unfold(output, 0, (size, batch))
        filters = fold(weight, weight_dim, size, 0)
        output = operator(
            fold(input, input_dim, size, 1),
            filters,
            None if bias is None else fold(bias, bias_dim, size, 0),
            *_geometry_of_groups(rest, size),
        )
        return unfold(output, 1, (size, filters.shape[0] // size))

    return rule


for _operator in (conv2d, conv2d_activation, conv2d_activation_pair):
    torch.library.register_vmap(_operator, _vmap_conv2d(_operator))


@torch.library.register_vmap("torch_convbp::conv2d_input_grad")
def _(
    info: Any,
    in_dims: Any,
    input_size: Ints,
    weight: Tensor,
    delta: Tensor,
    *geometry: Any,
    **options: Any,
):
    size = info.batch_size
    _, weight_dim, delta_dim = in_dims[:3]
    batch, channels, *pixels = input_size
    if weight_dim is None:
        folded = fold(delta, delta_dim, size, 0)
        grad = conv2d_input_grad(
            [size * batch, channels, *pixels], weight, folded, *geometry, **options
        )
        return unfold(grad, 0, (size, batch))
    grad = conv2d_input_grad(
        [batch, size * channels, *pixels],
        fold(weight, weight_dim, size, 0),
        fold(delta, delta_dim, size, 1),
        *_geometry_of_groups(geometry, size),
        **options,
    )
    return unfold(grad, 1, (size, channels))


def _vmap_weight_grad(operator: Operator) -> Callable[..., Any]:
    def rule(
        info: Any,
        in_dims: Any,
        input: Tensor,
        weight_size: Ints,
        delta: Tensor,
        *geometry: Any,
        **options: Any,
    ) -> Any:
        size, filters = info.batch_size, weight_size[0]
        grads = operator(
            fold(input, in_dims[0], size, 1),
            [size * filters, *weight_size[1:]],
            fold(delta, in_dims[2], size, 1),
            *_geometry_of_groups(geometry, size),
            **options,
        )
        return unfold(grads, 0, (size, filters))

    return rule


for _operator in (conv2d_weight_grad, conv2d_weight_bias_grad):
    torch.library.register_vmap(_operator, _vmap_weight_grad(_operator))


# --- autocast -------------------------------------------------------------------------------


# Autocast is for layers alone, as in torch: backward has the dtypes of its forward pass.
for _operator in (conv2d, conv2d_activation, conv2d_activation_pair):
    register(_operator, "AutocastCPU", autocast(_operator, "cpu"))
    register(_operator, "AutocastCUDA", autocast(_operator, "cuda"))


# --- float32 on tensor cores ------------------------------------------------------------------


def _allow_tf32() -> bool:
    """May a float32 convolution use TF32, as torch's own would? csrc/cuda/torch/tf32.cpp asks.

    fp32_precision is the setting's new name; it also follows torch.backends.cudnn.allow_tf32.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


register(torch.ops.torch_convbp._allow_tf32.default, "CompositeExplicitAutograd", _allow_tf32)


# --- floating point operations (torch.utils.flop_counter) ------------------------------------


def flops(filters: Sequence[int], delta: Sequence[int]) -> int:
    """A multiplication and an addition for each tap of each output element."""
    return 2 * math.prod(delta) * math.prod(filters[1:])


@register_flop_formula([torch.ops.torch_convbp.conv2d, torch.ops.torch_convbp.conv2d_activation])
def _(input: Ints, weight: Ints, *_: Any, out_shape: Ints, **__: Any) -> int:
    return flops(weight, out_shape)


@register_flop_formula([torch.ops.torch_convbp.conv2d_activation_pair])
def _(input: Ints, weight: Ints, *_: Any, out_shape: Sequence[Ints], **__: Any) -> int:
    return flops(weight, out_shape[0])


@register_flop_formula([torch.ops.torch_convbp.conv2d_input_grad])
def _(input_size: Ints, weight: Ints, delta: Ints, *_: Any, **__: Any) -> int:
    return flops(weight, delta)


@register_flop_formula(
    [
        torch.ops.torch_convbp.conv2d_weight_grad,
        torch.ops.torch_convbp.conv2d_weight_bias_grad,
    ]
)
def _(input: Ints, weight_size: Ints, delta: Ints, *_: Any, **__: Any) -> int:
    return flops(weight_size, delta)


# --- tensors that are not dense, devices without kernels --------------------------------------

refuse_what_is_not_dense(CONVOLUTIONS)
refuse_cuda(CONVOLUTIONS)
