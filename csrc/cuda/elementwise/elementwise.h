// L2 and L3 element by element, for layers whose kernel has no epilogue of its own, and L5.
#pragma once

#include "core/channels.h"
#include "cuda/context.h"
#include "cuda/epilogue.h"

namespace convbp::cuda {

// output[i] = g(input[i])
template <typename T>
void activate(Context&, const activation::Activation<Accumulator<T>>& g, const T* input, T* output,
              int64_t count);

// delta[i] = g'(p_i) * grad[i]
template <typename T>
void error_signal(Context&, const activation::Activation<Accumulator<T>>& g, const T* grad,
                  const T* saved, T* delta, int64_t count);

// delta as above, and bias_grad[c] = the sum of channel c of delta, in one pass over memory.
template <typename T>
void error_signal_bias_grad(Context&, const activation::Activation<Accumulator<T>>& g,
                            const T* grad, const T* saved, T* delta, const Channels& size,
                            T* bias_grad);

}  // namespace convbp::cuda
