// What a pooling is, in numbers: the one description that crosses from the boundary to the kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_problem.h"

namespace convbp {

// Output position (m, n) pools the input positions
//
//     i = m * stride[0] - pad[0] + r * dilation[0]
//     j = n * stride[1] - pad[1] + s * dilation[1]
//
// that lie inside the input, for r < kernel[0], s < kernel[1]; r * kernel[1] + s is the *offset*
// of a position in its window.
struct PoolProblem {
  int64_t batch;
  int64_t channels;
  int64_t in_size[2];
  int64_t kernel[2];
  int64_t out_size[2];
  int64_t stride[2];
  int64_t pad[2];
  int64_t dilation[2] = {1, 1};
  // Average pooling only.
  bool count_include_pad = true;
  int64_t divisor_override = 0;  // 0: none

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t input_position(Spatial axis, int64_t out, int64_t tap) const {
    return out * stride[axis] - pad[axis] + tap * dilation[axis];
  }
  bool inside(Spatial axis, int64_t position) const {
    return 0 <= position && position < in_size[axis];
  }
  // The first output position whose tap lies at or behind `position`.
  int64_t first_reaching(Spatial axis, int64_t tap, int64_t position) const {
    const int64_t distance = position + pad[axis] - tap * dilation[axis];
    const int64_t out = distance <= 0 ? 0 : (distance + stride[axis] - 1) / stride[axis];
    return std::min(out, out_size[axis]);
  }
  // The output position whose tap is at `position`, or -1.
  int64_t output_position(Spatial axis, int64_t tap, int64_t position) const {
    const int64_t distance = position + pad[axis] - tap * dilation[axis];
    if (distance < 0 || distance % stride[axis]) return -1;
    const int64_t out = distance / stride[axis];
    return out < out_size[axis] ? out : -1;
  }
  // How many positions of the window count on this axis: padding counts where it is included,
  // what ceil_mode adds behind it does not.
  int64_t counted(Spatial axis, int64_t out) const {
    const int64_t begin = input_position(axis, out, 0);
    const int64_t padding = count_include_pad ? pad[axis] : 0;
    const int64_t end = std::min(begin + kernel[axis], in_size[axis] + padding);
    return end - (count_include_pad ? begin : std::max<int64_t>(begin, 0));
  }
  // What the sum of window (m, n) is divided by.
  int64_t divisor(int64_t m, int64_t n) const {
    return divisor_override ? divisor_override : counted(kHeight, m) * counted(kWidth, n);
  }
};

}  // namespace convbp
