// The convolution operators as torch calls them, on every backend: checks, allocates, dispatches on
// the element type. Each backend includes this file once, after its boundary.h, its epilogue, what
// error_signal.h needs, and its backend::conv2d, conv2d_input_grad and conv2d_weight_grad.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "torch/binding.h"
#include "torch/error_signal.h"

namespace convbp {
namespace {

// p = conv2d(input, weight) + bias, then a = g(p) where an activation is named; p itself goes to
// `pre_activation` where that is given.
Tensor convolve(const char* op, const Tensor& input, const Tensor& weight,
                const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                const Ints& dilation, int64_t groups, const std::string* activation,
                const Doubles& parameters, Tensor* pre_activation) {
  std::vector<Argument> arguments{{"input", input}, {"weight", weight}};
  if (bias) arguments.push_back({"bias", *bias});
  check_tensors(op, arguments);
  const Ints weight_size = sizes_of(weight);
  const ConvProblem p = check_conv2d(sizes_of(input), weight_size, stride, padding, dilation,
                                     groups, input.element_size());
  std::optional<Tensor> dense_bias;
  if (bias) {
    check_bias(*bias, weight_size);
    dense_bias = torch::stable::contiguous(*bias);
  }
  if (activation) check_activation(*activation, parameters);
  const Ints output_size{p.batch, weight_size[0], p.out_size[0], p.out_size[1]};
  const MemoryFormat format = result_format(std::nullopt, input, weight);
  const Tensor output = new_tensor(output_size, input, format);
  if (pre_activation) *pre_activation = new_tensor(output_size, input, format);
  if (output.numel() == 0) return output;
  dispatch(input, [&](auto element) {
    using T = decltype(element);
    Epilogue<T> epilogue;
    if (dense_bias) epilogue.bias = static_cast<const T*>(dense_bias->const_data_ptr());
    if (activation) epilogue.activation = make_activation<Accumulator<T>>(*activation, parameters);
    if (pre_activation)
      epilogue.pre_activation = static_cast<T*>(pre_activation->mutable_data_ptr());
    backend::conv2d<T>(p, view<const T>(input), view<const T>(weight), epilogue, view<T>(output));
  });
  return output;
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  return convolve("conv2d", input, weight, bias, stride, padding, dilation, groups, nullptr, {},
                  nullptr);
}

Tensor conv2d_activation(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                         const Ints& dilation, int64_t groups, const std::string& activation,
                         const Doubles& parameters) {
  return convolve("conv2d_activation", input, weight, bias, stride, padding, dilation, groups,
                  &activation, parameters, nullptr);
}

std::tuple<Tensor, Tensor> conv2d_activation_pair(const Tensor& input, const Tensor& weight,
                                                  const std::optional<Tensor>& bias,
                                                  const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups,
                                                  const std::string& activation,
                                                  const Doubles& parameters) {
  Tensor pre_activation;
  Tensor output = convolve("conv2d_activation_pair", input, weight, bias, stride, padding, dilation,
                           groups, &activation, parameters, &pre_activation);
  return {output, pre_activation};
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
    backend::conv2d_input_grad<T>(p, view<const T>(weight), view<const T>(delta),
                                  view<T>(input_grad));
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
  if (bias_grad) *bias_grad = new_tensor({weight_size[0]}, delta, MemoryFormat::Contiguous);
  dispatch(delta, [&](auto element) {
    using T = decltype(element);
    T* const bias_data = bias_grad ? static_cast<T*>(bias_grad->mutable_data_ptr()) : nullptr;
    backend::conv2d_weight_grad<T>(p, view<const T>(input), view<const T>(delta),
                                   view<T>(weight_grad), bias_data);
  });
  return weight_grad;
}

Tensor conv2d_weight_grad(const Tensor& input, const Ints& weight_size, const Tensor& delta,
                          const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups, std::optional<MemoryFormat> memory_format) {
  return weight_grad("conv2d_weight_grad", input, weight_size, delta, stride, padding, dilation,
                     groups, memory_format, nullptr);
}

std::tuple<Tensor, Tensor> conv2d_weight_bias_grad(const Tensor& input, const Ints& weight_size,
                                                   const Tensor& delta, const Ints& stride,
                                                   const Ints& padding, const Ints& dilation,
                                                   int64_t groups,
                                                   std::optional<MemoryFormat> memory_format) {
  Tensor bias_grad;
  Tensor result = weight_grad("conv2d_weight_bias_grad", input, weight_size, delta, stride, padding,
                              dilation, groups, memory_format, &bias_grad);
  return {result, bias_grad};
}

// What the operands of conv2d_backward must have in common.
ConvProblem check_conv2d_backward(const Tensor& grad, const std::optional<Tensor>& saved,
                                  const std::optional<Tensor>& input,
                                  const std::optional<Tensor>& weight, const Ints& input_size,
                                  const Ints& weight_size, const Ints& stride, const Ints& padding,
                                  const Ints& dilation, int64_t groups) {
  std::vector<Argument> arguments{{"grad", grad}};
  if (saved) arguments.push_back({"saved", *saved});
  if (input) arguments.push_back({"input", *input});
  if (weight) arguments.push_back({"weight", *weight});
  check_tensors("conv2d_backward", arguments);
  const ConvProblem p =
      check_conv2d(input_size, weight_size, stride, padding, dilation, groups, grad.element_size());
  check_delta(sizes_of(grad), p, "grad");
  if (saved) check_delta(sizes_of(*saved), p, "saved");
  if (input) check_size("input", sizes_of(*input), "input_size", input_size);
  if (weight) check_size("weight", sizes_of(*weight), "weight_size", weight_size);
  return p;
}

// L3 to L6, one equation after the other.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(
    const Tensor& grad, const std::optional<Tensor>& saved, const std::optional<Tensor>& input,
    const std::optional<Tensor>& weight, const Ints& input_size, const Ints& weight_size,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
    const std::string& activation, const Doubles& parameters, bool needs_bias_grad,
    std::optional<MemoryFormat> memory_format) {
  check_conv2d_backward(grad, saved, input, weight, input_size, weight_size, stride, padding,
                        dilation, groups);
  Tensor delta = grad, input_grad, weight_grad, bias_grad;
  if (saved && needs_bias_grad)  // L3, L5
    std::tie(delta, bias_grad) = error_signal_bias_grad_op(grad, *saved, activation, parameters);
  else if (saved)  // L3
    delta = error_signal_op(grad, *saved, activation, parameters);
  if (weight)  // L6
    input_grad = conv2d_input_grad(input_size, *weight, delta, stride, padding, dilation, groups,
                                   memory_format);
  const bool needs_l5 = needs_bias_grad && !saved;  // else it came with L3
  if (input && needs_l5)                            // L4, L5
    std::tie(weight_grad, bias_grad) = conv2d_weight_bias_grad(
        *input, weight_size, delta, stride, padding, dilation, groups, memory_format);
  else if (input)  // L4
    weight_grad = conv2d_weight_grad(*input, weight_size, delta, stride, padding, dilation, groups,
                                     memory_format);
  else if (needs_l5)
    bias_grad = torch::stable::sum(delta, Ints{0, 2, 3});
  return {input_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace convbp

// Registers the operators for a backend's dispatch key.
#define CONVBP_REGISTER_CONVOLUTIONS(key)                                           \
  STABLE_TORCH_LIBRARY_IMPL(torch_convbp, key, m) {                                 \
    m.impl("conv2d", TORCH_BOX(&convbp::conv2d));                                   \
    m.impl("conv2d_activation", TORCH_BOX(&convbp::conv2d_activation));             \
    m.impl("conv2d_activation_pair", TORCH_BOX(&convbp::conv2d_activation_pair));   \
    m.impl("conv2d_input_grad", TORCH_BOX(&convbp::conv2d_input_grad));             \
    m.impl("conv2d_weight_grad", TORCH_BOX(&convbp::conv2d_weight_grad));           \
    m.impl("conv2d_weight_bias_grad", TORCH_BOX(&convbp::conv2d_weight_bias_grad)); \
  }
