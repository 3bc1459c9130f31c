// The boundary of the CPU kernels: the parts of torch/binding.h that a backend defines.
#pragma once

#include "cpu/activation.h"
#include "cpu/capability.h"
#include "torch/binding.h"

namespace convbp {

// Calls body(T()) and gives a kernel's failure a message.
template <typename Body>
void dispatch(const Tensor& t, const Body& body) {
  capability();  // throws an error of its own
  try {
    dispatch_type(t, body);
  } catch (const std::exception&) {
    // Memory is all that can be missing in a kernel. Out of a parallel region the error comes as
    // torch's.
    fail("can't allocate memory for the working space of a kernel");
  }
}

template <typename A>
activation::Activation<A> make_activation(const std::string& name, const Doubles& parameters) {
  activation::Activation<A> result{activation::functions_of<A>(activation::row_of(name))};
  for (size_t i = 0; i < parameters.size(); ++i)
    result.parameters[i] = static_cast<A>(parameters[i]);
  return result;
}

}  // namespace convbp
