// A tensor as an operand of the implicit GEMM, and a convolution's axes in 32 bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "core/conv_problem.h"
#include "core/host_device.h"
#include "cuda/grid.h"

namespace convbp::cuda::gemm {

// Element (group, item, channel, row, pixel): of activations the items are the batch; of weights
// they are filters or, where the sum is over filters, their channels. `channel` is 1 where the
// kernels read whole chunks of channels.
template <typename T>
struct Operand {
  T* data;
  int64_t group, item, channel, row, pixel;
};

// channels: those of one group.
template <typename T>
Operand<T> activations(const View<T>& v, int64_t channels) {
  return {v.data, channels * v.stride[1], v.stride[0], v.stride[1], v.stride[2], v.stride[3]};
}

template <typename T>
Operand<T> filters(const View<T>& v, int64_t out_channels) {
  return {v.data, out_channels * v.stride[0], v.stride[0], v.stride[1], v.stride[2], v.stride[3]};
}

// The filters, with the roles of filters and their channels exchanged.
template <typename T>
Operand<T> filters_transposed(const View<T>& v, int64_t out_channels) {
  return {v.data, out_channels * v.stride[0], v.stride[1], v.stride[0], v.stride[2], v.stride[3]};
}

// Result `first_result + y * result_step` meets, at tap `first_tap + t * tap_step`, source position
// `source + y * source_step + t * source_tap`, for y < results and t < taps.
struct Phase {
  int first_result, result_step, results;
  int first_tap, tap_step, taps;
  int source, source_step, source_tap;
  Divisor by_results;
};

// One axis of a convolution, or of its input gradient. The input gradient falls into phases, one
// for each remainder of the result's position by the stride. Every result of a phase meets the same
// taps, so each phase is a convolution of stride 1 of its own, and no structural zero is
// multiplied.
struct GemmAxis {
  int sources, results, taps, stride, pad, dilation;
  int phases;  // 1 for the convolution itself
  bool transposed;
  int divisor;            // the greatest common divisor of the stride and the dilation
  Divisor by_results[2];  // a phase's results: the most that one has, or one less

  static GemmAxis of(const ConvProblem& p, Spatial axis, bool transposed) {
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    const int in = number(p.in_size[axis]), out = number(p.out_size[axis]);
    const int stride = number(p.stride[axis]), dilation = number(p.dilation[axis]);
    GemmAxis a{transposed ? out : in,
               transposed ? in : out,
               number(p.kernel[axis]),
               stride,
               number(p.pad[axis]),
               dilation,
               transposed ? std::min(stride, in) : 1,
               transposed,
               std::gcd(stride, dilation)};
    const int most = a.most_results();
    a.by_results[0] = Divisor(std::max(most, 1));
    a.by_results[1] = Divisor(std::max(most - 1, 1));
    return a;
  }

  CONVBP_BOTH int most_results() const { return (results + phases - 1) / phases; }

  CONVBP_BOTH Phase phase(int number) const {
    if (!transposed) return {0, 1, results, 0, 1, taps, -pad, stride, dilation, by_results[0]};
    // i = number + y * stride; tap r meets it where (i + pad - r * dilation) % stride == 0, at
    // source (i + pad - r * dilation) / stride: for one tap in every stride / divisor, if any.
    const int tap_step = stride / divisor;
    const int limit = tap_step < taps ? tap_step : taps;
    int first = 0;
    while (first < limit && (number + pad - first * dilation) % stride) ++first;
    const int met = first < limit ? (taps - first + tap_step - 1) / tap_step : 0;
    const int met_by = (results - number + stride - 1) / stride;
    return {number,
            stride,
            met_by,
            first,
            tap_step,
            met,
            met ? (number + pad - first * dilation) / stride : 0,
            1,
            -(dilation / divisor),
            by_results[met_by != most_results()]};
  }
};

}  // namespace convbp::cuda::gemm
