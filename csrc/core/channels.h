// The size of a tensor with channels, as element-wise kernels need it.
#pragma once

#include <cstdint>

namespace convbp {

// A dense tensor as its channels lie in memory: contiguous [N, C, H, W] is (N, C, H * W),
// channels_last (N * H * W, C, 1), a dense layer's [N, C] (N, C, 1).
struct Channels {
  int64_t outer, channels, inner;
};

}  // namespace convbp
