// The boundary of the pooling operators (L8): checks, allocates, dispatches on the element type.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "boundary.h"
#include "pool.h"

namespace convbp {
namespace {

// The pooling that these arguments describe; torch_convbp/shapes.py says the same.
PoolProblem check_pool(const char* op, const Ints& input_size, const Ints& kernel_size,
                       const Ints& stride, const Ints& padding, const Ints& dilation,
                       bool ceil_mode) {
  const auto parameter = [&](const char* name, const Ints& values, int64_t least) {
    check(values.size() == 2, op, "(): expected ", name, " to be a list of 2 values, but got ",
          name, "=", text(values));
    for (const int64_t v : values)
      check(v >= least && v <= kLargestParameter, op, "(): ", name,
            least ? " should be greater than zero" : " must be non-negative", " and at most ",
            kLargestParameter, ", but got ", name, "=", text(values));
  };
  check(input_size.size() == 4, op, "(): Expected 4D (batched) input, but got input of size: ",
        text(input_size));
  for (size_t d = 0; d < 4; ++d)
    check(input_size[d] >= (d ? 1 : 0) && input_size[d] <= kLargestBytes, op,
          "(): Expected 4D (batch mode) tensor with optional 0 dim batch size for input, but got "
          "input of size: ",
          text(input_size));
  parameter("kernel_size", kernel_size, 1);
  parameter("stride", stride, 1);
  parameter("padding", padding, 0);
  parameter("dilation", dilation, 1);
  check(kernel_size[0] <= kLargestParameter / kernel_size[1], op,
        "(): kernel_size is too large, got kernel_size=", text(kernel_size));
  PoolProblem p;
  p.batch = input_size[0];
  p.channels = input_size[1];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = input_size[2 + axis], pad = padding[axis], step = stride[axis];
    const int64_t reach = dilation[axis] * (kernel_size[axis] - 1) + 1;
    check(pad <= kernel_size[axis] / 2, op,
          "(): pad should be smaller than or equal to half of kernel size, but got padding=",
          text(padding), " and kernel_size=", text(kernel_size));
    const int64_t room = size + 2 * pad - reach + (ceil_mode ? step - 1 : 0);
    int64_t out = room < 0 ? 0 : room / step + 1;
    // With ceil_mode the last window still has to start inside the input or in front of it.
    if (ceil_mode && (out - 1) * step >= size + pad) --out;
    check(out >= 1, op, "(): Given input size: (", input_size[1], "x", input_size[2], "x",
          input_size[3], ") and kernel_size=", text(kernel_size), ", the output size is too small");
    p.in_size[axis] = size;
    p.out_size[axis] = out;
    p.kernel[axis] = kernel_size[axis];
    p.stride[axis] = step;
    p.pad[axis] = pad;
    p.dilation[axis] = dilation[axis];
  }
  return p;
}

Ints output_size(const PoolProblem& p) {
  return {p.batch, p.channels, p.out_size[0], p.out_size[1]};
}

void check_output_size(const char* name, const Tensor& t, const PoolProblem& p) {
  check(sizes_of(t) == output_size(p), "Expected ", name, " to have the size of the output, ",
        text(output_size(p)), ", but got ", name, " of size ", text(sizes_of(t)));
}

// Offsets are bytes where every one of them and kNowhere fit.
ScalarType offset_type(const PoolProblem& p) {
  return p.taps() < 256 ? ScalarType::Byte : ScalarType::Int;
}

void check_offset(const Tensor& offset, const PoolProblem& p) {
  check(offset.is_cpu() && offset.scalar_type() == offset_type(p), "Expected offset of dtype ",
        torch::headeronly::toString(offset_type(p)), " on the CPU, but got ",
        torch::headeronly::toString(offset.scalar_type()));
  check_output_size("offset", offset, p);
}

// Calls body(T(), Offset()).
template <typename Body>
void dispatch_pool(const Tensor& t, const PoolProblem& p, const Body& body) {
  dispatch(t, [&](auto element) {
    if (offset_type(p) == ScalarType::Byte)
      body(element, uint8_t());
    else
      body(element, uint32_t());
  });
}

MemoryFormat format_of(const Tensor& t) {
  return result_format(std::nullopt, t, t);
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size,
                                      const Ints& stride, const Ints& padding,
                                      const Ints& dilation, bool ceil_mode) {
  check_tensors("max_pool2d", {{"input", input}});
  const PoolProblem p = check_pool("max_pool2d", sizes_of(input), kernel_size, stride, padding,
                                   dilation, ceil_mode);
  const Tensor output = new_tensor(output_size(p), input, format_of(input));
  const Tensor offset = new_tensor(output_size(p), input, format_of(input), offset_type(p));
  dispatch_pool(input, p, [&](auto element, auto offset_element) {
    using T = decltype(element);
    using Offset = decltype(offset_element);
    pool::max_pool2d<T, Offset>(p, view<const T>(input), view<T>(output),
                                         view<Offset>(offset));
  });
  return {output, offset};
}

Tensor max_pool2d_input_grad(const Ints& input_size, const Tensor& delta, const Tensor& offset,
                             const Ints& kernel_size, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool ceil_mode,
                             std::optional<MemoryFormat> memory_format) {
  check_tensors("max_pool2d_input_grad", {{"delta", delta}});
  const PoolProblem p = check_pool("max_pool2d_input_grad", input_size, kernel_size, stride,
                                   padding, dilation, ceil_mode);
  check_output_size("delta", delta, p);
  check_offset(offset, p);
  const Tensor input_grad =
      new_tensor(input_size, delta, result_format(memory_format, delta, delta));
  dispatch_pool(delta, p, [&](auto element, auto offset_element) {
    using T = decltype(element);
    using Offset = decltype(offset_element);
    pool::max_pool2d_input_grad<T, Offset>(p, view<const T>(delta), view<const Offset>(offset),
                                            view<T>(input_grad));
  });
  return input_grad;
}

Tensor max_pool2d_gather(const Tensor& input, const Tensor& offset, const Ints& kernel_size,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         bool ceil_mode) {
  check_tensors("max_pool2d_gather", {{"input", input}});
  const PoolProblem p = check_pool("max_pool2d_gather", sizes_of(input), kernel_size, stride,
                                   padding, dilation, ceil_mode);
  check_offset(offset, p);
  const Tensor output = new_tensor(output_size(p), input, format_of(input));
  dispatch_pool(input, p, [&](auto element, auto offset_element) {
    using T = decltype(element);
    using Offset = decltype(offset_element);
    pool::max_pool2d_gather<T, Offset>(p, view<const T>(input), view<const Offset>(offset),
                                        view<T>(output));
  });
  return output;
}

PoolProblem check_average(const char* op, const Ints& input_size, const Ints& kernel_size,
                          const Ints& stride, const Ints& padding, bool ceil_mode,
                          bool count_include_pad, std::optional<int64_t> divisor_override) {
  check(!divisor_override || *divisor_override != 0, op, "(): divisor must be not zero");
  PoolProblem p = check_pool(op, input_size, kernel_size, stride, padding, {1, 1}, ceil_mode);
  p.count_include_pad = count_include_pad;
  p.divisor_override = divisor_override.value_or(0);
  return p;
}

Tensor avg_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                  const Ints& padding, bool ceil_mode, bool count_include_pad,
                  std::optional<int64_t> divisor_override) {
  check_tensors("avg_pool2d", {{"input", input}});
  const PoolProblem p = check_average("avg_pool2d", sizes_of(input), kernel_size, stride, padding,
                                      ceil_mode, count_include_pad, divisor_override);
  const Tensor output = new_tensor(output_size(p), input, format_of(input));
  dispatch(input, [&](auto element) {
    using T = decltype(element);
    pool::avg_pool2d<T>(p, view<const T>(input), view<T>(output));
  });
  return output;
}

Tensor avg_pool2d_input_grad(const Ints& input_size, const Tensor& delta, const Ints& kernel_size,
                             const Ints& stride, const Ints& padding, bool ceil_mode,
                             bool count_include_pad, std::optional<int64_t> divisor_override,
                             std::optional<MemoryFormat> memory_format) {
  check_tensors("avg_pool2d_input_grad", {{"delta", delta}});
  const PoolProblem p = check_average("avg_pool2d_input_grad", input_size, kernel_size, stride,
                                      padding, ceil_mode, count_include_pad, divisor_override);
  check_output_size("delta", delta, p);
  const Tensor input_grad =
      new_tensor(input_size, delta, result_format(memory_format, delta, delta));
  dispatch(delta, [&](auto element) {
    using T = decltype(element);
    pool::avg_pool2d_input_grad<T>(p, view<const T>(delta), view<T>(input_grad));
  });
  return input_grad;
}

}  // namespace
}  // namespace convbp

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&convbp::max_pool2d));
  m.impl("max_pool2d_input_grad", TORCH_BOX(&convbp::max_pool2d_input_grad));
  m.impl("max_pool2d_gather", TORCH_BOX(&convbp::max_pool2d_gather));
  m.impl("avg_pool2d", TORCH_BOX(&convbp::avg_pool2d));
  m.impl("avg_pool2d_input_grad", TORCH_BOX(&convbp::avg_pool2d_input_grad));
}
