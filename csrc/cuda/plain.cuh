// The three operators, one thread an output: the equations, one sum after the other.
//
// This is the first thing to read, and what the fast kernels are tested against. All sums run in
// double precision whatever the element type, in the order of the loops; taps outside the input are
// skipped. The loops are those of ../cpu/plain.h, whose outer ones are the threads here.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"
#include "grid.h"

namespace convbp::cuda::plain::kernels {

CONVBP_BOTH inline bool inside(int64_t position, int64_t size) {
  return 0 <= position && position < size;
}

// L1: p_o[m, n] = bias_o + sum_k sum_{r,s} a_k[i, j] w[o, k, r, s]
// L2: a_o = g(p_o)
template <typename T>
__global__ void conv2d(ConvProblem c, View<const T> input, View<const T> weight,
                       Epilogue<T> epilogue, View<T> output, bool channels_innermost) {
  const int64_t size[4] = {c.batch, c.groups * c.out_channels, c.out_size[0], c.out_size[1]};
  each(size[0] * size[1] * size[2] * size[3], [&](int64_t number) {
    const auto [b, o, m, n] = Position(number, size, channels_innermost);
    const int64_t first = o / c.out_channels * c.in_channels;
    double sum = 0.0;
    for (int64_t k = 0; k < c.in_channels; ++k)
      for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
          const int64_t i = c.input_position(kHeight, m, r);
          const int64_t j = c.input_position(kWidth, n, s);
          if (inside(i, c.in_size[kHeight]) && inside(j, c.in_size[kWidth]))
            sum += static_cast<double>(input.at(b, first + k, i, j)) *
                   static_cast<double>(weight.at(o, k, r, s));
        }
    T* const result = &output.at(b, o, m, n);
    *result = epilogue.finish(static_cast<Accumulator<T>>(sum), o, result - output.data);
  });
}

// L6: dL/da_k[i, j] = sum_o sum over the (m, n, r, s) that meet at (i, j) of
//     delta_o[m, n] w[o, k, r, s]
template <typename T>
__global__ void conv2d_input_grad(ConvProblem c, View<const T> weight, View<const T> delta,
                                  View<T> input_grad, bool channels_innermost) {
  const int64_t size[4] = {c.batch, c.groups * c.in_channels, c.in_size[0], c.in_size[1]};
  each(size[0] * size[1] * size[2] * size[3], [&](int64_t number) {
    const auto [b, channel, i, j] = Position(number, size, channels_innermost);
    const int64_t g = channel / c.in_channels, k = channel % c.in_channels;
    double sum = 0.0;
    for (int64_t o = g * c.out_channels; o < (g + 1) * c.out_channels; ++o)
      for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
          // The output position that meets input position (i, j) at tap (r, s), if there is one:
          // the index identity solved for m and n.
          const int64_t row = i - c.input_position(kHeight, 0, r);
          const int64_t column = j - c.input_position(kWidth, 0, s);
          if (row % c.stride[kHeight] || column % c.stride[kWidth]) continue;
          const int64_t m = row / c.stride[kHeight], n = column / c.stride[kWidth];
          if (inside(m, c.out_size[kHeight]) && inside(n, c.out_size[kWidth]))
            sum += static_cast<double>(delta.at(b, o, m, n)) *
                   static_cast<double>(weight.at(o, k, r, s));
        }
    input_grad.at(b, channel, i, j) = static_cast<T>(sum);
  });
}

// L4: dL/dw[o, k, r, s] = sum_{m,n} delta_o[m, n] a_k[i, j]
template <typename T>
__global__ void conv2d_weight_grad(ConvProblem c, View<const T> input, View<const T> delta,
                                   View<T> weight_grad) {
  const int64_t size[4] = {c.groups * c.out_channels, c.in_channels, c.kernel[0], c.kernel[1]};
  each(size[0] * size[1] * size[2] * size[3], [&](int64_t number) {
    const auto [o, k, r, s] = Position(number, size, false);
    const int64_t channel = o / c.out_channels * c.in_channels + k;
    double sum = 0.0;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
        for (int64_t n = 0; n < c.out_size[kWidth]; ++n) {
          const int64_t i = c.input_position(kHeight, m, r);
          const int64_t j = c.input_position(kWidth, n, s);
          if (inside(i, c.in_size[kHeight]) && inside(j, c.in_size[kWidth]))
            sum += static_cast<double>(delta.at(b, o, m, n)) *
                   static_cast<double>(input.at(b, channel, i, j));
        }
    weight_grad.at(o, k, r, s) = static_cast<T>(sum);
  });
}

// L5: dL/dbias_o = sum_{m,n} delta_o[m, n]
template <typename T>
__global__ void bias_grad(ConvProblem c, View<const T> delta, T* bias_grad) {
  each(c.groups * c.out_channels, [&](int64_t o) {
    double sum = 0.0;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
        for (int64_t n = 0; n < c.out_size[kWidth]; ++n)
          sum += static_cast<double>(delta.at(b, o, m, n));
    bias_grad[o] = static_cast<T>(sum);
  });
}

}  // namespace convbp::cuda::plain::kernels
