"""Bad input: torch's exception type, and a message that names the argument.

Checks are said twice, in C++ for real tensors and in Python for fake ones: every case of
FUNCTIONAL that reaches them runs on both and must read the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from twins import OPERATOR_NAMES

import torch_convbp as bp

pytestmark = pytest.mark.every_device

f = bp.functional


def x(*size: int, **kwargs: Any) -> Tensor:
    return torch.ones(size or (2, 3, 8, 8), **kwargs)


def w(*size: int, **kwargs: Any) -> Tensor:
    return torch.ones(size or (4, 3, 3, 3), **kwargs)


def without_memory(tensor: Tensor) -> Tensor:
    """What is left of a tensor whose storage was taken away, as FSDP does."""
    tensor.untyped_storage().resize_(0)
    return tensor


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, about each of these
    STRANGE = {
        "sparse": x().to_sparse(),
        "sparse_csr": torch.ones(3, 3).to_sparse_csr(),
        "mkldnn": x().to_mkldnn(),
        "quantized": torch.quantize_per_tensor(x(), 1.0, 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(3, 8, 8)]),
        "jagged": torch.nested.nested_tensor([torch.ones(3, 8)], layout=torch.jagged),
    }


# name: (arguments of conv2d, keyword arguments, exception type, text of the message).
# The type is torch's own where torch raises; NotImplementedError is a RuntimeError.
FUNCTIONAL: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "wrong_channels": ((x(2, 4, 8, 8), w()), {}, RuntimeError,
        r"expected input\[2, 4, 8, 8\] to have 3 channels, but got 4 channels instead"),
    "input_1d": ((x(8), w()), {}, RuntimeError,
        r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d, but got .*size: \[8\]"),
    "input_2d": ((x(8, 8), w()), {}, RuntimeError, r"input of size: \[8, 8\]"),
    "input_5d": ((x(1, 2, 3, 8, 8), w()), {}, RuntimeError, r"input of size: \[1, 2, 3, 8, 8\]"),
    "weight_3d": ((x(), w(3, 3, 3)), {}, RuntimeError, r"4D weight .* weight of size: \[3, 3, 3\]"),
    "weight_dtype": ((x(dtype=torch.float64), w()), {}, RuntimeError,
        r"conv2d\(\): input type \(Double\) and weight type \(Float\) should be the same"),
    "bias_dtype": ((x(), w(), torch.ones(4, dtype=torch.float64)), {}, RuntimeError,
        r"input type \(Float\) and bias type \(Double\) should be the same"),
    "integers": ((x(dtype=torch.int64), w(dtype=torch.int64)), {}, RuntimeError,
        r'"conv2d" not implemented for \'Long\': expected input of dtype torch.float32'),
    "booleans": ((x(dtype=torch.bool), w(dtype=torch.bool)), {}, RuntimeError,
        r'"conv2d" not implemented for \'Bool\''),
    "stride_beyond_64_bits": ((x(), w()), {"stride": 2**63}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'stride': expected 64-bit ints, but got 92233720368547"),
    "padding_beyond_64_bits": ((x(), w()), {"padding": -(2**63) - 1}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'padding'"),
    "groups_beyond_64_bits": ((x(), w()), {"groups": 2**63}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'groups'"),
    "dilation_beyond_64_bits": ((x(), w()), {"dilation": -(2**64)}, (ValueError, RuntimeError),
        r"Overflow when unpacking argument 'dilation'"),
    "kernel_larger_than_input": ((x(2, 3, 2, 2), w()), {}, RuntimeError,
        r"input size per channel: \(2 x 2\). Kernel size: \(3 x 3\). Kernel size can't be greater"),
    "dilated_kernel_larger_than_input": ((x(), w()), {"dilation": (1, 4)}, RuntimeError,
        r"Kernel size: \(3 x 9\). Kernel size can't be greater than actual input size"),
    "groups_do_not_divide_input": ((x(), w()), {"groups": 2}, RuntimeError,
        r"Given groups=2, weight of size \[4, 3, 3, 3\], expected input\[2, 3, 8, 8\] to have 6"),
    "groups_do_not_divide_output": ((x(2, 9, 8, 8), w()), {"groups": 3}, RuntimeError,
        r"Given groups=3, expected weight to be divisible by 3 at dimension 0"),
    "groups_beyond_output": ((x(2, 18, 8, 8), w()), {"groups": 6}, RuntimeError,
        r"Given groups=6, expected weight to be at least 6 at dimension 0"),
    "groups_0": ((x(), w()), {"groups": 0}, RuntimeError, r"non-positive groups .*groups=0"),
    "groups_negative": ((x(), w()), {"groups": -1}, RuntimeError, r"non-positive groups"),
    "groups_float": ((x(), w()), {"groups": 1.0}, TypeError, r"argument 'groups' .* got 1.0"),
    "stride_0": ((x(), w()), {"stride": 0}, RuntimeError,
        r"non-positive stride is not supported, but got stride=\[0, 0\]"),
    "stride_negative": ((x(), w()), {"stride": (1, -2)}, RuntimeError, r"stride=\[1, -2\]"),
    "stride_float": ((x(), w()), {"stride": 1.5}, TypeError, r"argument 'stride' .* got 1.5"),
    "stride_text": ((x(), w()), {"stride": "2"}, TypeError, r"argument 'stride' .* got '2'"),
    "stride_bool": ((x(), w()), {"stride": True}, TypeError, r"'stride' .* got True \(bool\)"),
    "groups_bool": ((x(), w()), {"groups": True}, TypeError, r"'groups' .* got True \(bool\)"),
    "padding_bools": ((x(), w()), {"padding": (1, np.True_)}, TypeError, r"'padding' .*bool"),
    "stride_3": ((x(), w()), {"stride": (1, 1, 1)}, RuntimeError,
        r"expected stride to be a single integer value or a list of 2 values .*\[1, 1, 1\]"),
    "stride_none": ((x(), w()), {"stride": None}, TypeError, r"argument 'stride' .* got None"),
    "dilation_0": ((x(), w()), {"dilation": 0}, RuntimeError,
        r"dilation should be greater than zero, but got dilation=\[0, 0\]"),
    "dilation_negative": ((x(), w()), {"dilation": -1}, RuntimeError, r"dilation=\[-1, -1\]"),
    "padding_negative": ((x(), w()), {"padding": -1}, RuntimeError,
        r"negative padding is not supported, but got padding=\[-1, -1, -1, -1\]"),
    "padding_absurd": ((x(), w()), {"padding": 2**40}, RuntimeError,
        r"padding is too large: expected at most 2147483647, but got .*1099511627776"),
    "padding_beyond_memory": ((x(), w()), {"padding": 2**30}, RuntimeError,
        r"the output of size .* would not fit into the address space; .* padding="),
    "padding_float": ((x(), w()), {"padding": 1.5}, TypeError, r"argument 'padding' .* got 1.5"),
    "padding_text": ((x(), w()), {"padding": "full"}, RuntimeError,
        r"Invalid padding string: 'full', expected 'same', 'valid'"),
    "padding_same_with_stride": ((x(), w()), {"padding": "same", "stride": 2}, RuntimeError,
        r"padding='same' is not supported for strided convolutions"),
    "padding_3": ((x(), w()), {"padding": (1, 1, 1)}, RuntimeError, r"expected padding to be"),
    "bias_size": ((x(), w(), torch.ones(5)), {}, RuntimeError,
        r"expected bias to be 1-dimensional with 4 elements, but got bias of size \[5\] instead"),
    "bias_2d": ((x(), w(), torch.ones(4, 1)), {}, RuntimeError, r"bias of size \[4, 1\]"),
    "no_filters": ((x(), w(0, 3, 3, 3)), {}, RuntimeError,
        r"expected weight to be at least 1 at dimension 0, but got weight of size \[0, 3, 3, 3\]"),
    "no_taps": ((x(), w(4, 3, 0, 3)), {}, RuntimeError, r"weight to have a kernel of at least 1"),
    "no_rows": ((x(2, 3, 0, 8), w()), {"padding": 2}, RuntimeError,
        r"Only zero batch or zero channel inputs are supported, but got input shape: \[2, 3, 0, 8"),
    "numpy_input": ((np.ones((2, 3, 8, 8), np.float32), w()), {}, TypeError,
        r"conv2d\(\): argument 'input' must be Tensor, not ndarray"),
    "numpy_weight": ((x(), np.ones((4, 3, 3, 3), np.float32)), {}, TypeError,
        r"argument 'weight' must be Tensor, not ndarray"),
    "list_bias": ((x(), w(), [1.0] * 4), {}, TypeError,
        r"argument 'bias' must be Tensor, not list"),
    "none_input": ((None, w()), {}, TypeError, r"argument 'input' must be Tensor, not NoneType"),
    "sparse_input": ((x().to_sparse(), w()), {}, RuntimeError,
        r"argument 'input' to be a dense tensor .* layout torch.sparse_coo"),
    "sparse_weight": ((x(), w().to_sparse()), {}, RuntimeError, r"argument 'weight' to be a dense"),
    "nested_input": ((STRANGE["nested"], w()), {}, RuntimeError,
        r"argument 'input' to be a dense tensor .* got a nested tensor"),
    "quantized_input": ((STRANGE["quantized"], w()), {},
        RuntimeError, r"argument 'input' to be a dense tensor .* got a quantized tensor"),
    "input_without_memory": ((without_memory(x()), w()), {}, RuntimeError,
        r"Expected input of size \[2, 3, 8, 8\] to have memory .* storage has 0 bytes"),
    "weight_without_memory": ((x(), without_memory(w())), {}, RuntimeError,
        r"Expected weight of size \[4, 3, 3, 3\] to have memory"),
    "tensor_class": ((torch.Tensor, w()), {}, TypeError, r"argument 'input' must be Tensor, not"),
    "stride_bytes": ((x(), w()), {"stride": b"11"}, TypeError, r"argument 'stride' .* got b'11'"),
    "stride_nested": ((x(), w()), {"stride": ((1, 1), (1, 1))}, TypeError,
        r"argument 'stride' must be made of ints, but got \(1, 1\)"),
    "stride_nan": ((x(), w()), {"stride": float("nan")}, TypeError, r"'stride' .* got nan"),
    "mkldnn_input": ((x().to_mkldnn(), w()), {}, RuntimeError, r"layout torch._mkldnn"),
}  # fmt: skip

# nn.Conv2d says nothing here, or not this.
TORCH_ACCEPTS = {"integers", "mkldnn_input"}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional(name: str) -> None:
    arguments, keywords, exception, text = FUNCTIONAL[name]
    with pytest.raises(exception, match=text):
        f.conv2d(*arguments, **keywords)
    if name not in TORCH_ACCEPTS:
        with pytest.raises(exception):
            F.conv2d(*arguments, **keywords)


def is_plain(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return dense and not value.is_nested and not value.is_quantized


# The functions' own checks come first for these.
STOPPED_BEFORE = {
    "input_1d", "input_2d", "input_5d", "weight_3d", "stride_3", "padding_3", "padding_text",
    "padding_same_with_stride",
}  # fmt: skip
REACH_THE_OPERATORS = [
    name
    for name, (arguments, _, exception, _) in FUNCTIONAL.items()
    if exception is RuntimeError
    and all(is_plain(a) for a in arguments)
    and name not in STOPPED_BEFORE
    and "without_memory" not in name
]


@pytest.mark.parametrize("name", REACH_THE_OPERATORS)
def test_real_and_fake_tensors_get_the_same_message(name: str) -> None:
    arguments, keywords, exception, _ = FUNCTIONAL[name]
    with pytest.raises(exception) as real:
        f.conv2d(*arguments, **keywords)
    with pytest.raises(exception) as fake:
        f.conv2d(*(a.to("meta") for a in arguments), **keywords)
    assert str(fake.value) == str(real.value)


GEOMETRY = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
SIZES = ((2, 3, 8, 8), (4, 3, 3, 3))  # of input and weight

# Calls of the operators themselves: name: (call, text). Each runs on real and on meta tensors.
OPERATORS: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "input_3d": (lambda o, d: o.conv2d(x(3, 8, 8, device=d), w(device=d), None, *GEOMETRY),
        r"Expected 4D \(batched\) input to conv2d, but got input of size: \[3, 8, 8\]"),
    "weight_3d": (lambda o, d: o.conv2d(x(device=d), w(3, 3, 3, device=d), None, *GEOMETRY),
        r"Expected 4D weight .* weight of size: \[3, 3, 3\]"),
    "stride_1": (lambda o, d: o.conv2d(x(device=d), w(device=d), None, (1,), *GEOMETRY[1:]),
        r"expected stride to be a list of 2 values \(height, width\), but got stride=\[1\]"),
    "padding_2": (lambda o, d: o.conv2d(x(device=d), w(device=d), None, 1, (1, 1), 1, 1),
        r"expected padding to be a list of 4 values \(top, bottom, left, right\)"),
    "input_size_3": (lambda o, d: o.conv2d_input_grad([3, 8, 8], w(device=d),
        x(2, 4, 6, 6, device=d), *GEOMETRY), r"input of size: \[3, 8, 8\]"),
    "input_size_negative": (lambda o, d: o.conv2d_input_grad([2, 3, -8, 8], w(device=d),
        x(2, 4, 6, 6, device=d), *GEOMETRY), r"non-negative input sizes"),
    "delta_size": (lambda o, d: o.conv2d_input_grad([2, 3, 8, 8], w(device=d),
        x(2, 4, 6, 5, device=d), *GEOMETRY),
        r"delta to have the size of conv2d's output, \[2, 4, 6, 6\], but got .*\[2, 4, 6, 5\]"),
    "delta_batch": (lambda o, d: o.conv2d_weight_grad(x(device=d), [4, 3, 3, 3],
        x(1, 4, 6, 6, device=d), *GEOMETRY), r"but got delta of size \[1, 4, 6, 6\]"),
    "delta_dtype": (lambda o, d: o.conv2d_weight_grad(x(device=d), [4, 3, 3, 3],
        x(2, 4, 6, 6, device=d, dtype=torch.float64), *GEOMETRY),
        r"input type \(Float\) and delta type \(Double\) should be the same"),
    "weight_size_negative": (lambda o, d: o.conv2d_weight_bias_grad(x(device=d), [4, 3, -3, 3],
        x(2, 4, 6, 6, device=d), *GEOMETRY), r"non-negative weight sizes"),
    "weight_size_3": (lambda o, d: o.conv2d_weight_bias_grad(x(device=d), [4, 3, 3],
        x(2, 4, 6, 6, device=d), *GEOMETRY), r"weight of size: \[4, 3, 3\]"),
    "weight_size_absurd": (lambda o, d: o.conv2d_weight_grad(x(device=d), [4, 3, 2**33, 3],
        x(2, 4, 6, 6, device=d), (1, 1), (0, 0, 0, 0), (2**31 - 1, 1), 1),
        r"weight is too large: expected sizes of at most 2147483647"),
    "input_size_absurd": (lambda o, d: o.conv2d_input_grad([2, 3, 2**63 - 1, 8], w(device=d),
        x(2, 4, 6, 6, device=d), 1, 1, 1, 1),
        r"input is too large: expected sizes of at most 140737488355328"),
    "memory_format": (lambda o, d: o.conv2d_input_grad([2, 3, 8, 8], w(device=d),
        x(2, 4, 6, 6, device=d), *GEOMETRY, memory_format=torch.preserve_format),
        r"memory_format to be torch.contiguous_format or torch.channels_last"),
    "grad_size": (lambda o, d: o.error_signal(x(1, 1, device=d), x(1, 2, device=d), "relu", []),
        r"Expected grad to have the size"),
    "grad_dtype": (lambda o, d: o.error_signal(x(1, 2, device=d, dtype=torch.float64),
        x(1, 2, device=d), "relu", []), r"should be the same"),
    "kept_1d": (lambda o, d: o.error_signal_bias_grad(x(2, device=d), x(2, device=d), "relu", []),
        r"saved to have channels in dimension 1"),
    "activation_of_integers": (lambda o, d: o.activation(x(2, device=d, dtype=torch.int32),
        "relu", []), r"not implemented for 'Int'"),
    "activation_name": (lambda o, d: o.activation(x(2, device=d), "no", []),
        r'activation to be one of .*got "no"'),
    "activation_parameters": (lambda o, d: o.activation(x(2, device=d), "relu", [1.0]),
        r"Expected 0 parameters of activation relu"),
    "no_weight": (lambda o, d: o.conv2d(x(), None, None, *GEOMETRY),
        r"argument 'weight' must be Tensor, not None"),
    "no_delta": (lambda o, d: o.conv2d_input_grad((2, 3, 8, 8), w(), None, *GEOMETRY),
        r"argument 'delta' must be Tensor, not None"),
    "no_offset": (lambda o, d: o.max_pool2d_gather(x(), None, 2, 2, 0, 1, False),
        r"argument 'offset' must be Tensor, not None"),
    "backward_grad_size": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 5, device=d), None,
        x(device=d), w(device=d), *SIZES, *GEOMETRY, "", [], True),
        r"Expected grad to have the size of conv2d's output, \[2, 4, 6, 6\]"),
    "backward_saved_size": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 6, device=d),
        x(1, 4, 6, 6, device=d), x(device=d), w(device=d), *SIZES, *GEOMETRY, "relu", [], True),
        r"Expected saved to have the size of conv2d's output, \[2, 4, 6, 6\]"),
    "backward_input_size": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 6, device=d), None,
        x(1, 3, 8, 8, device=d), None, *SIZES, *GEOMETRY, "", [], True),
        r"Expected input to have the size of input_size, \[2, 3, 8, 8\]"),
    "backward_weight_size": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 6, device=d), None,
        None, w(4, 3, 3, 2, device=d), *SIZES, *GEOMETRY, "", [], True),
        r"Expected weight to have the size of weight_size, \[4, 3, 3, 3\]"),
    "backward_dtypes": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 6, device=d), None,
        x(device=d, dtype=torch.float64), None, *SIZES, *GEOMETRY, "", [], True),
        r"grad type \(Float\) and input type \(Double\) should be the same"),
    "backward_activation": (lambda o, d: o.conv2d_backward(x(2, 4, 6, 6, device=d),
        x(2, 4, 6, 6, device=d), None, w(device=d), *SIZES, *GEOMETRY, "no", [], False),
        r'activation to be one of .*got "no"'),
    "integers": (lambda o, d: o.conv2d_weight_grad(x(device=d, dtype=torch.int32), [4, 3, 3, 3],
        x(2, 4, 6, 6, device=d, dtype=torch.int32), *GEOMETRY),
        r'"conv2d_weight_grad" not implemented for \'Int\''),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    call, text = OPERATORS[name]
    messages = []
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=text) as raised:
            call(torch.ops.torch_convbp, device)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("kind", STRANGE)
def test_operators_refuse_what_is_not_dense(kind: str) -> None:
    """Each operator, called directly with such a tensor in each place, names the place."""
    o = torch.ops.torch_convbp
    pool = ((2, 2), (2, 2), (0, 0), (1, 1), False)
    average = (*pool[:3], False, True, None)
    delta, small = x(2, 4, 6, 6), x(2, 3, 4, 4)
    relu, offset = ("relu", []), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    arguments: dict[str, tuple[Any, ...]] = {
        "conv2d": (x(), w(), x(4), *GEOMETRY),
        "conv2d_activation": (x(), w(), x(4), *GEOMETRY, *relu),
        "conv2d_activation_pair": (x(), w(), x(4), *GEOMETRY, *relu),
        "conv2d_input_grad": ((2, 3, 8, 8), w(), delta, *GEOMETRY),
        "conv2d_weight_grad": (x(), (4, 3, 3, 3), delta, *GEOMETRY),
        "conv2d_weight_bias_grad": (x(), (4, 3, 3, 3), delta, *GEOMETRY),
        "conv2d_backward": (delta, delta, x(), w(), *SIZES, *GEOMETRY, *relu, True),
        "activation": (x(), *relu),
        "error_signal": (x(), x(), *relu),
        "error_signal_bias_grad": (x(), x(), *relu),
        "linear": (x(), x(4, 8), x(4)),
        "max_pool2d": (x(), *pool),
        "max_pool2d_input_grad": ((2, 3, 8, 8), small, offset, *pool),
        "max_pool2d_gather": (x(), offset, *pool),
        "avg_pool2d": (x(), *average),
        "avg_pool2d_input_grad": ((2, 3, 8, 8), small, *average),
    }
    assert arguments.keys() == OPERATOR_NAMES
    for name, plain in arguments.items():
        operator = getattr(o, name).default
        operator(*plain)
        for place, value in enumerate(plain):
            argument = operator._schema.arguments[place]
            if isinstance(value, Tensor):
                function = "conv2d" if name.startswith("conv2d_activation") else name
                text = rf"{function}\(\): expected argument '{argument.name}' to be a dense tensor"
                with pytest.raises(RuntimeError, match=text):
                    operator(*plain[:place], STRANGE[kind], *plain[place + 1 :])


@pytest.mark.parametrize("name", ["conv2d_activation", "activation", "error_signal"])
def test_operators_check_activations(name: str) -> None:
    for activation, text in (
        (("nope", []), r"Expected activation to be one of .* got \"nope\""),
        (("leaky_relu", []), r"Expected 1 parameters of activation leaky_relu, but got 0"),
    ):
        for needs in (False, True):
            input = x(requires_grad=needs)
            arguments = {
                "conv2d_activation": (input, w(), None, *GEOMETRY),
                "activation": (input,),
                "error_signal": (input, x()),
            }[name]
            with pytest.raises(RuntimeError, match=text):
                getattr(torch.ops.torch_convbp, name)(*arguments, *activation)


LINEAR: dict[str, tuple[tuple[Any, ...], str]] = {
    "input_on_meta": ((x(2, 3, device="meta"), x(4, 3)), r"same device, but got weight on cpu"),
    "weight_on_meta": ((x(2, 3), x(4, 3, device="meta")), r"same device, but got weight on meta"),
    "bias_on_meta": ((x(2, 3), x(4, 3), x(4, device="meta")), r"same device, but got bias on meta"),
    "input_0d": ((torch.tensor(1.0), x(4, 3)), r"both arguments to linear need to be at least 1D"),
    "weight_3d": ((x(2, 3), x(1, 4, 3)), r"weight at most 2D, .* weight of size \[1, 4, 3\]"),
    "features": ((x(2, 5), x(4, 3)), r"shapes cannot be multiplied \(2x5 and 3x4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str) -> None:
    arguments, text = LINEAR[name]
    with pytest.raises(RuntimeError, match=text):
        f.linear(*arguments)


def test_linear_under_vmap_sees_the_sizes_of_one_sample() -> None:
    """Three numbers, one a sample, are no row of three features."""
    with pytest.raises(RuntimeError, match="need to be at least 1D"):
        torch.vmap(f.linear, (0, None))(x(3), x(4, 3))


GRADIENT_FUNCTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "input_size_text": (lambda: f.conv2d_input_grad("2388", w(), x(2, 4, 6, 6)), TypeError,
        r"argument 'input_size' must be a sequence of ints, but got '2388'"),
    "input_size_number": (lambda: f.conv2d_input_grad(8, w(), x(2, 4, 6, 6)), TypeError,
        r"argument 'input_size' must be a sequence of ints, but got 8"),
    "input_size_tensor": (lambda: f.conv2d_input_grad(x(2, 3, 8, 8), w(), x(2, 4, 6, 6)),
        TypeError, r"argument 'input_size' must be a sequence of ints, but got a Tensor$"),
    "input_size_floats": (lambda: f.conv2d_input_grad((2, 3, 8.0, 8), w(), x(2, 4, 6, 6)),
        TypeError, r"argument 'input_size' must be made of ints, but got 8.0"),
    "input_size_beyond_64_bits": (lambda: f.conv2d_input_grad((2, 3, 2**63, 8), w(),
        x(2, 4, 6, 6)), ValueError, r"Overflow when unpacking argument 'input_size'"),
    "delta_unbatched": (lambda: f.conv2d_input_grad((2, 3, 8, 8), w(), x(4, 6, 6)), RuntimeError,
        r"Expected input_size and delta .* both batched \(4D\) or both unbatched \(3D\)"),
    "delta_numpy": (lambda: f.conv2d_weight_grad(x(), (4, 3, 3, 3), np.ones((2, 4, 6, 6))),
        TypeError, r"conv2d_weight_grad\(\): argument 'delta' must be Tensor, not ndarray"),
    "weight_size_3": (lambda: f.conv2d_weight_grad(x(), (4, 3, 3), x(2, 4, 6, 6)), RuntimeError,
        r"Expected 4D weight .* weight of size: \[4, 3, 3\]"),
    "input_5d": (lambda: f.conv2d_weight_grad(x(1, 2, 3, 8, 8), (4, 3, 3, 3), x(2, 4, 6, 6)),
        RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d_weight_grad"),
    "stride_float": (lambda: f.conv2d_weight_grad(x(), (4, 3, 3, 3), x(2, 4, 6, 6), stride=1.5),
        TypeError, r"argument 'stride' must be made of ints"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENT_FUNCTIONS)
def test_gradient_functions(name: str) -> None:
    call, exception, text = GRADIENT_FUNCTIONS[name]
    with pytest.raises(exception, match=text):
        call()


# Arguments of ConvBP2d(3, 4, 3, ...): (changes, exception, text). What nn.Conv2d takes without
# a word is in test_compatibility_better.py.
CONSTRUCTOR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kernel_negative": ({"kernel_size": (3, -1)}, ValueError, r"kernel_size .*got \(3, -1\)"),
    "kernel_float": ({"kernel_size": 3.5}, TypeError, r"kernel_size .*got 3.5"),
    "kernel_text": ({"kernel_size": "3"}, TypeError, r"kernel_size .*got '3'"),
    "kernel_bool": ({"kernel_size": True}, TypeError, r"kernel_size .*got True"),
    "kernel_empty": ({"kernel_size": ()}, ValueError, r"kernel_size .*got \(\)"),
    "kernel_bytes": ({"kernel_size": b"33"}, TypeError, r"kernel_size .*got b'33'"),
    "kernel_float_tensor": ({"kernel_size": torch.tensor(3.0)}, TypeError, r"kernel_size .*got t"),
    "stride_beyond_64_bits": ({"stride": 2**63}, ValueError, r"stride must be at most 2147483647"),
    "in_channels_tensor": ({"in_channels": torch.tensor([3, 3])}, TypeError,
        r"in_channels must be .*got tensor"),
    "kernel_none": ({"kernel_size": None}, TypeError, r"kernel_size .*got None"),
    "stride_negative": ({"stride": -1}, ValueError, r"stride must be .*got -1"),
    "dilation_0": ({"dilation": (1, 0)}, ValueError, r"dilation must be .*got \(1, 0\)"),
    "padding_float": ({"padding": 0.5}, TypeError, r"padding must be .*got 0.5"),
    "padding_text": ({"padding": "full"}, ValueError, r"Invalid padding string 'full'"),
    "padding_same_with_stride": ({"padding": "same", "stride": 2}, ValueError, r"padding='same'"),
    "padding_mode": ({"padding_mode": "mirror"}, ValueError, r"padding_mode must be one of"),
    "groups_0": ({"groups": 0}, ValueError, r"groups must be .*got 0"),
    "groups_of_input": ({"groups": 2}, ValueError, r"in_channels must be divisible by groups"),
    "groups_of_output": ({"groups": 3}, ValueError, r"out_channels must be divisible by groups"),
    "in_channels_negative": ({"in_channels": -3}, ValueError, r"in_channels must be .*got -3"),
    "in_channels_float": ({"in_channels": 3.0}, TypeError, r"in_channels must be .*got 3.0"),
    "out_channels_0": ({"out_channels": 0}, ValueError, r"out_channels must be .*got 0"),
    "integer_dtype": ({"dtype": torch.int32}, RuntimeError, r"floating point"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_constructor(name: str) -> None:
    changes, exception, text = CONSTRUCTOR[name]
    with pytest.raises(exception, match=text):
        bp.ConvBP2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, **changes})


REST: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{
        f"{function.__name__}_of_none": (lambda f=function: f(None), TypeError,
            rf"{function.__name__}\(\): argument 'model' must be a torch.nn.Module, not NoneType")
        for function in (bp.convert, bp.revert, bp.fusions)
    },
    "record_of_none": (lambda: bp.record_error_signals(None).__enter__(), TypeError,
        r"record_error_signals\(\): argument 'model' must be a torch.nn.Module"),
    **{
        f"convert_{option}": (lambda o=option: bp.convert(nn.Conv2d(3, 4, 3), **{o: "no"}),
            TypeError, rf"convert\(\): argument '{option}' must be bool, not str")
        for option in ("pooling", "dense")
    },
    "algorithm": (lambda: setattr(bp.backends.cpu, "conv_algorithm", b"plain"), TypeError,
        r"conv_algorithm must be a str, not bytes"),
    "chosen_operator": (lambda: bp.backends.cpu.chosen_algorithm(x(), w(), operator="backward"),
        RuntimeError, 'operator: expected "forward", "input_grad" or "weight_grad", but got "back'),
    "chosen_operator_type": (lambda: bp.backends.cpu.chosen_algorithm(x(), w(), operator=1),
        TypeError, r"chosen_algorithm\(\): argument 'operator' must be str, not int"),
    "chosen_input": (lambda: bp.backends.cpu.chosen_algorithm([1.0], w()), TypeError,
        r"chosen_algorithm\(\): argument 'input' must be Tensor, not list"),
    "chosen_stride": (lambda: bp.backends.cpu.chosen_algorithm(x(), w(), 0), RuntimeError,
        r"non-positive stride is not supported, but got stride=\[0, 0\]"),
    "chosen_channels": (lambda: bp.backends.cpu.chosen_algorithm(x(), w(4, 2, 3, 3)), RuntimeError,
        r"expected input\[2, 3, 8, 8\] to have 2 channels, but got 3 channels"),
    "chosen_device": (lambda: bp.backends.cpu.chosen_algorithm(x(device="meta"), w()),
        RuntimeError, "all tensors to be on the same device, but got input on another .* than cpu"),
    "flip": (lambda: bp.lecture.flip(None), TypeError, r"flip\(\): argument 'w' must be Tensor"),
    "to_torch": (lambda: bp.lecture.to_torch(x(), None), TypeError, r"argument 'b' must be Tensor"),
    "from_torch": (lambda: bp.lecture.from_torch([1.0]), TypeError, r"'weight' must be Tensor"),
    "from_torch_1d": (lambda: bp.lecture.from_torch(x(2)), RuntimeError,
        r"Expected 4D weight of a convolution or 2D weight .* size: \[2\]"),
    "gradients_from_torch": (lambda: bp.lecture.gradients_from_torch(None), TypeError,
        r"'weight_grad' must be Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REST)
def test_the_rest(name: str) -> None:
    call, exception, text = REST[name]
    with pytest.raises(exception, match=text):
        call()


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_modes_refuse_what_torchs_refuse(mode: str) -> None:
    arguments = dict(kernel_size=3, padding=9, padding_mode=mode)
    for layer in (nn.Conv2d(3, 4, **arguments), bp.ConvBP2d(3, 4, **arguments)):
        with pytest.raises(RuntimeError, match=r"[Pp]adding"):
            layer(x())


def test_an_error_leaves_everything_usable() -> None:
    layer = bp.ConvBP2d(3, 4, 3)
    with pytest.raises(RuntimeError):
        layer(x(2, 5, 8, 8))
    with pytest.raises(
        RuntimeError, match=r"can't allocate memory: the result of size \[1073741824, 4, 38, 38\]"
    ):
        layer(torch.ones(1).expand(2**30, 3, 40, 40))  # an output of 25 terabytes
    assert layer(x()).shape == (2, 4, 6, 6)
