// The boundary between torch and the CPU kernels: checks, allocates, dispatches on the
// element type and the algorithm. Ends with its registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "algorithm.h"
#include "capability.h"
#include "direct.h"
#include "element.h"
#include "parallel.h"
#include "plain.h"

namespace convbp {

void parallel_tasks(int64_t tasks, TaskRange body, void* context) {
  torch::stable::parallel_for(
      0, tasks, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t thread_count() {
  return torch::stable::get_num_threads();
}

namespace {

using torch::headeronly::MemoryFormat;

// Do the strides put the channels innermost? The rule of torch's suggest_memory_format():
// where sizes of 1 leave both readings open, the tensor counts as contiguous.
bool is_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = size > 1 ? stride * size : stride;
  }
  return true;
}

MemoryFormat result_format(const std::optional<MemoryFormat>& asked, const Tensor& a,
                           const Tensor& b) {
  if (asked) {
    check(*asked == MemoryFormat::Contiguous || *asked == MemoryFormat::ChannelsLast,
          "Expected memory_format to be torch.contiguous_format or torch.channels_last, but got "
          "another one");
    return *asked;
  }
  return is_channels_last(a) || is_channels_last(b) ? MemoryFormat::ChannelsLast
                                                    : MemoryFormat::Contiguous;
}

Tensor new_tensor(const Ints& size, const Tensor& like, std::optional<MemoryFormat> format) {
  try {
    return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(),
                                std::nullopt, format);
  } catch (const std::exception&) {
    // Sizes were checked: what is left is memory, and what torch says of it comes with the
    // source lines of the interface in between, or in older versions not at all.
    double bytes = like.element_size();
    for (const int64_t length : size) bytes *= length;
    fail("can't allocate memory: the result of size ", text(size), " takes ", bytes, " bytes");
  }
}

template <typename T>
View<T> view(const Tensor& t) {
  View<T> v;
  if constexpr (std::is_const_v<T>)
    v.data = static_cast<T*>(t.const_data_ptr());
  else
    v.data = static_cast<T*>(t.mutable_data_ptr());
  for (int d = 0; d < 4; ++d) v.stride[d] = t.stride(d);
  return v;
}

// Calls body(T()) with the element type of t, which check_tensors has let through.
template <typename Body>
void dispatch_type(const Tensor& t, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::BFloat16:
      return body(BFloat16());
    case ScalarType::Half:
      return body(Half());
    default:
      fail("unreachable: dtype ", torch::headeronly::toString(t.scalar_type()));
  }
}

template <typename Body>
void dispatch(const Tensor& t, const Body& body) {
  capability();  // what it throws is its own
  try {
    dispatch_type(t, body);
  } catch (const std::exception&) {
    // All that can go wrong in a kernel. From within a parallel region it arrives as torch's.
    fail("can't allocate memory for the working space of a convolution");
  }
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  std::vector<Argument> arguments{{"input", input}, {"weight", weight}};
  if (bias) arguments.push_back({"bias", *bias});
  check_tensors("conv2d", arguments);
  const Ints weight_size = sizes_of(weight);
  const ConvProblem p = check_conv2d(sizes_of(input), weight_size, stride, padding, dilation,
                                     groups, input.element_size());
  std::optional<Tensor> dense_bias;
  if (bias) {
    check_bias(*bias, weight_size);
    dense_bias = torch::stable::contiguous(*bias);
  }
  const Tensor output = new_tensor({p.batch, weight_size[0], p.out_size[0], p.out_size[1]}, input,
                                   result_format(std::nullopt, input, weight));
  if (output.numel() == 0) return output;
  dispatch(input, [&](auto element) {
    using T = decltype(element);
    const T* bias_data =
        dense_bias ? static_cast<const T*>(dense_bias->const_data_ptr()) : nullptr;
    switch (choose_algorithm(p, Operator::kForward)) {
      case Algorithm::kPlain:
        return plain::conv2d<T>(p, view<const T>(input), view<const T>(weight), bias_data,
                                view<T>(output));
      case Algorithm::kDirect:
        return direct::conv2d<T>(p, view<const T>(input), view<const T>(weight), bias_data,
                                 view<T>(output));
    }
  });
  return output;
}

Tensor conv2d_input_grad(const Ints& input_size, const Tensor& weight, const Tensor& delta,
                         const Ints& stride, const Ints& padding, const Ints& dilation,
                         int64_t groups, std::optional<MemoryFormat> memory_format) {
  check_tensors("conv2d_input_grad", {{"weight", weight}, {"delta", delta}});
  const ConvProblem p = check_conv2d(input_size, sizes_of(weight), stride, padding, dilation,
                                     groups, delta.element_size());
  check_delta(sizes_of(delta), p);
  const Tensor input_grad =
      new_tensor(input_size, delta, result_format(memory_format, weight, delta));
  if (input_grad.numel() == 0) return input_grad;
  dispatch(delta, [&](auto element) {
    using T = decltype(element);
    switch (choose_algorithm(p, Operator::kInputGrad)) {
      case Algorithm::kPlain:
        return plain::conv2d_input_grad<T>(p, view<const T>(weight), view<const T>(delta),
                                           view<T>(input_grad));
      case Algorithm::kDirect:
        return direct::conv2d_input_grad<T>(p, view<const T>(weight), view<const T>(delta),
                                            view<T>(input_grad));
    }
  });
  return input_grad;
}

// L4, and L5 from the same pass where bias_grad is given.
Tensor weight_grad(const char* op, const Tensor& input, const Ints& weight_size,
                   const Tensor& delta, const Ints& stride, const Ints& padding,
                   const Ints& dilation, int64_t groups, std::optional<MemoryFormat> memory_format,
                   Tensor* bias_grad) {
  check_tensors(op, {{"input", input}, {"delta", delta}});
  const ConvProblem p = check_conv2d(sizes_of(input), weight_size, stride, padding, dilation,
                                     groups, input.element_size());
  check_delta(sizes_of(delta), p);
  const Tensor weight_grad =
      new_tensor(weight_size, delta, result_format(memory_format, input, delta));
  if (bias_grad) *bias_grad = new_tensor({weight_size[0]}, delta, std::nullopt);
  dispatch(delta, [&](auto element) {
    using T = decltype(element);
    T* const bias_data =
        bias_grad ? static_cast<T*>(bias_grad->mutable_data_ptr()) : nullptr;
    switch (choose_algorithm(p, Operator::kWeightGrad)) {
      case Algorithm::kPlain:
        return plain::conv2d_weight_grad<T>(p, view<const T>(input), view<const T>(delta),
                                            view<T>(weight_grad), bias_data);
      case Algorithm::kDirect:
        return direct::conv2d_weight_grad<T>(p, view<const T>(input), view<const T>(delta),
                                             view<T>(weight_grad), bias_data);
    }
  });
  return weight_grad;
}

Tensor conv2d_weight_grad(const Tensor& input, const Ints& weight_size, const Tensor& delta,
                          const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups, std::optional<MemoryFormat> memory_format) {
  return weight_grad("conv2d_weight_grad", input, weight_size, delta, stride, padding, dilation,
                     groups, memory_format, nullptr);
}

std::tuple<Tensor, Tensor> conv2d_weight_bias_grad(
    const Tensor& input, const Ints& weight_size, const Tensor& delta, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups,
    std::optional<MemoryFormat> memory_format) {
  Tensor bias_grad;
  Tensor result = weight_grad("conv2d_weight_bias_grad", input, weight_size, delta, stride,
                              padding, dilation, groups, memory_format, &bias_grad);
  return {result, bias_grad};
}

std::string cpu_capability() {
  return capability_name();
}

std::string cpu_conv_algorithm() {
  return algorithm_setting();
}

void set_cpu_conv_algorithm(const std::string& name) {
  set_algorithm(name);
}

}  // namespace
}  // namespace convbp

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&convbp::conv2d));
  m.impl("conv2d_input_grad", TORCH_BOX(&convbp::conv2d_input_grad));
  m.impl("conv2d_weight_grad", TORCH_BOX(&convbp::conv2d_weight_grad));
  m.impl("conv2d_weight_bias_grad", TORCH_BOX(&convbp::conv2d_weight_bias_grad));
}

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&convbp::cpu_capability));
  m.impl("_cpu_conv_algorithm", TORCH_BOX(&convbp::cpu_conv_algorithm));
  m.impl("_set_cpu_conv_algorithm", TORCH_BOX(&convbp::set_cpu_conv_algorithm));
}
