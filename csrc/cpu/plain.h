// The three operators as plain loop nests: the equations, one sum after the other.
//
// This is the first thing to read, and what the fast kernels are tested against. All
// sums run in double precision whatever the element type, in the order of the loops.
//
// Taps outside the input are skipped here; the fast kernels multiply by the zeros of the padding
// instead. That is the same number unless a weight is infinite or NaN, which then shows at the
// border, as it does in torch.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"

namespace convbp::plain {

inline bool inside(int64_t position, int64_t size) {
  return 0 <= position && position < size;
}

// L1: p_o[m, n] = bias_o + sum_k sum_{r,s} a_k[i, j] w[o, k, r, s]
// L2: a_o = g(p_o)
template <typename T>
void conv2d(const ConvProblem& c, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const T* const bias = epilogue.bias;
  const View<T> pre_activation{epilogue.pre_activation, {output.stride[0], output.stride[1],
                                                         output.stride[2], output.stride[3]}};
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t g = 0; g < c.groups; ++g)
      for (int64_t o = g * c.out_channels; o < (g + 1) * c.out_channels; ++o)
        for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
          for (int64_t n = 0; n < c.out_size[kWidth]; ++n) {
            double sum = bias ? static_cast<double>(bias[o]) : 0.0;
            for (int64_t k = 0; k < c.in_channels; ++k)
              for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
                for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
                  const int64_t i = c.input_position(kHeight, m, r);
                  const int64_t j = c.input_position(kWidth, n, s);
                  if (inside(i, c.in_size[kHeight]) && inside(j, c.in_size[kWidth]))
                    sum += static_cast<double>(input.at(b, g * c.in_channels + k, i, j)) *
                           static_cast<double>(weight.at(o, k, r, s));
                }
            auto a = static_cast<Accumulator<T>>(sum);
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
          for (int64_t j = 0; j < c.in_size[kWidth]; ++j) {
            double sum = 0.0;
            for (int64_t o = g * c.out_channels; o < (g + 1) * c.out_channels; ++o)
              for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
                for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
                  // The output position that meets input position (i, j) at tap (r, s), if
                  // there is one: the index identity solved for m and n.
                  const int64_t row = i - c.input_position(kHeight, 0, r);
                  const int64_t column = j - c.input_position(kWidth, 0, s);
                  if (row % c.stride[kHeight] || column % c.stride[kWidth]) continue;
                  const int64_t m = row / c.stride[kHeight];
                  const int64_t n = column / c.stride[kWidth];
                  if (inside(m, c.out_size[kHeight]) && inside(n, c.out_size[kWidth]))
                    sum += static_cast<double>(delta.at(b, o, m, n)) *
                           static_cast<double>(weight.at(o, k, r, s));
                }
            input_grad.at(b, g * c.in_channels + k, i, j) = static_cast<T>(sum);
          }
}

// L4: dL/dw[o, k, r, s] = sum_{m,n} delta_o[m, n] a_k[i, j]
// L5: dL/dbias_o = sum_{m,n} delta_o[m, n], where bias_grad is asked for
template <typename T>
void conv2d_weight_grad(const ConvProblem& c, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  for (int64_t g = 0; g < c.groups; ++g)
    for (int64_t o = g * c.out_channels; o < (g + 1) * c.out_channels; ++o) {
      for (int64_t k = 0; k < c.in_channels; ++k)
        for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
          for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
            double sum = 0.0;
            for (int64_t b = 0; b < c.batch; ++b)
              for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
                for (int64_t n = 0; n < c.out_size[kWidth]; ++n) {
                  const int64_t i = c.input_position(kHeight, m, r);
                  const int64_t j = c.input_position(kWidth, n, s);
                  if (inside(i, c.in_size[kHeight]) && inside(j, c.in_size[kWidth]))
                    sum += static_cast<double>(delta.at(b, o, m, n)) *
                           static_cast<double>(input.at(b, g * c.in_channels + k, i, j));
                }
            weight_grad.at(o, k, r, s) = static_cast<T>(sum);
          }
      if (bias_grad) {
        double sum = 0.0;
        for (int64_t b = 0; b < c.batch; ++b)
          for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
            for (int64_t n = 0; n < c.out_size[kWidth]; ++n)
              sum += static_cast<double>(delta.at(b, o, m, n));
        bias_grad[o] = static_cast<T>(sum);
      }
    }
}

}  // namespace convbp::plain
