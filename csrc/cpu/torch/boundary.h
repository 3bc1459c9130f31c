// The boundary of the CPU kernels: what torch/binding.h leaves to a backend.
#pragma once

#include "cpu/activation.h"
#include "cpu/capability.h"
#include "torch/binding.h"

namespace convbp {

// The same around a kernel.
template <typename Body>
void dispatch(const Tensor& t, const Body& body) {
  capability();  // what it throws is its own
  try {
    dispatch_type(t, body);
  } catch (const std::exception&) {
    // All that can go wrong in a kernel. From within a parallel region it arrives as torch's.
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
