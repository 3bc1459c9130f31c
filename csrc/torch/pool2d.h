// The pooling operators (L8) as torch calls them, on every backend: checks, allocates, dispatches
// on the element type. Each backend includes this file once, after its boundary.h and its functions
// pool::max_pool2d and so on.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "torch/binding.h"

namespace convbp {
namespace {

Ints output_size(const PoolProblem& p) {
  return {p.batch, p.channels, p.out_size[0], p.out_size[1]};
}

void check_output_size(const char* name, const Tensor& t, const PoolProblem& p) {
  check(sizes_of(t) == output_size(p), "Expected ", name, " to have the size of the output, ",
        text(output_size(p)), ", but got ", name, " of size ", text(sizes_of(t)));
}

// The type of offsets: bytes where all of them and kNowhere fit.
ScalarType offset_type(const PoolProblem& p) {
  return p.taps() < 256 ? ScalarType::Byte : ScalarType::Int;
}

void check_offset(const Tensor& offset, const Tensor& values, const PoolProblem& p) {
  check_defined("max_pool2d", "offset", offset);
  check_device("offset", offset, values);
  check(offset.scalar_type() == offset_type(p), "Expected offset of type ",
        torch::headeronly::toString(offset_type(p)),
        " for kernel_size=", text({p.kernel[0], p.kernel[1]}), ", but got ",
        torch::headeronly::toString(offset.scalar_type()));
  check_output_size("offset", offset, p);
  check_has_memory("offset", offset);
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
                                      const Ints& stride, const Ints& padding, const Ints& dilation,
                                      bool ceil_mode) {
  check_tensors("max_pool2d", {{"input", input}});
  const PoolProblem p =
      check_pool2d(sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode);
  const Tensor output = new_tensor(output_size(p), input, format_of(input));
  const Tensor offset = new_tensor(output_size(p), input, format_of(input), offset_type(p));
  dispatch_pool(input, p, [&](auto element, auto offset_element) {
    using T = decltype(element);
    using Offset = decltype(offset_element);
    pool::max_pool2d<T, Offset>(p, view<const T>(input), view<T>(output), view<Offset>(offset));
  });
  return {output, offset};
}

Tensor max_pool2d_input_grad(const Ints& input_size, const Tensor& delta, const Tensor& offset,
                             const Ints& kernel_size, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool ceil_mode,
                             std::optional<MemoryFormat> memory_format) {
  check_tensors("max_pool2d_input_grad", {{"delta", delta}});
  const PoolProblem p = check_pool2d(input_size, kernel_size, stride, padding, dilation, ceil_mode);
  check_output_size("delta", delta, p);
  check_offset(offset, delta, p);
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
  const PoolProblem p =
      check_pool2d(sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode);
  check_offset(offset, input, p);
  const Tensor output = new_tensor(output_size(p), input, format_of(input));
  dispatch_pool(input, p, [&](auto element, auto offset_element) {
    using T = decltype(element);
    using Offset = decltype(offset_element);
    pool::max_pool2d_gather<T, Offset>(p, view<const T>(input), view<const Offset>(offset),
                                       view<T>(output));
  });
  return output;
}

PoolProblem check_average(const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                          const Ints& padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  check(!divisor_override || *divisor_override != 0,
        "divisor must be not zero, but got divisor_override=0");
  PoolProblem p = check_pool2d(input_size, kernel_size, stride, padding, {1, 1}, ceil_mode);
  p.count_include_pad = count_include_pad;
  p.divisor_override = divisor_override.value_or(0);
  return p;
}

Tensor avg_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                  const Ints& padding, bool ceil_mode, bool count_include_pad,
                  std::optional<int64_t> divisor_override) {
  check_tensors("avg_pool2d", {{"input", input}});
  const PoolProblem p = check_average(sizes_of(input), kernel_size, stride, padding, ceil_mode,
                                      count_include_pad, divisor_override);
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
  const PoolProblem p = check_average(input_size, kernel_size, stride, padding, ceil_mode,
                                      count_include_pad, divisor_override);
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

// Registers the operators for a backend's dispatch key.
#define CONVBP_REGISTER_POOLS(key)                                              \
  STABLE_TORCH_LIBRARY_IMPL(torch_convbp, key, m) {                             \
    m.impl("max_pool2d", TORCH_BOX(&convbp::max_pool2d));                       \
    m.impl("max_pool2d_input_grad", TORCH_BOX(&convbp::max_pool2d_input_grad)); \
    m.impl("max_pool2d_gather", TORCH_BOX(&convbp::max_pool2d_gather));         \
    m.impl("avg_pool2d", TORCH_BOX(&convbp::avg_pool2d));                       \
    m.impl("avg_pool2d_input_grad", TORCH_BOX(&convbp::avg_pool2d_input_grad)); \
  }
