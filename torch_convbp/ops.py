"""The dispatcher operators ``torch.ops.torch_convbp.*``: what torch must know of them beside
their CPU and CUDA kernels, which are in csrc/.

Schemas are in csrc/ops.cpp, derivatives in autograd.py. Here: fake kernels (shapes, strides
and checks without data), batching and autocast rules, and the error for devices without kernels.
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
        memory_format=shapes.result_format(weight, delta, memory_format)
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
        memory_format=shapes.result_format(input, delta, memory_format)
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


# --- batching (torch.vmap) ------------------------------------------------------------------
#
# A dimension over which only one activation tensor varies is more batch. One over which filters
# vary too, or a weight gradient is wanted for each index, is more groups: index b of the dimension
# has the groups b * groups ... (b + 1) * groups - 1, its own channels and its own filters.


def _fold(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Moves the dimension ``dim``, or one made by repetition, into dimension ``into``."""
    if dim is None:
        tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        tensor = tensor.movedim(dim, into)
    return tensor.flatten(into, into + 1)


def _geometry_of_groups(geometry: Sequence[Any], size: int) -> tuple[Any, ...]:
    *moves, groups = geometry
    return *moves, groups * size


@torch.library.register_vmap("torch_convbp::conv2d")
def _(info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any):
    size = info.batch_size
    input_dim, weight_dim, bias_dim = in_dims[:3]
    if weight_dim is None and bias_dim is None:
        folded = _fold(input, input_dim, size, 0)
        output = conv2d(folded, weight, bias, *geometry)
        return output.unflatten(0, (size, folded.shape[0] // size)), 0
    filters = _fold(weight, weight_dim, size, 0)
    output = conv2d(
        _fold(input, input_dim, size, 1),
        filters,
        None if bias is None else _fold(bias, bias_dim, size, 0),
        *_geometry_of_groups(geometry, size),
    )
    return output.unflatten(1, (size, filters.shape[0] // size)), 1


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
        folded = _fold(delta, delta_dim, size, 0)
        grad = conv2d_input_grad(
            [size * batch, channels, *pixels], weight, folded, *geometry, **options
        )
        return grad.unflatten(0, (size, batch)), 0
    grad = conv2d_input_grad(
        [batch, size * channels, *pixels],
        _fold(weight, weight_dim, size, 0),
        _fold(delta, delta_dim, size, 1),
        *_geometry_of_groups(geometry, size),
        **options,
    )
    return grad.unflatten(1, (size, channels)), 1


def _vmap_weight_grad(operator: torch._ops.OpOverload) -> Callable[..., Any]:
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
            _fold(input, in_dims[0], size, 1),
            [size * filters, *weight_size[1:]],
            _fold(delta, in_dims[2], size, 1),
            *_geometry_of_groups(geometry, size),
            **options,
        )
        if isinstance(grads, Tensor):
            return grads.unflatten(0, (size, filters)), 0
        return tuple(grad.unflatten(0, (size, filters)) for grad in grads), (0, 0)

    return rule


torch.library.register_vmap(
    "torch_convbp::conv2d_weight_grad", _vmap_weight_grad(conv2d_weight_grad)
)
torch.library.register_vmap(
    "torch_convbp::conv2d_weight_bias_grad", _vmap_weight_grad(conv2d_weight_bias_grad)
)


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
