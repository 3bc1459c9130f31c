// A tile of a matrix in shared memory, in chunks of 16 bytes.
//
// A matrix operand has a length (rows of A, columns of B) and a depth, over which the sum runs. The
// one that is innermost in global memory is innermost here too. Lanes that read at the same time
// must find their chunks in 32 different banks:
//
// - With the depth innermost, where a row is as long as the banks or half of them, chunk c of row r
//   is in place c ^ r (as far as the row has places), and nothing is wasted.
// - With the length innermost rows are long: each has a chunk more than it needs. An address is
//   then a sum, of which all but the lane's part is known to the compiler.
#pragma once

#include "cuda/device.h"
#include "cuda/pack.h"

namespace convbp::cuda::gemm {

enum class Innermost { kDepth, kLength };

template <typename T>
constexpr int kPack = 16 / sizeof(T);  // elements of a chunk

template <typename T>
using Chunk = Pack<T, kPack<T>>;

template <typename T, int length, int depth, Innermost innermost>
struct SharedTile {
  static constexpr Innermost kInnermost = innermost;
  static constexpr int kDepth = depth;
  static constexpr int kRows = innermost == Innermost::kDepth ? length : depth;
  static constexpr int kChunks = (innermost == Innermost::kDepth ? depth : length) / kPack<T>;
  static constexpr int kPitch = innermost == Innermost::kDepth ? kChunks : kChunks + 1;
  static constexpr int kRowLength = kPitch * kPack<T>;  // elements of a row
  static constexpr int kBytes = kRows * kPitch * 16;
  static_assert(kChunks == 4 || kChunks % 8 == 0);

  Chunk<T>* data;

  __device__ static int place(int row, int c) {
    if constexpr (innermost == Innermost::kDepth) c ^= kChunks == 4 ? row / 2 % 4 : row % 8;
    return row * kPitch + c;
  }
  __device__ Chunk<T>* chunk(int row, int c) const { return data + place(row, c); }
  // The chunk of a row that is a multiple of eight further on, where places are the same.
  __device__ Chunk<T>* chunk(int row, int c, int further) const {
    return chunk(row, c) + further * kPitch;
  }

  __device__ T& at(int row, int element) const {
    return chunk(row, element / kPack<T>)->element[element % kPack<T>];
  }
};

}  // namespace convbp::cuda::gemm
