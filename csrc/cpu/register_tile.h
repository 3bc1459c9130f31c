// The register tile that every convolution kernel feeds. Included once per instruction set, with
// three macros set:
//   CONVBP_ISA           namespace of this copy
//   CONVBP_TARGET        function attribute that enables the instruction set
//   CONVBP_VECTOR_BYTES  width of its vectors
// Only functions marked CONVBP_TARGET hold its instructions, so nothing of them leaks
// into inline functions that the linker shares with the baseline.
#pragma once

#include <cstdint>
#include <utility>

namespace convbp::CONVBP_ISA {

template <typename Acc>
struct Simd {
  static constexpr int kLanes = CONVBP_VECTOR_BYTES / sizeof(Acc);
  // Aligned as its elements are, so that it may be loaded from anywhere.
  typedef Acc Vector
      __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)), may_alias));
};

// Rows of the register tile: with 2 vectors each, what 16 registers hold, or the 32 of AVX-512 and
// of NEON.
#if defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = CONVBP_VECTOR_BYTES == 64 ? 12 : 6;
#endif

#define CONVBP_INLINE __attribute__((always_inline)) CONVBP_TARGET inline

// The vector that begins at p.
template <typename Acc>
CONVBP_INLINE typename Simd<Acc>::Vector& vector_at(Acc* p) {
  return *reinterpret_cast<typename Simd<Acc>::Vector*>(p);
}
template <typename Acc>
CONVBP_INLINE const typename Simd<Acc>::Vector& vector_at(const Acc* p) {
  return *reinterpret_cast<const typename Simd<Acc>::Vector*>(p);
}

// Fetches `count` lines that will be read (kWrite 0) or written (1) soon, in an order that no
// prefetcher of the processor sees in time; kLevel 3 is the first-level cache, 2 the second.
template <int kWrite, int kLevel = 3, typename T>
CONVBP_INLINE void prefetch(const T* from, int64_t apart, int64_t count) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + i * apart, kWrite, kLevel);
}
// Numbers of a cache line.
template <typename T>
constexpr int64_t kLine = 64 / sizeof(T);

// The loop everything else feeds, with row[i] = rows + offset[i]:
// acc[i][:] += sum_q row[i][q * row_step] * lane[q * lane_step + :], or, depthwise,
// row[i][q * row_step + :] * lane[q * lane_step + :].
template <bool kDepthwise, typename Acc, int kTileRows, int kVectors>
CONVBP_INLINE void accumulate(typename Simd<Acc>::Vector (&acc)[kTileRows][kVectors],
                              const Acc* rows, const int64_t (&offset)[kTileRows],
                              int64_t row_step, const Acc* lane, int64_t lane_step,
                              int64_t count) {
  using Vector = typename Simd<Acc>::Vector;
  for (int64_t q = 0; q < count; ++q) {
    Vector x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = vector_at(lane + v * Simd<Acc>::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Acc* r = rows + offset[i];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kDepthwise)
          acc[i][v] += vector_at(r + v * Simd<Acc>::kLanes) * x[v];
        else
          acc[i][v] += *r * x[v];
      }
    }
    rows += row_step;
    lane += lane_step;
  }
}

// The same for rows anywhere and lanes without gaps.
template <bool kDepthwise, typename Acc, int kTileRows, int kVectors>
CONVBP_INLINE void accumulate(typename Simd<Acc>::Vector (&acc)[kTileRows][kVectors],
                              const Acc* const (&row)[kTileRows], int64_t row_step,
                              const Acc* lane, int64_t count) {
  int64_t offset[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) offset[i] = row[i] - row[0];
  accumulate<kDepthwise>(acc, row[0], offset, row_step, lane, kVectors * Simd<Acc>::kLanes, count);
}

// Tile::kFunction of as many rows as there are, 1 to kMost: rows left over cost what they are.
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
