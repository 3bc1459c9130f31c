// A pooling in numbers: the one description that crosses from the boundary to the kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/conv_problem.h"

namespace convbp {

struct Range {
  int64_t begin, end;
};

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
  // Parameters of average pooling only.
  bool count_include_pad = true;
  int64_t divisor_override = 0;  // 0: none

  CONVBP_BOTH int64_t taps() const { return kernel[0] * kernel[1]; }
  CONVBP_BOTH int64_t input_position(Spatial axis, int64_t out, int64_t tap) const {
    return out * stride[axis] - pad[axis] + tap * dilation[axis];
  }
  CONVBP_BOTH bool inside(Spatial axis, int64_t position) const {
    return 0 <= position && position < in_size[axis];
  }
  // The taps of output position `out` that lie at the input positions [begin, end).
  CONVBP_BOTH Range taps_within(Spatial axis, int64_t out, int64_t begin, int64_t end) const {
    const int64_t start = input_position(axis, out, 0);
    return {first_at(start, dilation[axis], begin, kernel[axis]),
            first_at(start, dilation[axis], end, kernel[axis])};
  }
  CONVBP_BOTH Range taps_inside(Spatial axis, int64_t out) const {
    return taps_within(axis, out, 0, in_size[axis]);
  }
  // The output positions whose tap lies inside the input.
  CONVBP_BOTH Range outputs_inside(Spatial axis, int64_t tap) const {
    const int64_t start = input_position(axis, 0, tap);
    return {first_at(start, stride[axis], 0, out_size[axis]),
            first_at(start, stride[axis], in_size[axis], out_size[axis])};
  }
  // The output positions whose windows may have taps at the input positions [begin, end).
  CONVBP_BOTH Range outputs_meeting(Spatial axis, int64_t begin, int64_t end) const {
    const int64_t first = input_position(axis, 0, 0);
    const int64_t last = input_position(axis, 0, kernel[axis] - 1);
    return {first_at(last, stride[axis], begin, out_size[axis]),
            first_at(first, stride[axis], end, out_size[axis])};
  }
  // The positions of the window that count on this axis. Padding counts where count_include_pad
  // says so; positions that ceil_mode adds after the padding never count.
  CONVBP_BOTH int64_t counted(Spatial axis, int64_t out) const {
    const int64_t begin = input_position(axis, out, 0);
    const int64_t padding = count_include_pad ? pad[axis] : 0;
    const int64_t end = std::min(begin + kernel[axis], in_size[axis] + padding);
    return end - (count_include_pad ? begin : std::max<int64_t>(begin, 0));
  }
  // The divisor of the sum of window (m, n) is the product of a factor of m and a factor of n.
  CONVBP_BOTH int64_t row_divisor(int64_t m) const {
    return divisor_override ? divisor_override : counted(kHeight, m);
  }
  CONVBP_BOTH int64_t column_divisor(int64_t n) const {
    return divisor_override ? 1 : counted(kWidth, n);
  }

 private:
  // The index of the first of `count` positions start, start + step, ... not before `position`.
  CONVBP_BOTH static int64_t first_at(int64_t start, int64_t step, int64_t position,
                                      int64_t count) {
    if (position <= start) return 0;
    return std::min((position - start + step - 1) / step, count);
  }
};

namespace pool {

// Calls body(offset, i, j) for every position of window (m, n) that lies inside the input.
template <typename Body>
CONVBP_BOTH void each_position(const PoolProblem& p, int64_t m, int64_t n, const Body& body) {
  const Range rows = p.taps_inside(kHeight, m), columns = p.taps_inside(kWidth, n);
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = columns.begin; s < columns.end; ++s)
      body(r * p.kernel[kWidth] + s, p.input_position(kHeight, m, r),
           p.input_position(kWidth, n, s));
}

// Calls body(m, n) for every window that may have position (i, j).
template <typename Body>
CONVBP_BOTH void each_window(const PoolProblem& p, int64_t i, int64_t j, const Body& body) {
  const Range rows = p.outputs_meeting(kHeight, i, i + 1);
  const Range columns = p.outputs_meeting(kWidth, j, j + 1);
  for (int64_t m = rows.begin; m < rows.end; ++m)
    for (int64_t n = columns.begin; n < columns.end; ++n) body(m, n);
}

// The offset of a window without a position inside the input: the largest value. Offsets are
// unsigned bytes where all values fit, else 32-bit.
template <typename Offset>
constexpr Offset kNowhere = static_cast<Offset>(~Offset(0));

}  // namespace pool
}  // namespace convbp
