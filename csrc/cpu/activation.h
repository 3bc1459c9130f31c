// The activations as the CPU kernels call them: on arrays of numbers, found by row.
#pragma once

#include <cstdint>
#include <string>

#include "core/activation.h"

namespace convbp::activation {

template <typename A>
struct Functions {
  // x[i] = g(x[i])
  void (*value)(A* x, int64_t count, const A* parameters);
  // delta[i] = g'(p_i) * grad[i], from saved[i], which is g's output or its input. delta may be
  // grad.
  void (*error_signal)(const A* grad, const A* saved, A* delta, int64_t count, const A* parameters);
};

// The functions of a row of the table.
template <typename A>
const Functions<A>* functions_of(int row);

// A row with its parameters.
template <typename A>
struct Activation {
  const Functions<A>* functions = nullptr;  // null: g is the identity
  A parameters[kMostParameters] = {};

  void apply(A* x, int64_t count) const {
    if (functions) functions->value(x, count, parameters);
  }
  void error_signal(const A* grad, const A* saved, A* delta, int64_t count) const {
    functions->error_signal(grad, saved, delta, count, parameters);
  }
};

}  // namespace convbp::activation
