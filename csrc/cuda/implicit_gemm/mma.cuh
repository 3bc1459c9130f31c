// The multiply-accumulate: a warp's part of a tile of sums, in registers,
//
//     sum[i, j] += sum_k a[i, k] b[k, j]
//
// on two tiles in shared memory. The depth is added in ascending order, step by step, whatever the
// tile: an element's sum does not depend on the tile it is in. The rows of a can be added too,
// which gives the bias gradient (L5) where a is delta.
//
// Tensor cores (bfloat16, float16, TF32): mma m16n8k16 or m16n8k8, sums in float32. Both take 32
// bytes of depth a step and spread them over the lanes in the same way, so that one piece of code
// loads the fragments of both.
//
// Strict float32, and float64: fused multiply-adds of the element type, with all that IEEE 754 says
// of infinities, NaN and huge values, and with the textbook's error: at most K units of roundoff of
// sum |a| |b|. Three TF32 products in place of one (3xTF32) promise more speed, but make NaN of an
// infinity's parts unless the code looks for them, and round the largest numbers to infinity. They
// also leave the order and the rounding of the additions to hardware that does not document them. A
// user who prefers speed tells torch so, and gets TF32.
#pragma once

#include <cstring>

#include "core/host_device.h"
#include "core/types.h"
#include "cuda/implicit_gemm/tile.cuh"

namespace convbp::cuda::gemm {

template <typename T>
__device__ uint32_t bits_of(T value) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

CONVBP_BOTH inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// --- tensor cores ---------------------------------------------------------------------------

template <Half16 type, uint32_t ones>
struct Half16Products {
  __device__ static uint32_t rounded(uint32_t pair) { return pair; }
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add<type>(sum, a, b);
  }
  __device__ static void add_rows(float (&sum)[4], const uint32_t (&a)[4]) {
    multiply(sum, a, {ones, ones});
  }
};

struct Tf32Products {
  __device__ static uint32_t rounded(uint32_t bits) { return to_tf32(float_of(bits)); }
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_tf32(sum, a, b);
  }
  // The rows' sums are no products, in which TF32 is allowed. So a is split into two parts: the
  // upper bits and, where anything is left, the rest, from which less than 2^-21 of a is cut off.
  __device__ static void add_rows(float (&sum)[4], const uint32_t (&a)[4]) {
    constexpr uint32_t kOne = 0x3f800000u;
    uint32_t upper[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      upper[i] = a[i] & ~0x1fffu;
      const float all = float_of(a[i]), most = float_of(upper[i]);
      rest[i] = bits_of(all == most ? 0.f : all - most);
    }
    multiply(sum, upper, {kOne, kOne});
    multiply(sum, rest, {kOne, kOne});
  }
};

// Loads a step's fragments of a: 16 rows by 32 bytes of depth. The rows are `first` and on, and
// `further`, so that an address is a lane's part and a constant. Lane 4 g + t has of rows g and
// g + 8 the words t and t + 4.
template <typename T, int length, int depth>
__device__ void load_a(uint32_t (&a)[4],
                       const SharedTile<T, length, depth, Innermost::kDepth>& tile, int first,
                       int further, int step, int lane) {
  load_matrices(a, tile.chunk(first + lane % 16, 2 * step + lane / 16, further));
}

// Loads two fragments of b: 16 columns.
template <typename T, int length, int depth>
__device__ void load_b(uint32_t (&b)[4],
                       const SharedTile<T, length, depth, Innermost::kDepth>& tile, int first,
                       int further, int step, int lane) {
  load_matrices(b, tile.chunk(first + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2, further));
}

// Loads a with the length innermost: 16-bit elements by transposing matrices, others one by one.
// The step's eight depths may be numbered in any way, as long as a and b agree: with 2 t and
// 2 t + 1 for words t and t + 4, the lanes read from 32 banks.
template <typename T, int length, int depth>
__device__ void load_a(uint32_t (&a)[4],
                       const SharedTile<T, length, depth, Innermost::kLength>& tile, int first,
                       int further, int step, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(
        a, tile.chunk(lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2, 16 * step) + further / 8);
  } else {
    const T* const from = &tile.at(lane % 4 * 2, first + lane / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = bits_of(*(from + (8 * step + i / 2) * tile.kRowLength + i % 2 * 8 + further));
  }
}

template <typename T, int length, int depth>
__device__ void load_b(uint32_t (&b)[4],
                       const SharedTile<T, length, depth, Innermost::kLength>& tile, int first,
                       int further, int step, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(b,
                             tile.chunk(lane % 16, first / 8 + lane / 16, 16 * step) + further / 8);
  } else {
    const T* const from = &tile.at(lane % 4 * 2, first + lane / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      b[i] = bits_of(*(from + (8 * step + i % 2) * tile.kRowLength + i / 2 * 8 + further));
  }
}

// A warp's rows x columns sums.
template <typename Products, int rows, int columns>
class TensorCoreSums {
 public:
  using Sum = float;

  // Multiplies the tiles, from the given row and column on.
  template <typename A, typename B>
  __device__ void multiply(const A& a_tile, const B& b_tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    constexpr int kSteps = kStepsOf<A>;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[kBlocks][4], b[kPairs][4];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) load_a(a[i], a_tile, row, 16 * i, step, lane);
#pragma unroll
      for (int j = 0; j < kPairs; ++j) load_b(b[j], b_tile, column, 16 * j, step, lane);
#pragma unroll
      for (auto& fragment : a)
        for (uint32_t& word : fragment) word = Products::rounded(word);
#pragma unroll
      for (auto& fragment : b)
        for (uint32_t& word : fragment) word = Products::rounded(word);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int j = 0; j < 2 * kPairs; ++j)
          Products::multiply(sum_[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
    }
  }

  template <typename A>
  __device__ void add_rows(const A& a_tile, int row) {
#pragma unroll
    for (int step = 0; step < kStepsOf<A>; ++step)
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        uint32_t a[4];
        load_a(a, a_tile, row, 16 * i, step, threadIdx.x % 32);
        Products::add_rows(row_sum_[i], a);
      }
  }

  // Calls body(row, column, sums) for each of this lane's sums, neighbours in a row together.
  template <typename Body>
  __device__ void each(const Body& body) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          body(16 * i + e / 2 * 8 + lane / 4, 8 * j + lane % 4 * 2,
               Pack<Sum, 2>{sum_[i][j][e], sum_[i][j][e + 1]});
  }

  template <typename Body>
  __device__ void each_row_sum(const Body& body) const {
    const int lane = threadIdx.x % 32;
    if (lane % 4) return;  // every column holds the same
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      body(16 * i + lane / 4, row_sum_[i][0]);
      body(16 * i + 8 + lane / 4, row_sum_[i][2]);
    }
  }

 private:
  template <typename Tile>
  static constexpr int kStepsOf = Tile::kDepth * sizeof(Tile::data->element[0]) / 32;
  static constexpr int kBlocks = rows / 16, kPairs = columns / 16;
  float sum_[kBlocks][2 * kPairs][4] = {};
  float row_sum_[kBlocks][4] = {};  // not touched, and in no register, where nobody asks
};

// --- multiply-adds --------------------------------------------------------------------------

// The lanes lie 4 x 8. With the depth innermost a lane's rows are four apart, its columns eight;
// with the length innermost whole chunks of rows and columns are. Either way the lanes that read at
// the same time find their chunks in different banks, or read the same chunk.
template <typename T, int rows, int columns, Innermost innermost>
class MultiplyAddSums {
 public:
  using Sum = T;

  template <typename A, typename B>
  __device__ void multiply(const A& a_tile, const B& b_tile, int row, int column) {
    static_assert(A::kInnermost == innermost && B::kInnermost == innermost);
    const int lane_row = threadIdx.x % 32 / 8, lane_column = threadIdx.x % 8;
    if constexpr (innermost == Innermost::kDepth) {
#pragma unroll 1  // more at a time would use up the registers
      for (int c = 0; c < A::kChunks; ++c) {
        Chunk<T> a[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i)
          a[i] = *a_tile.chunk(row + lane_row + 4 * (i % 2), c, i / 2 * 8);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const Chunk<T> b = *b_tile.chunk(column + lane_column, c, 8 * j);
#pragma unroll
          for (int e = 0; e < kPack<T>; ++e)
#pragma unroll
            for (int i = 0; i < kRows; ++i) sum_[i][j] += a[i].element[e] * b.element[e];
        }
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < A::kDepth; ++k) {
        Chunk<T> a[kRows / kPack<T>], b[kColumns / kPack<T>];
#pragma unroll
        for (int i = 0; i < kRows / kPack<T>; ++i)
          a[i] = *a_tile.chunk(k, row / kPack<T> + lane_row + 4 * i);
#pragma unroll
        for (int j = 0; j < kColumns / kPack<T>; ++j)
          b[j] = *b_tile.chunk(k, column / kPack<T> + lane_column + 8 * j);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const T value = a[i / kPack<T>].element[i % kPack<T>];
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            sum_[i][j] += value * b[j / kPack<T>].element[j % kPack<T>];
        }
      }
    }
  }

  template <typename A>
  __device__ void add_rows(const A& a_tile, int row) {
    static_assert(innermost == Innermost::kLength);
    for (int k = 0; k < A::kDepth; ++k)
#pragma unroll
      for (int i = 0; i < kRows; i += kPack<T>) {
        const Chunk<T> a = *a_tile.chunk(k, (row + row_of(i)) / kPack<T>);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) row_sum_[i + e] += a.element[e];
      }
  }

  template <typename Body>
  __device__ void each(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; j += kNeighbours) {
        Pack<Sum, kNeighbours> sums;
#pragma unroll
        for (int e = 0; e < kNeighbours; ++e) sums.element[e] = sum_[i][j + e];
        body(row_of(i), column_of(j), sums);
      }
  }

  template <typename Body>
  __device__ void each_row_sum(const Body& body) const {
    if (threadIdx.x % 8) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) body(row_of(i), row_sum_[i]);
  }

 private:
  static constexpr int kRows = rows / 4, kColumns = columns / 8;
  static constexpr int kNeighbours = innermost == Innermost::kDepth ? 1 : kPack<T>;

  __device__ static int row_of(int i) { return position(i, threadIdx.x % 32 / 8, 4); }
  __device__ static int column_of(int j) { return position(j, threadIdx.x % 8, 8); }
  __device__ static int position(int i, int lane, int lanes) {
    return innermost == Innermost::kDepth ? lane + i * lanes
                                          : (lane + i / kPack<T> * lanes) * kPack<T> + i % kPack<T>;
  }

  T sum_[kRows][kColumns] = {};
  T row_sum_[kRows] = {};
};

// --- what the kernels are instantiated for ----------------------------------------------------

// The arithmetic of an element type: the sums of a warp, the depth of a tile, and the number of
// tiles that are on their way at a time.
template <typename T, typename Products>
struct OnTensorCores {
  using Element = T;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 64 / sizeof(T), kStages = 4;
  template <int rows, int columns, Innermost>
  using Sums = TensorCoreSums<Products, rows, columns>;
};

template <typename T, int depth>
struct ByMultiplyAdd {
  using Element = T;
  static constexpr bool kTensorCores = false;
  static constexpr int kDepth = depth, kStages = 3;
  template <int rows, int columns, Innermost innermost>
  using Sums = MultiplyAddSums<T, rows, columns, innermost>;
};

using BFloat16Arithmetic = OnTensorCores<BFloat16, Half16Products<Half16::kBFloat16, 0x3f803f80u>>;
using Float16Arithmetic = OnTensorCores<Half, Half16Products<Half16::kFloat16, 0x3c003c00u>>;
using Tf32Arithmetic = OnTensorCores<float, Tf32Products>;
using Float32Arithmetic = ByMultiplyAdd<float, 32>;
using Float64Arithmetic = ByMultiplyAdd<double, 16>;

}  // namespace convbp::cuda::gemm
