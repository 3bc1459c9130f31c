// The element-wise operators as torch calls them, on every backend: activation (L2), error_signal
// (L3, L5). Each backend includes this file once, after its boundary.h and its functions activate,
// error_signal and error_signal_bias_grad.
#pragma once

#include <torch/csrc/stable/library.h>

#include "torch/error_signal.h"

namespace convbp {
namespace {

Tensor activation_op(const Tensor& input, const std::string& name, const Doubles& parameters) {
  check_tensors("activation", {{"input", input}});
  check_activation(name, parameters);
  const Tensor output =  // dense
      allocate(sizes_of(input), input, [&] { return torch::stable::clone(input); });
  dispatch(input, [&](auto element) {
    using T = decltype(element);
    T* const values = static_cast<T*>(output.mutable_data_ptr());
    activate<T>(make_activation<Accumulator<T>>(name, parameters), values, values, output.numel());
  });
  return output;
}

}  // namespace
}  // namespace convbp

// Registers the operators for a backend's dispatch key.
#define CONVBP_REGISTER_ELEMENTWISE(key)                                             \
  STABLE_TORCH_LIBRARY_IMPL(torch_convbp, key, m) {                                  \
    m.impl("activation", TORCH_BOX(&convbp::activation_op));                         \
    m.impl("error_signal", TORCH_BOX(&convbp::error_signal_op));                     \
    m.impl("error_signal_bias_grad", TORCH_BOX(&convbp::error_signal_bias_grad_op)); \
  }
