// The register tile that every convolution kernel feeds. Included once per instruction set, with
// three macros set:
//   CONVBP_ISA           namespace of this copy
//   CONVBP_TARGET        function attribute that enables the instruction set
//   CONVBP_VECTOR_BYTES  width of its vectors
// Only functions marked CONVBP_TARGET hold instructions of the set: none of these leaks into inline
// functions that the linker shares with the baseline.
#pragma once

#include <cstdint>
#include <utility>

namespace convbp::CONVBP_ISA {

template <typename Acc>
struct Simd {
  static constexpr int kLanes = CONVBP_VECTOR_BYTES / sizeof(Acc);
  // A vector, aligned as its elements, so that it may be loaded from any address.
  typedef Acc Vector
      __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)), may_alias));
  // Half a vector. It costs half of a whole one where vectors have 64 bytes, elsewhere as much.
  typedef Acc Half
      __attribute__((vector_size(CONVBP_VECTOR_BYTES / 2), aligned(sizeof(Acc)), may_alias));
};

// Rows of the register tile: with 2 vectors each they fill 16 registers, or the 32 of AVX-512 and
// of NEON.
#if defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = CONVBP_VECTOR_BYTES == 64 ? 12 : 6;
#endif

#define CONVBP_INLINE_LAMBDA __attribute__((always_inline)) CONVBP_TARGET
#define CONVBP_INLINE CONVBP_INLINE_LAMBDA inline

// The vector that begins at p.
template <typename Acc>
CONVBP_INLINE typename Simd<Acc>::Vector& vector_at(Acc* p) {
  return *reinterpret_cast<typename Simd<Acc>::Vector*>(p);
}
template <typename Acc>
CONVBP_INLINE const typename Simd<Acc>::Vector& vector_at(const Acc* p) {
  return *reinterpret_cast<const typename Simd<Acc>::Vector*>(p);
}

// A row of the register tile: kHalves half vectors, whole ones but for an odd one at the end.
template <typename Acc, int kHalves>
struct TileRow {
  using Half = typename Simd<Acc>::Half;
  static constexpr int kWhole = kHalves / 2, kWholeLanes = kWhole * Simd<Acc>::kLanes;
  static constexpr int kLanes = kHalves * Simd<Acc>::kLanes / 2;
  static constexpr bool kOdd = kHalves % 2 != 0;
  typename Simd<Acc>::Vector whole[kWhole > 0 ? kWhole : 1];
  Half half;

  CONVBP_INLINE static TileRow at(const Acc* from) {
    TileRow row;
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) row.whole[v] = vector_at(from + v * Simd<Acc>::kLanes);
    if constexpr (kOdd) row.half = *reinterpret_cast<const Half*>(from + kWholeLanes);
    return row;
  }
  CONVBP_INLINE void store(Acc* to) const {
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) vector_at(to + v * Simd<Acc>::kLanes) = whole[v];
    if constexpr (kOdd) *reinterpret_cast<Half*>(to + kWholeLanes) = half;
  }
  CONVBP_INLINE void add(const TileRow& x) {
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) whole[v] += x.whole[v];
    if constexpr (kOdd) half += x.half;
  }
  CONVBP_INLINE void add_product(Acc factor, const TileRow& x) {
    const auto all = factor - typename Simd<Acc>::Vector{};
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) whole[v] += all * x.whole[v];
    if constexpr (kOdd && kWhole > 0)  // the factor is read once for both widths
      half += lower_half(all, std::make_integer_sequence<int, Simd<Acc>::kLanes / 2>()) * x.half;
    else if constexpr (kOdd)
      half += factor * x.half;
  }
  CONVBP_INLINE void add_product(const TileRow& y, const TileRow& x) {
#pragma GCC unroll 4
    for (int v = 0; v < kWhole; ++v) whole[v] += y.whole[v] * x.whole[v];
    if constexpr (kOdd) half += y.half * x.half;
  }

 private:
  template <int... kLane>
  CONVBP_INLINE static Half lower_half(typename Simd<Acc>::Vector x,
                                       std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(x, x, kLane...);
  }
};
// Rows of a register tile with this number of half vectors a row.
constexpr int tile_rows(int halves) {
  return halves <= 4 ? kRows : halves <= 6 ? 2 * kRows / 3 : kRows / 2;
}

// Fetches `count` lines that will be read (kWrite 0) or written (1) soon, in an order that no
// prefetcher of the processor sees in time; kLevel 3 is the first-level cache, 2 the second.
template <int kWrite, int kLevel = 3, typename T>
CONVBP_INLINE void prefetch(const T* from, int64_t apart, int64_t count) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + i * apart, kWrite, kLevel);
}
// Numbers in a cache line.
template <typename T>
constexpr int64_t kLine = 64 / sizeof(T);

// The inner loop of all kernels, with row[i] = rows + offset[i]:
// acc[i][:] += sum_q row[i][q * row_step] * lane[q * lane_step + :], or, depthwise,
// row[i][q * row_step + :] * lane[q * lane_step + :].
template <bool kDepthwise, typename Acc, int kTileRows, int kHalves>
CONVBP_INLINE void accumulate(TileRow<Acc, kHalves> (&acc)[kTileRows], const Acc* rows,
                              const int64_t (&offset)[kTileRows], int64_t row_step, const Acc* lane,
                              int64_t lane_step, int64_t count) {
  for (int64_t q = 0; q < count; ++q) {
    const auto x = TileRow<Acc, kHalves>::at(lane);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if constexpr (kDepthwise)
        acc[i].add_product(TileRow<Acc, kHalves>::at(rows + offset[i]), x);
      else
        acc[i].add_product(rows[offset[i]], x);
    }
    rows += row_step;
    lane += lane_step;
  }
}

// accumulate() for rows at any addresses and lanes without gaps.
template <bool kDepthwise, typename Acc, int kTileRows, int kHalves>
CONVBP_INLINE void accumulate(TileRow<Acc, kHalves> (&acc)[kTileRows],
                              const Acc* const (&row)[kTileRows], int64_t row_step, const Acc* lane,
                              int64_t count) {
  int64_t offset[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) offset[i] = row[i] - row[0];
  accumulate<kDepthwise>(acc, row[0], offset, row_step, lane, TileRow<Acc, kHalves>::kLanes, count);
}

// Tile::kFunction for this number of rows, 1 to kMost: a tile with fewer rows costs less.
template <typename Tile, int... kCounts>
auto tile_function_of(int64_t rows, std::integer_sequence<int, kCounts...>) {
  static constexpr decltype(Tile::template kFunction<1>) functions[] = {
      Tile::template kFunction<kCounts + 1>...};
  return functions[rows - 1];
}
template <typename Tile, int kMost = kRows>
auto tile_function(int64_t rows) {
  return tile_function_of<Tile>(rows, std::make_integer_sequence<int, kMost>());
}

}  // namespace convbp::CONVBP_ISA
