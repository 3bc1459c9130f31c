#include "torch/checks.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

namespace convbp {
namespace {

bool any_below(const Ints& values, int64_t least) {
  return std::any_of(values.begin(), values.end(), [&](int64_t v) { return v < least; });
}

bool any_above(const Ints& values, int64_t most) {
  return std::any_of(values.begin(), values.end(), [&](int64_t v) { return v > most; });
}

void check_parameter(const char* name, const Ints& values, size_t count, const char* order) {
  check(values.size() == count, "expected ", name, " to be a list of ", count, " values ", order,
        ", but got ", name, "=", text(values));
  check(!any_above(values, kLargestParameter), name, " is too large: expected at most ",
        kLargestParameter, ", but got ", name, "=", text(values));
}

}  // namespace

ConvProblem check_conv2d(const Ints& input_size, const Ints& weight_size, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups,
                         int64_t element_bytes) {
  check(input_size.size() == 4,
        "Expected 4D (batched) input to conv2d, but got input of size: ", text(input_size));
  check(weight_size.size() == 4,
        "Expected 4D weight [out_channels, in_channels/groups, kernel_height, kernel_width] to "
        "conv2d, but got weight of size: ",
        text(weight_size));
  check(!any_below(input_size, 0),
        "Expected non-negative input sizes, but got input of size: ", text(input_size));
  check(!any_above(input_size, kLargestBytes), "input is too large: expected sizes of at most ",
        kLargestBytes, ", but got input of size: ", text(input_size));
  check(!any_above(weight_size, kLargestParameter),
        "weight is too large: expected sizes of at most ", kLargestParameter,
        ", but got weight of size: ", text(weight_size));
  check(!any_below(weight_size, 0),
        "Expected non-negative weight sizes, but got weight of size: ", text(weight_size));
  check(groups > 0, "non-positive groups is not supported, but got groups=", groups);
  check_parameter("stride", stride, 2, "(height, width)");
  check(!any_below(stride, 1),
        "non-positive stride is not supported, but got stride=", text(stride));
  check_parameter("padding", padding, 4, "(top, bottom, left, right)");
  check(!any_below(padding, 0),
        "negative padding is not supported, but got padding=", text(padding),
        " (top, bottom, left, right)");
  check_parameter("dilation", dilation, 2, "(height, width)");
  check(!any_below(dilation, 1),
        "dilation should be greater than zero, but got dilation=", text(dilation));
  check(weight_size[0] >= groups, "Given groups=", groups, ", expected weight to be at least ",
        groups, " at dimension 0, but got weight of size ", text(weight_size), " instead");
  check(weight_size[0] % groups == 0, "Given groups=", groups,
        ", expected weight to be divisible by ", groups, " at dimension 0, but got weight of size ",
        text(weight_size), " instead");
  check(weight_size[2] > 0 && weight_size[3] > 0,
        "Expected weight to have a kernel of at least 1 x 1, but got weight of size ",
        text(weight_size));
  check(input_size[1] % groups == 0 && input_size[1] / groups == weight_size[1],
        "Given groups=", groups, ", weight of size ", text(weight_size), ", expected input",
        text(input_size), " to have ", weight_size[1] * groups, " channels, but got ",
        input_size[1], " channels instead");
  check(input_size[2] > 0 && input_size[3] > 0,
        "Only zero batch or zero channel inputs are supported, but got input shape: ",
        text(input_size));

  ConvProblem p;
  p.batch = input_size[0];
  p.groups = groups;
  p.in_channels = weight_size[1];
  p.out_channels = weight_size[0] / groups;
  int64_t padded[2], extent[2];
  for (const int axis : {kHeight, kWidth}) {
    p.in_size[axis] = input_size[2 + axis];
    p.kernel[axis] = weight_size[2 + axis];
    p.stride[axis] = stride[axis];
    p.pad[axis] = padding[2 * axis];
    p.dilation[axis] = dilation[axis];
    padded[axis] = p.in_size[axis] + padding[2 * axis] + padding[2 * axis + 1];
    extent[axis] = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
    p.out_size[axis] = (padded[axis] - extent[axis]) / p.stride[axis] + 1;
  }
  check(extent[0] <= padded[0] && extent[1] <= padded[1],
        "Calculated padded input size per channel: (", padded[0], " x ", padded[1],
        "). Kernel size: (", extent[0], " x ", extent[1],
        "). Kernel size can't be greater than actual input size");
  const Ints output_size{p.batch, weight_size[0], p.out_size[0], p.out_size[1]};
  check(bytes_of(output_size, element_bytes) <= static_cast<double>(kLargestBytes),
        "the output of size ", text(output_size),
        " would not fit into the address space; it comes of input", text(input_size),
        " with padding=", text(padding), " (top, bottom, left, right)");
  return p;
}

PoolProblem check_pool2d(const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                         const Ints& padding, const Ints& dilation, bool ceil_mode) {
  check_parameter("kernel_size", kernel_size, 2, "(height, width)");
  check_parameter("stride", stride, 2, "(height, width)");
  check_parameter("padding", padding, 2, "(height, width)");
  check_parameter("dilation", dilation, 2, "(height, width)");
  check(!any_below(kernel_size, 1),
        "kernel size should be greater than zero, but got kernel_size=", text(kernel_size));
  check(kernel_size[0] * kernel_size[1] <= kLargestParameter,
        "kernel_size is too large: expected at most ", kLargestParameter,
        " positions, but got kernel_size=", text(kernel_size));
  check(stride[0] != 0 && stride[1] != 0,
        "stride should not be zero, but got stride=", text(stride));
  check(!any_below(stride, 1), "stride should be greater than zero, but got stride=", text(stride));
  check(!any_below(padding, 0), "pad must be non-negative, but got padding=", text(padding));
  check(!any_below(dilation, 1),
        "dilation should be greater than zero, but got dilation=", text(dilation));
  for (const int axis : {kHeight, kWidth}) {
    check(padding[axis] <= (dilation[axis] * (kernel_size[axis] - 1) + 1) / 2,
          "pad should be at most half of effective kernel size, but got padding=", text(padding),
          ", kernel_size=", text(kernel_size), " and dilation=", text(dilation));
    check(padding[axis] <= kernel_size[axis] / 2,
          "pad should be smaller than or equal to half of kernel size, but got padding=",
          text(padding), " and kernel_size=", text(kernel_size));
  }
  check(input_size.size() == 4 && input_size[0] >= 0 &&
            !any_below({input_size.begin() + 1, input_size.end()}, 1) &&
            !any_above(input_size, kLargestBytes),
        "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:",
        text(input_size));

  PoolProblem p;
  p.batch = input_size[0];
  p.channels = input_size[1];
  for (const int axis : {kHeight, kWidth}) {
    const int64_t size = input_size[2 + axis], pad = padding[axis], step = stride[axis];
    const int64_t extent = dilation[axis] * (kernel_size[axis] - 1) + 1;
    const int64_t room = size + 2 * pad - extent + (ceil_mode ? step - 1 : 0);
    int64_t out = room < 0 ? 0 : room / step + 1;
    // The last window of ceil_mode still has to start inside the input or before it.
    if (ceil_mode && (out - 1) * step >= size + pad) --out;
    p.in_size[axis] = size;
    p.out_size[axis] = out;
    p.kernel[axis] = kernel_size[axis];
    p.stride[axis] = step;
    p.pad[axis] = pad;
    p.dilation[axis] = dilation[axis];
  }
  check(p.out_size[0] > 0 && p.out_size[1] > 0, "Given input size: (", p.channels, "x",
        p.in_size[0], "x", p.in_size[1], "). Calculated output size: (", p.channels, "x",
        p.out_size[0], "x", p.out_size[1],
        "). Output size is too small for kernel_size=", text(kernel_size),
        " and dilation=", text(dilation));
  return p;
}

void check_device(const char* name, const Tensor& tensor, const Tensor& first) {
  const bool on_cpu = kDevice == torch::headeronly::DeviceType::CPU;
  check(on_cpu ? tensor.is_cpu() : tensor.is_cuda(),
        "Expected all tensors to be on the same device, but got ", name, " on another device than ",
        on_cpu ? "cpu" : "cuda");
  if (on_cpu) return;
  const auto index = tensor.device().index(), first_index = first.device().index();
  check(index == first_index, "Expected all tensors to be on the same device, but got ", name,
        " on cuda:", index, " and others on cuda:", first_index);
}

void check_defined(const char* op, const char* name, const Tensor& t) {
  check(t.defined(), op, "(): argument '", name, "' must be Tensor, not None");
}

void check_has_memory(const char* name, const Tensor& t) {
  const auto element_bytes = static_cast<int64_t>(t.element_size());
  int64_t last = t.storage_offset(), bytes = 0;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return;
    last += (t.size(d) - 1) * t.stride(d);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  check((last + 1) * element_bytes <= bytes, "Expected ", name, " of size ", text(sizes_of(t)),
        " to have memory for all its elements, but its storage has ", bytes,
        " bytes: it was resized, or never allocated");
}

void check_tensors(const char* op, const std::vector<Argument>& arguments) {
  const auto& [name, first] = arguments.front();
  const auto type_of = [op](const Argument& a) {
    try {
      return a.tensor.scalar_type();
    } catch (const std::exception&) {  // a type that the stable ABI cannot name
      fail('"', op, "\" not implemented for the dtype of ", a.name);
    }
  };
  for (const Argument& a : arguments) check_defined(op, a.name, a.tensor);
  const ScalarType type = type_of(arguments.front());
  for (const Argument& a : arguments) {
    check_device(a.name, a.tensor, first);
    check(type_of(a) == type, op, "(): ", name, " type (", torch::headeronly::toString(type),
          ") and ", a.name, " type (", torch::headeronly::toString(type_of(a)),
          ") should be the same");
    check_has_memory(a.name, a.tensor);
  }
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
            type == ScalarType::Half,
        '"', op, "\" not implemented for '", torch::headeronly::toString(type), "': expected ",
        name, " of dtype torch.float32, torch.float64, torch.bfloat16 or torch.float16");
}

double bytes_of(const Ints& size, int64_t element_bytes) {
  double bytes = static_cast<double>(element_bytes);  // an integer could overflow
  for (const int64_t length : size) bytes *= static_cast<double>(length);
  return bytes;
}

void check_fits(const Ints& size, int64_t element_bytes) {
  check(bytes_of(size, element_bytes) <= static_cast<double>(kLargestBytes), "the result of size ",
        text(size), " would not fit into the address space");
}

void check_bias(const Tensor& bias, const Ints& weight_size) {
  check(bias.dim() == 1 && bias.size(0) == weight_size[0], "Given weight of size ",
        text(weight_size), ", expected bias to be 1-dimensional with ", weight_size[0],
        " elements, but got bias of size ", text(sizes_of(bias)), " instead");
}

void check_size(const char* name, const Ints& size, const char* like, const Ints& expected) {
  check(size == expected, "Expected ", name, " to have the size of ", like, ", ", text(expected),
        ", but got ", name, " of size ", text(size));
}

void check_delta(const Ints& delta_size, const ConvProblem& p, const char* name) {
  check_size(name, delta_size, "conv2d's output",
             {p.batch, p.groups * p.out_channels, p.out_size[0], p.out_size[1]});
}

}  // namespace convbp
