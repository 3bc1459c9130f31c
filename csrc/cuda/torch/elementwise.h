// The element-wise functions that torch/elementwise.h and torch/error_signal.h call, on the GPU.
#pragma once

#include "cuda/elementwise/elementwise.h"
#include "cuda/torch/boundary.h"

namespace convbp {

template <typename T>
void activate(const activation::Activation<Accumulator<T>>& g, const T* input, T* output,
              int64_t count) {
  TorchContext context;
  cuda::activate<T>(context, g, input, output, count);
}

template <typename T>
void error_signal(const activation::Activation<Accumulator<T>>& g, const T* grad, const T* saved,
                  T* delta, int64_t count) {
  TorchContext context;
  cuda::error_signal<T>(context, g, grad, saved, delta, count);
}

template <typename T>
void error_signal_bias_grad(const activation::Activation<Accumulator<T>>& g, const T* grad,
                            const T* saved, T* delta, const Channels& size, T* bias_grad) {
  TorchContext context;
  cuda::error_signal_bias_grad<T>(context, g, grad, saved, delta, size, bias_grad);
}

}  // namespace convbp
