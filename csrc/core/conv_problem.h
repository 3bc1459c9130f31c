// A convolution in numbers: the one description that crosses from the boundary (which knows torch)
// to the kernels (which do not).
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace convbp {

// Index order of a two-element spatial array: height first, as in torch.
enum Spatial { kHeight = 0, kWidth = 1 };

// Output position (m, n) of filter tap (r, s) meets input position
//
//     i = m * stride[0] - pad[0] + r * dilation[0]
//     j = n * stride[1] - pad[1] + s * dilation[1]
//
// of its own group; positions outside the input count as zero. With stride 1, no padding, no
// dilation and one group, that position is a[m + r, n + s] of L1. Only the padding before the input
// (top, left) enters the identity; the padding after it (bottom, right) shows in out_size alone.
struct ConvProblem {
  int64_t batch;
  int64_t groups;
  int64_t in_channels;   // K, per group
  int64_t out_channels;  // O, per group
  int64_t in_size[2];
  int64_t kernel[2];    // R, S
  int64_t out_size[2];  // M, N
  int64_t stride[2];
  int64_t pad[2];
  int64_t dilation[2];

  // The input position that tap `tap` of output position `out` reads; may lie outside.
  CONVBP_BOTH int64_t input_position(Spatial axis, int64_t out, int64_t tap) const {
    return out * stride[axis] - pad[axis] + tap * dilation[axis];
  }
};

// A four-dimensional tensor in memory: strides count elements, in the order the
// dimensions are written (N, C, H, W for activations; O, K, R, S for weights).
template <typename T>
struct View {
  T* data;
  int64_t stride[4];

  CONVBP_BOTH T& at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return data[a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]];
  }
};

}  // namespace convbp
