"""The dispatcher operators ``torch.ops.torch_convbp.*``: what torch must know of them beside
their CPU and CUDA kernels, which are in csrc/.

Schemas are in csrc/torch/schema.cpp, derivatives in autograd.py. Here: fake kernels (shapes,
strides and checks without data), batching and autocast rules, and the error for devices without
kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torch_convbp import _library, activations, shapes

Ints: TypeAlias = Sequence[int]

conv2d = torch.ops.torch_convbp.conv2d.default
conv2d_activation = torch.ops.torch_convbp.conv2d_activation.default
conv2d_activation_pair = torch.ops.torch_convbp.conv2d_activation_pair.default
conv2d_input_grad = torch.ops.torch_convbp.conv2d_input_grad.default
conv2d_weight_grad = torch.ops.torch_convbp.conv2d_weight_grad.default
conv2d_weight_bias_grad = torch.ops.torch_convbp.conv2d_weight_bias_grad.default

activation = torch.ops.torch_convbp.activation.default
error_signal = torch.ops.torch_convbp.error_signal.default
error_signal_bias_grad = torch.ops.torch_convbp.error_signal_bias_grad.default
linear = torch.ops.torch_convbp.linear.default

CONVOLUTIONS = (
    conv2d,
    conv2d_activation,
    conv2d_activation_pair,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv2d_weight_bias_grad,
)
ELEMENTWISE = (activation, error_signal, error_signal_bias_grad)

# Registrations live as long as this object does.
_registry = torch.library.Library("torch_convbp", "IMPL")


def register(operator: torch._ops.OpOverload, key: str, kernel: Callable[..., Any]) -> None:
    """Makes ``kernel`` the operator's implementation under a dispatch key."""
    _registry.impl(operator._schema.name, kernel, key)


# --- fake kernels ---------------------------------------------------------------------------


def new_tensor(like: Tensor, size: Ints, memory_format: torch.memory_format) -> Tensor:
    """An empty tensor of that size and format, where there can be one."""
    shapes.check_fits(size, like.element_size())
    return like.new_empty(size).to(memory_format=memory_format)


def _fake_conv2d(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any]
) -> Tensor:
    shapes.check_tensors(op, input=input, weight=weight, bias=bias)
    size = shapes.conv2d_output_size(
        input.shape,
        weight.shape,
        *geometry,
        input.element_size(),  # type: ignore[call-arg]
    )
    if bias is not None:
        shapes.check_bias(bias.shape, weight.shape)
    return new_tensor(input, size, shapes.result_format(input, weight))


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
    shapes.check_tensors("conv2d_input_grad", weight=weight, delta=delta)
    output_size = shapes.conv2d_output_size(
        input_size, weight.shape, stride, padding, dilation, groups, delta.element_size()
    )
    shapes.check_size("delta", delta.shape, "conv2d's output", output_size)
    return new_tensor(delta, input_size, shapes.result_format(weight, delta, memory_format))


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
    shapes.check_size("delta", delta.shape, "conv2d's output", output_size)
    return new_tensor(delta, weight_size, shapes.result_format(input, delta, memory_format))


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


@torch.library.register_fake("torch_convbp::activation")
def _(input: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    shapes.check_tensors("activation", input=input)
    activations.check(name, parameters)
    shapes.check_fits(input.shape, input.element_size())
    return torch.empty_like(input)


def _fake_error_signal(
    op: str, grad: Tensor, kept: Tensor, name: str, parameters: Sequence[float]
) -> Tensor:
    activations.check(name, parameters)
    shapes.check_tensors(op, grad=grad, kept=kept)
    shapes.check_size("grad", grad.shape, "kept", kept.shape)
    shapes.check_fits(kept.shape, kept.element_size())
    return torch.empty_like(kept, memory_format=shapes.format_of(kept))


@torch.library.register_fake("torch_convbp::error_signal")
def _(grad: Tensor, kept: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    return _fake_error_signal("error_signal", grad, kept, name, parameters)


@torch.library.register_fake("torch_convbp::error_signal_bias_grad")
def _(grad: Tensor, kept: Tensor, name: str, parameters: Sequence[float]) -> tuple[Tensor, Tensor]:
    shapes.check_has_channels(kept.shape)
    delta = _fake_error_signal("error_signal_bias_grad", grad, kept, name, parameters)
    return delta, kept.new_empty(kept.shape[1])


# --- batching (torch.vmap) ------------------------------------------------------------------
#
# A dimension over which only one activation tensor varies is more batch. One over which filters
# vary too, or a weight gradient is wanted for each index, is more groups: index b of the dimension
# has the groups b * groups ... (b + 1) * groups - 1, its own channels and its own filters.


def fold(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Moves the dimension ``dim``, or one made by repetition, into dimension ``into``."""
    if dim is None:
        tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        tensor = tensor.movedim(dim, into)
    return tensor.flatten(into, into + 1)


def unfold(result: Any, dim: int, sizes: tuple[int, int]) -> Any:
    """The result, or each of a pair, with dimension ``dim`` cut in two; and that dimension."""
    if isinstance(result, Tensor):
        return result.unflatten(dim, sizes), dim
    return tuple(part.unflatten(dim, sizes) for part in result), (dim,) * len(result)


def _geometry_of_groups(geometry: Sequence[Any], size: int) -> tuple[Any, ...]:
    stride, padding, dilation, groups, *rest = geometry
    return stride, padding, dilation, groups * size, *rest


def _vmap_conv2d(operator: torch._ops.OpOverload) -> Callable[..., Any]:
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
    torch.library.register_vmap(_operator._schema.name, _vmap_conv2d(_operator))


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
            fold(input, in_dims[0], size, 1),
            [size * filters, *weight_size[1:]],
            fold(delta, in_dims[2], size, 1),
            *_geometry_of_groups(geometry, size),
            **options,
        )
        return unfold(grads, 0, (size, filters))

    return rule


for _operator in (conv2d_weight_grad, conv2d_weight_bias_grad):
    torch.library.register_vmap(_operator._schema.name, _vmap_weight_grad(_operator))


@torch.library.register_vmap("torch_convbp::activation")
def _(info: Any, in_dims: Any, input: Tensor, name: str, parameters: Sequence[float]) -> Any:
    return activation(input, name, parameters), in_dims[0]


@torch.library.register_vmap("torch_convbp::error_signal")
def _(info: Any, in_dims: Any, grad: Tensor, kept: Tensor, *row: Any) -> Any:
    size = info.batch_size
    folded = error_signal(fold(grad, in_dims[0], size, 0), fold(kept, in_dims[1], size, 0), *row)
    return unfold(folded, 0, (size, folded.shape[0] // size))


@torch.library.register_vmap("torch_convbp::error_signal_bias_grad")
def _(info: Any, in_dims: Any, grad: Tensor, kept: Tensor, *row: Any) -> Any:
    # One bias gradient for each index: the indices become channels.
    size = info.batch_size
    delta, bias_grad = error_signal_bias_grad(
        fold(grad, in_dims[0], size, 1), fold(kept, in_dims[1], size, 1), *row
    )
    channels = bias_grad.shape[0] // size
    return (
        (delta.unflatten(1, (size, channels)), bias_grad.unflatten(0, (size, channels))),
        (1, 0),
    )


@torch.library.register_vmap("torch_convbp::linear")
def _(info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    input_dim, weight_dim, bias_dim = in_dims[:3]
    # torch's own refuses some biases of several dimensions when the input has one more.
    if weight_dim is None and bias_dim is None and (bias is None or bias.dim() < 2):
        return linear(input.movedim(input_dim, 0), weight, bias), 0

    def batched(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)

    size = info.batch_size
    rows, filters = batched(input, input_dim), batched(weight, weight_dim)
    *outputs, features = filters.shape[1:]
    products = torch.matmul(
        rows.reshape(size, math.prod(rows.shape[1:-1]), rows.shape[-1]),
        filters.reshape(size, math.prod(outputs), features).mT,
    )
    output = products.reshape(*rows.shape[:-1], *outputs)
    if bias is not None:
        shifts = batched(bias, bias_dim)
        ones = (1,) * (output.dim() - shifts.dim())  # as one bias would, it fits from behind
        output = output + shifts.reshape(size, *ones, *shifts.shape[1:])
    return output, 0


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


# The layers alone, as in torch: a backward pass has its forward pass's dtypes, wherever it runs.
for _operator in (conv2d, conv2d_activation, conv2d_activation_pair, linear):
    register(_operator, "AutocastCPU", _autocast(_operator, "cpu"))
    register(_operator, "AutocastCUDA", _autocast(_operator, "cuda"))


# --- float32 on tensor cores ------------------------------------------------------------------


def _allow_tf32() -> bool:
    """Asked by csrc/cuda/torch/tf32.cpp for each convolution of float32: what torch's own would do.

    The new name of the setting; it also says what torch.backends.cudnn.allow_tf32 was set to.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


register(torch.ops.torch_convbp._allow_tf32.default, "CompositeExplicitAutograd", _allow_tf32)


# --- the dense layer ------------------------------------------------------------------------


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """L7's matrix product is torch's own, on every device."""
    shapes.check_is_tensor("linear", input=input, weight=weight)
    shapes.check_same_device("weight", weight, "input", input)
    if bias is not None:
        shapes.check_same_device("bias", bias, "input", input)
    return F.linear(input, weight, bias)


register(linear, "CompositeExplicitAutograd", _linear)


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


@register_flop_formula([torch.ops.torch_convbp.linear])
def _(input: Ints, weight: Ints, *_: Any, out_shape: Ints, **__: Any) -> int:
    return 2 * math.prod(out_shape) * weight[1]


# --- tensors that are not dense ---------------------------------------------------------------

# Where the dispatcher takes them; its own words name no argument.
NOT_DENSE = ("SparseCPU", "SparseCsrCPU", "MkldnnCPU", "QuantizedCPU", "AutogradNestedTensor")


def _only_dense(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = {n: a for n, a in zip(names, args, strict=False) if isinstance(a, Tensor)}
        shapes.check_is_tensor(operator._schema.name.split("::")[1], **tensors)

    return kernel


def refuse_what_is_not_dense(operators: Sequence[torch._ops.OpOverload]) -> None:
    for operator in operators:
        for key in NOT_DENSE:
            register(operator, key, _only_dense(operator))


refuse_what_is_not_dense((*CONVOLUTIONS, *ELEMENTWISE, linear))


# --- devices without kernels ----------------------------------------------------------------


def _no_cuda(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{operator._schema.name} got a CUDA tensor, but torch_convbp cannot run on CUDA here: "
            f"{_library.cuda_missing}. Move the model and its input to the CPU, or keep "
            "torch.nn's layers on the GPU (torch_convbp.revert(model))."
        )

    return kernel


def refuse_cuda(operators: Sequence[torch._ops.OpOverload]) -> None:
    """Where there are no CUDA kernels, a CUDA tensor is told what is missing."""
    if _library.cuda_missing is not None:
        for operator in operators:
            register(operator, "CUDA", _no_cuda(operator))


refuse_cuda((*CONVOLUTIONS, *ELEMENTWISE))
