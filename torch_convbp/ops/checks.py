"""Output-size arithmetic and argument checks.

The fake kernels call these functions; csrc/torch/checks.cpp checks the same for real tensors. Tests
compare the two. Messages are torch's own where torch has them.

In shapes N is the batch; an output map is M x N' (height, width).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import is_tensor_like

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Limits that csrc/torch/checks.h explains.
LARGEST_PARAMETER = 2**31 - 1
LARGEST_BYTES = 2**47

_SCALAR_TYPE_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
    torch.complex32: "ComplexHalf",
    torch.uint16: "UInt16",
    torch.uint32: "UInt32",
    torch.uint64: "UInt64",
    torch.float8_e4m3fn: "Float8_e4m3fn",
    torch.float8_e5m2: "Float8_e5m2",
}


# --- users' arguments, brought into one form -----------------------------------------------


def check_is_tensor(function: str, **arguments: Any) -> None:
    """Raises TypeError for a value that is no tensor, RuntimeError for a non-dense tensor."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_nested or value.is_quantized:
                kind = "a quantized tensor of " if value.is_quantized else ""
                kind = "a nested tensor of " if value.is_nested else kind
                raise RuntimeError(
                    f"{function}(): expected argument '{name}' to be a dense tensor "
                    f"(layout torch.strided), but got {kind}layout {value.layout}"
                )
        elif not is_tensor_like(value) or isinstance(value, type):
            raise TypeError(
                f"{function}(): argument '{name}' must be Tensor, not {type(value).__name__}"
            )


def check_is_module(function: str, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{function}(): argument 'model' must be a torch.nn.Module, not {type(model).__name__}"
        )


def check_int(function: str, name: str, value: Any) -> int:
    """value as an int of 64 bits; SymInts, which stand for ints in tracing, pass.

    Raises:
        TypeError: value is no int, or a bool.
        ValueError: value has more than 64 bits.
    """
    # In torch.compile, value may stand for any number, and a comparison would bound it.
    if type(value) is int and (torch.compiler.is_compiling() or -(2**63) <= value < 2**63):
        return value
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError  # as in torch
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}(): argument '{name}' must be made of ints, "
            f"but got {value!r} ({type(value).__name__})"
        ) from None
    if not torch.compiler.is_compiling() and not -(2**63) <= number < 2**63:
        raise ValueError(
            f"{function}(): Overflow when unpacking argument '{name}': expected 64-bit ints, "
            f"but got {number}"
        )
    return number


def is_sequence(value: Any) -> bool:
    """A sequence, but not of characters or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def check_size(function: str, name: str, value: Any) -> list[int]:
    """A sequence of ints (a torch.Size, say) as a list. Raises as check_int."""
    if not is_sequence(value):
        # A tensor in the place of its shape is not printed element by element.
        got = "a Tensor" if isinstance(value, Tensor) else f"{value!r} ({type(value).__name__})"
        raise TypeError(
            f"{function}(): argument '{name}' must be a sequence of ints, but got {got}"
        )
    return [check_int(function, name, v) for v in value]


def _ints(function: str, name: str, value: Any) -> list[int]:
    """An int or a sequence of ints as a list."""
    if not is_sequence(value):
        value = (value,)
    return [check_int(function, name, v) for v in value]


# Messages of torch for a value that is no pair, of a convolution and of a pooling.
CONVOLUTION_PAIR = (
    "expected {name} to be a single integer value or a list of 2 values to match the "
    "convolution dimensions"
)
POOLING_PAIR = "{function}: {name} must either be a single int, or a tuple of two ints"


def pair(function: str, name: str, value: Any, words: str = CONVOLUTION_PAIR) -> tuple[int, int]:
    """An int or a sequence of one or two ints as (height, width).

    Raises:
        TypeError, ValueError: as check_int.
        RuntimeError: value has no ints, or more than two.
    """
    if type(value) is tuple and len(value) == 2:  # a layer's case, first since it is cheapest
        height, width = value
        return check_int(function, name, height), check_int(function, name, width)
    ints = _ints(function, name, value)
    if len(ints) not in (1, 2):
        expected = words.format(function=function, name=name)
        raise RuntimeError(f"{expected}, but got {name}={ints}")
    return ints[0], ints[-1]


def check_bool(function: str, name: str, value: Any) -> bool:
    """value; raises TypeError if it is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{function}(): argument '{name}' must be bool, not {type(value).__name__}")
    return value


def expand_padding(
    function: str,
    padding: Any,
    weight_size: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> list[int]:
    """int, pair, 'same' or 'valid' as [top, bottom, left, right]."""
    if not isinstance(padding, str):
        height, width = pair(function, "padding", padding)
        return [height, height, width, width]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same":
        raise RuntimeError(
            f"Invalid padding string: '{padding}', expected 'same', 'valid', an int or two ints"
        )
    if stride != (1, 1):
        raise RuntimeError(
            f"padding='same' is not supported for strided convolutions, but got stride={stride}"
        )
    result = []
    for size, step in zip(weight_size[2:], dilation, strict=True):
        total = step * (size - 1)
        result += [total // 2, total - total // 2]  # an odd total pads one more at the end
    return result


def geometry(
    function: str,
    weight_size: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> tuple[Any, ...]:
    """stride, padding, dilation and groups in the operators' form."""
    stride = pair(function, "stride", stride)
    dilation = pair(function, "dilation", dilation)
    padding = expand_padding(function, padding, weight_size, stride, dilation)
    return stride, padding, dilation, check_int(function, "groups", groups)


def check_dim(function: str, name: str, size: Sequence[int]) -> None:
    """Raises RuntimeError for a size that is no map's: [K, H, W], or [N, K, H, W] with a batch."""
    if len(size) not in (3, 4):
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) {name} to {function}, "
            f"but got {name} of size: {list(size)}"
        )


def check_pool_dim(function: str, size: Sequence[int]) -> None:
    if len(size) not in (3, 4):
        raise RuntimeError(
            f"{function}(): non-empty 3D or 4D (batch mode) tensor expected for input, "
            f"but got input of size: {list(size)}"
        )


def check_linear_dim(input_size: Sequence[int], weight_size: Sequence[int]) -> None:
    if len(input_size) < 1 or len(weight_size) not in (1, 2):
        raise RuntimeError(
            "both arguments to linear need to be at least 1D, and weight at most 2D, but got "
            f"input of size {list(input_size)} and weight of size {list(weight_size)}"
        )


def check_same_dim(
    function: str, name: str, size: Sequence[int], other_name: str, other_size: Sequence[int]
) -> None:
    """Raises RuntimeError where one of the two has a batch and the other has none."""
    if len(size) != len(other_size):
        raise RuntimeError(
            f"Expected {name} and {other_name} of {function} to be both batched (4D) or both "
            f"unbatched (3D), but got {name} of size {list(size)} and {other_name} of size "
            f"{list(other_size)}"
        )


def check_weight_dim(weight_size: Sequence[int]) -> None:
    """Raises RuntimeError for a size that is no filter bank's."""
    if len(weight_size) != 4:
        raise RuntimeError(
            "Expected 4D weight [out_channels, in_channels/groups, kernel_height, kernel_width] "
            f"to conv2d, but got weight of size: {list(weight_size)}"
        )


# --- what the operators check ---------------------------------------------------------------


def _check(condition: Any, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_parameter(name: str, values: Sequence[int], count: int, order: str) -> None:
    _check(
        len(values) == count,
        f"expected {name} to be a list of {count} values {order}, but got {name}={list(values)}",
    )
    _check(
        not any(v > LARGEST_PARAMETER for v in values),
        f"{name} is too large: expected at most {LARGEST_PARAMETER}, but got {name}={list(values)}",
    )


def conv2d_output_size(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    element_bytes: int,
) -> list[int]:
    """Size [N, O, M, N'] of conv2d's output.

    Shapes: input_size [N, K, H, W]; weight_size [O, K / groups, R, S]; stride and dilation
    (height, width); padding (top, bottom, left, right).

    Raises:
        RuntimeError: the arguments describe no convolution; the message names the argument.
    """
    input_size, weight_size = list(input_size), list(weight_size)
    stride, padding, dilation = list(stride), list(padding), list(dilation)
    _check(
        len(input_size) == 4,
        f"Expected 4D (batched) input to conv2d, but got input of size: {input_size}",
    )
    check_weight_dim(weight_size)
    _check(
        not any(v < 0 for v in input_size),
        f"Expected non-negative input sizes, but got input of size: {input_size}",
    )
    # Symbolic sizes are not compared with large numbers: a graph would store the bound.
    _check(
        not any(isinstance(v, int) and v > LARGEST_BYTES for v in input_size),
        f"input is too large: expected sizes of at most {LARGEST_BYTES}, "
        f"but got input of size: {input_size}",
    )
    _check(
        not any(v > LARGEST_PARAMETER for v in weight_size),
        f"weight is too large: expected sizes of at most {LARGEST_PARAMETER}, "
        f"but got weight of size: {weight_size}",
    )
    _check(
        not any(v < 0 for v in weight_size),
        f"Expected non-negative weight sizes, but got weight of size: {weight_size}",
    )
    _check(groups > 0, f"non-positive groups is not supported, but got groups={groups}")
    _check_parameter("stride", stride, 2, "(height, width)")
    _check(
        not any(v < 1 for v in stride),
        f"non-positive stride is not supported, but got stride={stride}",
    )
    _check_parameter("padding", padding, 4, "(top, bottom, left, right)")
    _check(
        not any(v < 0 for v in padding),
        f"negative padding is not supported, but got padding={padding} (top, bottom, left, right)",
    )
    _check_parameter("dilation", dilation, 2, "(height, width)")
    _check(
        not any(v < 1 for v in dilation),
        f"dilation should be greater than zero, but got dilation={dilation}",
    )
    _check(
        weight_size[0] >= groups,
        f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
        f"but got weight of size {weight_size} instead",
    )
    _check(
        weight_size[0] % groups == 0,
        f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
        f"but got weight of size {weight_size} instead",
    )
    _check(
        weight_size[2] > 0 and weight_size[3] > 0,
        f"Expected weight to have a kernel of at least 1 x 1, but got weight of size {weight_size}",
    )
    _check(
        input_size[1] == weight_size[1] * groups,
        f"Given groups={groups}, weight of size {weight_size}, expected input{input_size} to have "
        f"{weight_size[1] * groups} channels, but got {input_size[1]} channels instead",
    )
    _check(
        input_size[2] > 0 and input_size[3] > 0,
        f"Only zero batch or zero channel inputs are supported, but got input shape: {input_size}",
    )
    padded = [input_size[2 + i] + padding[2 * i] + padding[2 * i + 1] for i in range(2)]
    extent = [dilation[i] * (weight_size[2 + i] - 1) + 1 for i in range(2)]
    _check(
        extent[0] <= padded[0] and extent[1] <= padded[1],
        f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
        f"Kernel size: ({extent[0]} x {extent[1]}). "
        "Kernel size can't be greater than actual input size",
    )
    output_size = [input_size[0], weight_size[0]]
    output_size += [(padded[i] - extent[i]) // stride[i] + 1 for i in range(2)]
    _check(
        _fits(output_size, element_bytes),
        f"the output of size {output_size} would not fit into the address space; it comes of "
        f"input{input_size} with padding={padding} (top, bottom, left, right)",
    )
    return output_size


def _fits(size: Sequence[int], element_bytes: int) -> bool:
    """Does a tensor fit the address space? Symbolic sizes count as fitting."""
    known = all(isinstance(length, int) for length in size)
    return not known or math.prod(size) * element_bytes <= LARGEST_BYTES


def check_fits(size: Sequence[int], element_bytes: int) -> None:
    _check(
        _fits(size, element_bytes),
        f"the result of size {list(size)} would not fit into the address space",
    )


def _type_name(dtype: torch.dtype) -> str:
    """The dtype's name in C++."""
    return _SCALAR_TYPE_NAMES.get(dtype, str(dtype))


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    _check(
        tensor.device == other.device,
        f"Expected all tensors to be on the same device, but got {name} on {tensor.device} and "
        f"{other_name} on {other.device}",
    )


def check_tensors(op: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError unless all tensors have the first one's device and dtype, in DTYPES."""
    check_alike(op, **tensors)
    name, first = next(iter(tensors.items()))
    assert first is not None
    _check(
        first.dtype in DTYPES,
        f"\"{op}\" not implemented for '{_type_name(first.dtype)}': expected {name} of dtype "
        "torch.float32, torch.float64, torch.bfloat16 or torch.float16",
    )


def check_alike(op: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError unless all tensors have the first one's device and dtype."""
    name, first = next(iter(tensors.items()))
    assert first is not None
    type_name = _type_name(first.dtype)
    for other_name, other in tensors.items():
        if other is None:
            continue
        check_same_device(other_name, other, name, first)
        _check(
            other.dtype == first.dtype,
            f"{op}(): {name} type ({type_name}) and {other_name} type ({_type_name(other.dtype)}) "
            "should be the same",
        )


def check_bias(bias_size: Sequence[int], weight_size: Sequence[int]) -> None:
    """Raises RuntimeError unless the bias has one element for each filter."""
    _check(
        list(bias_size) == [weight_size[0]],
        f"Given weight of size {list(weight_size)}, expected bias to be 1-dimensional with "
        f"{weight_size[0]} elements, but got bias of size {list(bias_size)} instead",
    )


def check_same_size(name: str, size: Sequence[int], like: str, expected: Sequence[int]) -> None:
    """Raises RuntimeError where the tensor ``name`` does not have the size of ``like``."""
    _check(
        list(size) == list(expected),
        f"Expected {name} to have the size of {like}, {list(expected)}, "
        f"but got {name} of size {list(size)}",
    )


def check_has_channels(saved_size: Sequence[int]) -> None:
    """Raises RuntimeError where dimension 1, the bias gradient's, is missing."""
    _check(
        len(saved_size) >= 2,
        f"Expected saved to have channels in dimension 1, but got saved of size {list(saved_size)}",
    )


def pool2d_output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Size [N, C, M, N'] of a pooling's output.

    Shapes: input_size [N, C, H, W]; other arguments (height, width).

    Raises:
        RuntimeError: the arguments describe no pooling; the message names the argument.
    """
    for name, values in (
        ("kernel_size", kernel_size),
        ("stride", stride),
        ("padding", padding),
        ("dilation", dilation),
    ):
        _check_parameter(name, values, 2, "(height, width)")
    kernel, step, pad, spread = (list(v) for v in (kernel_size, stride, padding, dilation))
    _check(
        all(v > 0 for v in kernel),
        f"kernel size should be greater than zero, but got kernel_size={kernel}",
    )
    _check(
        kernel[0] * kernel[1] <= LARGEST_PARAMETER,
        f"kernel_size is too large: expected at most {LARGEST_PARAMETER} positions, "
        f"but got kernel_size={kernel}",
    )
    _check(all(v != 0 for v in step), f"stride should not be zero, but got stride={step}")
    _check(all(v > 0 for v in step), f"stride should be greater than zero, but got stride={step}")
    _check(all(v >= 0 for v in pad), f"pad must be non-negative, but got padding={pad}")
    _check(
        all(v > 0 for v in spread),
        f"dilation should be greater than zero, but got dilation={spread}",
    )
    for axis in range(2):
        extent = spread[axis] * (kernel[axis] - 1) + 1
        _check(
            pad[axis] <= extent // 2,
            "pad should be at most half of effective kernel size, but got "
            f"padding={pad}, kernel_size={kernel} and dilation={spread}",
        )
        _check(
            pad[axis] <= kernel[axis] // 2,
            "pad should be smaller than or equal to half of kernel size, but got "
            f"padding={pad} and kernel_size={kernel}",
        )
    size = list(input_size)
    _check(
        len(size) == 4
        and size[0] >= 0
        and all(v > 0 for v in size[1:])
        and not any(isinstance(v, int) and v > LARGEST_BYTES for v in size),
        "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, "
        f"but got:{size}",
    )
    result = size[:2]
    for axis in range(2):
        extent = spread[axis] * (kernel[axis] - 1) + 1
        room = size[2 + axis] + 2 * pad[axis] - extent
        if ceil_mode:
            room += step[axis] - 1
        out = room // step[axis] + 1 if room >= 0 else 0
        # The last window of ceil_mode must still start inside the input or before it.
        if ceil_mode and (out - 1) * step[axis] >= size[2 + axis] + pad[axis]:
            out -= 1
        result.append(out)
    channels, height, width = size[1:]
    _check(
        result[2] > 0 and result[3] > 0,
        f"Given input size: ({channels}x{height}x{width}). Calculated output size: "
        f"({channels}x{result[2]}x{result[3]}). Output size is too small "
        f"for kernel_size={kernel} and dilation={spread}",
    )
    return result


def offset_dtype(kernel_size: Sequence[int]) -> torch.dtype:
    """The type of max pooling's offsets: bytes where all offsets and "nowhere" fit."""
    return torch.uint8 if kernel_size[0] * kernel_size[1] < 256 else torch.int32


def check_divisor(divisor_override: int | None) -> None:
    """Raises RuntimeError for a divisor of 0."""
    _check(divisor_override != 0, "divisor must be not zero, but got divisor_override=0")


def check_offset(
    offset: Tensor, like: str, kernel_size: Sequence[int], output_size: Sequence[int], device: Any
) -> None:
    """Raises RuntimeError for offsets of another pooling, or not on the device of ``like``."""
    dtype = offset_dtype(kernel_size)
    _check(
        offset.device == device,
        f"Expected all tensors to be on the same device, but got offset on {offset.device} and "
        f"{like} on {device}",
    )
    _check(
        offset.dtype == dtype,
        f"Expected offset of type {_type_name(dtype)} for "
        f"kernel_size={list(kernel_size)}, "
        f"but got {_type_name(offset.dtype)}",
    )
    check_same_size("offset", offset.shape, "the output", output_size)
