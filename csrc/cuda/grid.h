// Numbers spread over threads, and the position of a tensor that a number stands for.
#pragma once

#include <algorithm>

#include "core/integers.h"
#include "cuda/device.h"

namespace convbp::cuda {

constexpr int kThreads = 256;

// The blocks that `count` threads need, up to a limit; a kernel's loop takes the rest.
inline dim3 blocks_for(int64_t count, const Context& context) {
  const int64_t most = int64_t{64} * context.multiprocessors;
  return dim3(
      static_cast<unsigned>(std::max<int64_t>(1, std::min(divide_up(count, kThreads), most))));
}

// Calls body(i) for each i < count that is this thread's.
template <typename Body>
__device__ void each(int64_t count, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    body(i);
}

// A position of a four-dimensional tensor, from its number in the order in which memory holds it:
// with channels innermost, or as the dimensions are written.
struct Position {
  int64_t b, c, i, j;

  Position() = default;
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

// Division of numbers below 2^31 without a division: by a multiplication whose factor the host
// finds (Granlund and Montgomery, 1994). A GPU divides integers slowly.
struct Divisor {
  uint32_t divisor = 1, factor = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    factor = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }
  CONVBP_BOTH uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32) + n) >> shift;
  }
  // Takes the last digit off a number, in the number system of this base.
  CONVBP_BOTH uint32_t take(uint32_t& rest) const {
    const uint32_t left = quotient(rest), digit = rest - left * divisor;
    rest = left;
    return digit;
  }
};

// The positions of a tensor, numbered in the order in which memory holds them.
struct Positions {
  int64_t size[4], count;
  bool channels_innermost;
  bool small;  // 32 bits are enough for the numbers
  Divisor by[4];

  Positions(const int64_t (&size_)[4], bool channels_innermost_)
      : count(1), channels_innermost(channels_innermost_) {
    for (int d = 0; d < 4; ++d) count *= size[d] = size_[d];
    small = count > 0 && count < int64_t{1} << 31;
    for (int d = 0; small && d < 4; ++d) by[d] = Divisor(static_cast<uint32_t>(size[d]));
  }
  CONVBP_BOTH Position position(int64_t number) const {
    if (!small) return Position(number, size, channels_innermost);
    Position at{};
    auto rest = static_cast<uint32_t>(number);
    if (channels_innermost) at.c = by[1].take(rest);
    at.j = by[3].take(rest);
    at.i = by[2].take(rest);
    if (!channels_innermost) at.c = by[1].take(rest);
    at.b = rest;
    return at;
  }
};

CONVBP_BOTH inline bool inside(int position, int size) {
  return static_cast<unsigned>(position) < static_cast<unsigned>(size);
}

// True where channels lie closest together.
inline bool channels_innermost(const int64_t (&stride)[4]) {
  return stride[1] <= stride[3];
}

}  // namespace convbp::cuda
