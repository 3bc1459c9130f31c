// L2 and L3 element by element, for layers whose kernel has no epilogue of its own, and L5.
#pragma once

#include "core/channels.h"
#include "core/types.h"
#include "cpu/activation.h"

namespace convbp {

// output[i] = g(input[i])
template <typename T>
void activate(const activation::Activation<Accumulator<T>>& g, const T* input, T* output,
              int64_t count);

// delta[i] = g'(p_i) * grad[i]
template <typename T>
void error_signal(const activation::Activation<Accumulator<T>>& g, const T* grad, const T* saved,
                  T* delta, int64_t count);

// delta as above, and bias_grad[c] = the sum of channel c of delta, in one pass over memory.
template <typename T>
void error_signal_bias_grad(const activation::Activation<Accumulator<T>>& g, const T* grad,
                            const T* saved, T* delta, const Channels& size, T* bias_grad);

}  // namespace convbp
