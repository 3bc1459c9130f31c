// The equations, one sum after the other: one element of each operator's result.
//
// The loop nests (cpu/reference/conv2d.h) and the reference CUDA kernels
// (cuda/reference/conv2d.cuh) go through the elements and call these sums. All sums run in double
// precision whatever the element type, in the order of the loops.
//
// Taps outside the input are skipped here; the fast kernels multiply by the zeros of the padding
// instead. Both give the same number unless a weight is infinite or NaN, which then shows at the
// border, as it does in torch.
#pragma once

#include "core/conv_problem.h"
#include "core/host_device.h"

namespace convbp::reference {

CONVBP_BOTH inline bool inside(int64_t position, int64_t size) {
  return 0 <= position && position < size;
}

// L1: start + sum_k sum_{r,s} a_k[i, j] w[o, k, r, s], of sample b, filter o, position (m, n).
template <typename T>
CONVBP_BOTH double output_sum(const ConvProblem& c, const View<const T>& input,
                              const View<const T>& weight, double start, int64_t b, int64_t o,
                              int64_t m, int64_t n) {
  const int64_t first = o / c.out_channels * c.in_channels;  // first channel of the group
  double sum = start;
  for (int64_t k = 0; k < c.in_channels; ++k)
    for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
      for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
        const int64_t i = c.input_position(kHeight, m, r);
        const int64_t j = c.input_position(kWidth, n, s);
        if (inside(i, c.in_size[kHeight]) && inside(j, c.in_size[kWidth]))
          sum += static_cast<double>(input.at(b, first + k, i, j)) *
                 static_cast<double>(weight.at(o, k, r, s));
      }
  return sum;
}

// L6: sum_o sum over the (m, n, r, s) that meet at (i, j) of delta_o[m, n] w[o, k, r, s], of sample
// b, channel k of group g, position (i, j).
template <typename T>
CONVBP_BOTH double input_grad_sum(const ConvProblem& c, const View<const T>& weight,
                                  const View<const T>& delta, int64_t b, int64_t g, int64_t k,
                                  int64_t i, int64_t j) {
  double sum = 0.0;
  for (int64_t o = g * c.out_channels; o < (g + 1) * c.out_channels; ++o)
    for (int64_t r = 0; r < c.kernel[kHeight]; ++r)
      for (int64_t s = 0; s < c.kernel[kWidth]; ++s) {
        // The output position that meets input position (i, j) at tap (r, s), if there is one: the
        // index identity solved for m and n.
        const int64_t row = i - c.input_position(kHeight, 0, r);
        const int64_t column = j - c.input_position(kWidth, 0, s);
        if (row % c.stride[kHeight] || column % c.stride[kWidth]) continue;
        const int64_t m = row / c.stride[kHeight];
        const int64_t n = column / c.stride[kWidth];
        if (inside(m, c.out_size[kHeight]) && inside(n, c.out_size[kWidth]))
          sum += static_cast<double>(delta.at(b, o, m, n)) *
                 static_cast<double>(weight.at(o, k, r, s));
      }
  return sum;
}

// L4: sum_{m,n} delta_o[m, n] a_k[i, j], of filter o, channel k of its group, tap (r, s).
template <typename T>
CONVBP_BOTH double weight_grad_sum(const ConvProblem& c, const View<const T>& input,
                                   const View<const T>& delta, int64_t o, int64_t k, int64_t r,
                                   int64_t s) {
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
  return sum;
}

// L5: sum_{m,n} delta_o[m, n], of filter o.
template <typename T>
CONVBP_BOTH double bias_grad_sum(const ConvProblem& c, const View<const T>& delta, int64_t o) {
  double sum = 0.0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t m = 0; m < c.out_size[kHeight]; ++m)
      for (int64_t n = 0; n < c.out_size[kWidth]; ++n)
        sum += static_cast<double>(delta.at(b, o, m, n));
  return sum;
}

}  // namespace convbp::reference
