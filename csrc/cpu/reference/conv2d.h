// The three operators as loop nests over the elements of the result. The inner loops are the sums
// of core/reference_sums.h.
//
// Both files are the first thing to read, and the fast kernels are tested against them.
#pragma once

#include "core/reference_sums.h"
#include "cpu/epilogue.h"

namespace convbp::reference {

// L1: p_o[m, n] = bias_o + sum_k sum_{r,s} a_k[i, j] w[o, k, r, s]
// L2: a_o = g(p_o)
template <typename T>
void conv2d(const ConvProblem& c, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const T* const bias = epilogue.bias;
  const View<T> pre_activation{
      epilogue.pre_activation,
      {output.stride[0], output.stride[1], output.stride[2], output.stride[3]}};
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t o = 0; o < c.groups * c.out_channels; ++o)
      for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
        for (int64_t n = 0; n < c.out_size[kWidth]; ++n) {
          const double start = bias ? static_cast<double>(bias[o]) : 0.0;
          auto a = static_cast<Accumulator<T>>(output_sum(c, input, weight, start, b, o, m, n));
          if (pre_activation.data) pre_activation.at(b, o, m, n) = static_cast<T>(a);
          epilogue.activation.apply(&a, 1);
          output.at(b, o, m, n) = static_cast<T>(a);
        }
}

// L6: dL/da_k[i, j] = sum_o sum over the (m, n, r, s) that meet at (i, j) of
//     delta_o[m, n] w[o, k, r, s]
template <typename T>
void conv2d_input_grad(const ConvProblem& c, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t g = 0; g < c.groups; ++g)
      for (int64_t k = 0; k < c.in_channels; ++k)
        for (int64_t i = 0; i < c.in_size[kHeight]; ++i)
          for (int64_t j = 0; j < c.in_size[kWidth]; ++j)
            input_grad.at(b, g * c.in_channels + k, i, j) =
                static_cast<T>(input_grad_sum(c, weight, delta, b, g, k, i, j));
}

// L4: dL/dw[o, k, r, s] = sum_{m,n} delta_o[m, n] a_k[i, j]
// L5: dL/dbias_o = sum_{m,n} delta_o[m, n], where bias_grad is asked for
template <typename T>
void conv2d_weight_grad(const ConvProblem& c, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  for (int64_t o = 0; o < c.groups * c.out_channels; ++o) {
    for (int64_t k = 0; k < c.in_channels; ++k)
      for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < c.kernel[kWidth]; ++s)
          weight_grad.at(o, k, r, s) = static_cast<T>(weight_grad_sum(c, input, delta, o, k, r, s));
    if (bias_grad) bias_grad[o] = static_cast<T>(bias_grad_sum(c, delta, o));
  }
}

}  // namespace convbp::reference
