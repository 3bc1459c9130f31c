// The shape of a block's work, and the loop over the depth that the convolutions share:
//
//     for each tile of the depth: sums += a tile * b tile
//
// While one tile is multiplied, the next ones are on their way into shared memory (cp.async): a
// ring of kStages places, one barrier a tile.
#pragma once

#include "cuda/implicit_gemm/mma.cuh"

namespace convbp::cuda::gemm {

// Rows x columns sums a block, shared out among warps_down x warps_across warps. `elements`: the
// convolution's operands, or the weight gradient's input, are read element by element, from any
// strides, not in chunks.
template <typename Arithmetic, int rows, int columns, int warps_down, int warps_across,
          bool elements, Innermost innermost>
struct Shape {
  using Element = typename Arithmetic::Element;
  using A = SharedTile<Element, rows, Arithmetic::kDepth, innermost>;
  using B = SharedTile<Element, columns, Arithmetic::kDepth, innermost>;
  static constexpr int kRows = rows, kColumns = columns, kDepth = Arithmetic::kDepth;
  static constexpr int kStages = Arithmetic::kStages;
  static constexpr int kThreads = 32 * warps_down * warps_across;
  static constexpr bool kElements = elements, kTensorCores = Arithmetic::kTensorCores;
  static constexpr int kWarpRows = rows / warps_down, kWarpColumns = columns / warps_across;
  using Sums = typename Arithmetic::template Sums<kWarpRows, kWarpColumns, innermost>;
  using Sum = typename Sums::Sum;
  static constexpr int kRingBytes = kStages * (A::kBytes + B::kBytes);
  static_assert(kRingBytes <= 99 << 10, "more than a block has with compute capability 8.6");

  __device__ static int warp_row() { return threadIdx.x / 32 / warps_across * kWarpRows; }
  __device__ static int warp_column() { return threadIdx.x / 32 % warps_across * kWarpColumns; }
};

// Multiplies tile after tile of the depth. loader.load(a, b) begins to copy the next tile, and is
// called by all threads for one tile after the other; with_a(a) finds each tile of a while it is
// there. After the loop the ring is free for something else.
template <typename S, typename Loader, typename WithA>
__device__ void multiply_tiles(typename S::Sums& sums, Loader& loader, int tiles,
                               const WithA& with_a) {
  char* const ring = shared_memory<char>();
  const auto a_tile = [&](int place) {
    return typename S::A{reinterpret_cast<Chunk<typename S::Element>*>(
        ring + place * (S::A::kBytes + S::B::kBytes))};
  };
  const auto b_tile = [&](int place) {
    return typename S::B{reinterpret_cast<Chunk<typename S::Element>*>(
        ring + place * (S::A::kBytes + S::B::kBytes) + S::A::kBytes)};
  };
  for (int tile = 0; tile < S::kStages - 1; ++tile) {
    if (tile < tiles) loader.load(a_tile(tile), b_tile(tile));
    commit_copies();
  }
  int place = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<S::kStages - 2>();
    barrier();
    // The place of the tile before this one: all threads are done with it.
    const int free = place == 0 ? S::kStages - 1 : place - 1;
    if (tile + S::kStages - 1 < tiles) loader.load(a_tile(free), b_tile(free));
    commit_copies();
    sums.multiply(a_tile(place), b_tile(place), S::warp_row(), S::warp_column());
    with_a(a_tile(place));
    place = place + 1 == S::kStages ? 0 : place + 1;
  }
  wait_for_copies<0>();
  barrier();
}

}  // namespace convbp::cuda::gemm
