// A tile of a matrix in shared memory, in chunks of 16 bytes.
//
// A matrix operand has a length (rows of A, columns of B) and a depth, over which is summed. What
// lies closest together in global memory, one or the other, does so here. Chunk c of row r is in
// place c ^ r (as far as the row, or 128 bytes of it, has places): eight rows' chunks of one c,
// what ldmatrix reads at a time, then lie in 32 different banks, and nothing is wasted on padding.
#pragma once

#include "device.h"

namespace convbp::cuda::gemm {

enum class Innermost { kDepth, kLength };

template <typename T>
constexpr int kPack = 16 / sizeof(T);  // elements of a chunk

template <typename T, int n>
struct alignas(n * sizeof(T)) Vector {
  T element[n];
};

template <typename T>
using Chunk = Vector<T, kPack<T>>;

template <typename T, int length, int depth, Innermost innermost>
struct SharedTile {
  static constexpr Innermost kInnermost = innermost;
  static constexpr int kDepth = depth;
  static constexpr int kRows = innermost == Innermost::kDepth ? length : depth;
  static constexpr int kChunks = (innermost == Innermost::kDepth ? depth : length) / kPack<T>;
  static constexpr int kBytes = kRows * kChunks * 16;
  static_assert(kChunks == 4 || kChunks % 8 == 0);

  Chunk<T>* data;

  // The place repeats itself, a whole number of rows further, every eight rows.
  __device__ static int place(int row, int c) {
    const int moved = kChunks == 4 ? c ^ (row / 2 % 4) : c ^ (row % 8);
    return row * kChunks + moved;
  }
  __device__ Chunk<T>* chunk(int row, int c) const { return data + place(row, c); }

  __device__ T at(int row, int element) const {
    return chunk(row, element / kPack<T>)->element[element % kPack<T>];
  }
};

}  // namespace convbp::cuda::gemm
