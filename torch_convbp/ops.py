"""The dispatcher operators ``torch.ops.torch_convbp.*``: what torch must know of them beside
their CPU and CUDA kernels, which are in csrc/.

Schemas are in csrc/ops.cpp, derivatives in autograd.py. Here: fake kernels (shapes, strides
and checks without data), autocast rules, and the error for devices without kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_convbp import _library, shapes

Ints: TypeAlias = Sequence[int]

conv2d = torch.ops.torch_convbp.conv2d.default
conv2d_input_grad = torch.ops.torch_convbp.conv2d_input_grad.default
conv2d_weight_grad = torch.ops.torch_convbp.conv2d_weight_grad.default
conv2d_weight_bias_grad = torch.ops.torch_convbp.conv2d_weight_bias_grad.default

OPERATORS = (conv2d, conv2d_input_grad, conv2d_weight_grad, conv2d_weight_bias_grad)

# Registrations live as long as this object does.
_registry = torch.library.Library("torch_convbp", "IMPL")


def register(operator: torch._ops.OpOverload, key: str, kernel: Callable[..., Any]) -> None:
    """Makes ``kernel`` the operator's implementation under a dispatch key."""
    _registry.impl(operator._schema.name, kernel, key)


# --- fake kernels ---------------------------------------------------------------------------


@torch.library.register_fake("torch_convbp::conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    shapes.check_tensors("conv2d", input=input, weight=weight, bias=bias)
    size = shapes.conv2d_output_size(
        input.shape, weight.shape, stride, padding, dilation, groups, input.element_size()
    )
    if bias is not None:
        shapes.check_bias(bias.shape, weight.shape)
    return input.new_empty(size).to(memory_format=shapes.result_format(input, weight))


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
    shapes.check_tensors("conv2d_input_grad", weight=weight, delta=delta)
    output_size = shapes.conv2d_output_size(
        input_size, weight.shape, stride, padding, dilation, groups, delta.element_size()
    )
    shapes.check_delta(delta.shape, output_size)
    return delta.new_empty(input_size).to(
        memory_format=memory_format or shapes.result_format(weight, delta)
    )


def _fake_weight_grad(
    op: str,
    input: Tensor,
    weight_size: Ints,
    delta: Tensor,
    geometry: Any,
    memory_format: torch.memory_format | None,
) -> Tensor:
    shapes.check_tensors(op, input=input, delta=delta)
    output_size = shapes.conv2d_output_size(
        input.shape,
        weight_size,
        *geometry,
        delta.element_size(),  # type: ignore[call-arg]
    )
    shapes.check_delta(delta.shape, output_size)
    return delta.new_empty(weight_size).to(
        memory_format=memory_format or shapes.result_format(input, delta)
    )


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


# --- autocast -------------------------------------------------------------------------------


def _autocast(operator: torch._ops.OpOverload, device_type: str) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        # As torch does: float64 is left alone, and integers are left for the operator to refuse.
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(torch.get_autocast_dtype(device_type))
        return value

    def kernel(*args: Any, **kwargs: Any) -> Any:
        args = tuple(cast(a) for a in args)
        with torch.autocast(device_type, enabled=False):
            return operator(*args, **kwargs)

    return kernel


for _operator in OPERATORS:
    register(_operator, "AutocastCPU", _autocast(_operator, "cpu"))
    register(_operator, "AutocastCUDA", _autocast(_operator, "cuda"))


# --- devices without kernels ----------------------------------------------------------------


def _no_cuda(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{operator._schema.name} got a CUDA tensor, but torch_convbp cannot run on CUDA here: "
            f"{_library.cuda_missing}. Move the model and its input to the CPU, or keep "
            "torch.nn.Conv2d on the GPU (torch_convbp.revert(model))."
        )

    return kernel


if _library.cuda_missing is not None:
    for _operator in OPERATORS:
        register(_operator, "CUDA", _no_cuda(_operator))
