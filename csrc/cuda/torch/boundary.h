// The boundary of the CUDA kernels: the parts of torch/binding.h that a backend defines.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "cuda/context.h"
#include "cuda/epilogue.h"
#include "torch/binding.h"

namespace convbp {

// The current device and stream. Scratch memory goes back to torch's cache when the operator
// returns: later work on the stream may reuse it.
class TorchContext final : public cuda::Context {
 public:
  TorchContext();
  void* scratch(int64_t bytes) override;

 private:
  int32_t device_;
  std::vector<Tensor> held_;
};

// Calls body(T()) on the device of t.
template <typename Body>
void dispatch(const Tensor& t, const Body& body) {
  const torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
  dispatch_type(t, body);
}

template <typename A>
activation::Activation<A> make_activation(const std::string& name, const Doubles& parameters) {
  activation::Activation<A> result{activation::row_of(name)};
  for (size_t i = 0; i < parameters.size(); ++i)
    result.parameters[i] = static_cast<A>(parameters[i]);
  return result;
}

}  // namespace convbp
