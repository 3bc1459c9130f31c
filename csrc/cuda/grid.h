// How a kernel without shared memory spreads a run of numbers over its threads.
#pragma once

#include <algorithm>

#include "device.h"

namespace convbp::cuda {

constexpr int kThreads = 256;

// As many blocks as `count` threads need; a kernel's loop takes what is beyond the most.
inline dim3 blocks_for(int64_t count, const Context& context) {
  const int64_t most = int64_t{64} * context.multiprocessors;
  return dim3(static_cast<unsigned>(
      std::max<int64_t>(1, std::min((count + kThreads - 1) / kThreads, most))));
}

// Calls body(i) for each i < count that is this thread's.
template <typename Body>
__device__ void each(int64_t count, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    body(i);
}

// A position of a four-dimensional tensor, from its number in the order in which memory holds it:
// with channels innermost, or as the dimensions are written.
struct Position {
  int64_t b, c, i, j;

  CONVBP_BOTH Position(int64_t number, const int64_t (&size)[4], bool channels_innermost) {
    if (channels_innermost) take(number, c, size[1]);
    take(number, j, size[3]);
    take(number, i, size[2]);
    if (!channels_innermost) take(number, c, size[1]);
    b = number;
  }

 private:
  CONVBP_BOTH static void take(int64_t& number, int64_t& digit, int64_t size) {
    digit = number % size;
    number /= size;
  }
};

// Are channels what lies closest together?
inline bool channels_innermost(const int64_t (&stride)[4]) {
  return stride[1] < stride[3];
}

}  // namespace convbp::cuda
