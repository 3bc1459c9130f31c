// The activations as the CPU kernels call them: on runs of numbers, found by name.
#pragma once

#include <cstdint>
#include <string>

#include "../activation.h"

namespace convbp::activation {

template <typename A>
struct Functions {
  const char* name;
  int parameters;
  // x[i] = g(x[i])
  void (*value)(A* x, int64_t count, const A* parameters);
  // delta[i] = g'(p_i) * grad[i], from kept[i]: g's output or its input. delta may be grad.
  void (*error_signal)(const A* grad, const A* kept, A* delta, int64_t count,
                       const A* parameters);
};

// The row of this name, or null.
template <typename A>
const Functions<A>* find(const std::string& name);

// "relu 0, leaky_relu 1, ...": every name with its number of parameters.
std::string names();

// A row with its parameters.
template <typename A>
struct Activation {
  const Functions<A>* functions = nullptr;  // null: g is the identity
  A parameters[kMostParameters] = {};

  void apply(A* x, int64_t count) const {
    if (functions) functions->value(x, count, parameters);
  }
  void error_signal(const A* grad, const A* kept, A* delta, int64_t count) const {
    functions->error_signal(grad, kept, delta, count, parameters);
  }
};

}  // namespace convbp::activation
