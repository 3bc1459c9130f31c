// The convolution (L1, L2) and its input gradient (L6) as one matrix product that is never laid out
// in memory:
//
//     result[pixel, column] = sum over (t, u, channel) of
//         source[pixel's position + (t, u), channel] filter[column, (t, u), channel]
//
// For L1 pixels are output pixels, columns filters, the source the input. For L6 pixels are those
// input pixels that are alike modulo the stride (a phase, operand.h), columns input channels,
// the source delta. The reference is cuda/reference/conv2d.cuh.
//
// Tiles of 128x128, 128x64 and 64x64 pixels x columns by a depth of 32 (TF32, float64: 16): up to
// 128 sums a thread for reuse from shared memory, fewer where there are few columns or tiles.
// Channels are read 16 bytes at a time from memory that has them innermost; the depth counts chunks
// of (t, u, channels) without gaps. Where there are few channels and no whole chunk of them, as in
// a first layer, padding them to one would multiply by zeros mostly: then the depth counts single
// elements, which are read one by one from the tensors as they are.
//
// A tap outside the source is a zero that is multiplied: where it meets an infinite or NaN filter,
// the result is NaN; cuda/reference/conv2d.cuh leaves the product out.
//
// An element's sum runs over the depth in ascending order in every tile: it depends on neither the
// batch nor the tile. Sums pass through shared memory, to be stored in the order of the result, 16
// bytes at a time where neighbours fill them. The speed has not been measured yet.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/epilogue.h"
#include "cuda/implicit_gemm/convolve_load.cuh"

namespace convbp::cuda::gemm {

// The place of a sum in shared memory on its way out: in the order of the result, eight neighbours
// side by side. Lanes that write fragments find different banks.
template <typename S>
__device__ int staged(bool by_rows, unsigned row, unsigned column) {
  return by_rows ? row * S::kColumns + (column ^ (row % 4 * 8))
                 : column * S::kRows + (row ^ (column / 2 % 4 * 8));
}

// Shared memory holds the ring and, after it, the loader's own part; later the sums and, after
// them, where pixels lie.
template <typename S>
constexpr int64_t kConvolveSharedBytes =
    std::max<int64_t>(S::kRingBytes + (S::kElements ? ElementLoader<S>::kSharedBytes : 0),
                      S::kRows*(S::kColumns * sizeof(typename S::Sum) + sizeof(int64_t)));

// Finishes and stores the tile, n results side by side at a time.
template <typename S, int n, typename T = typename S::Element, typename Sum = typename S::Sum>
__device__ void store_sums(const Convolution<T>& c, const Epilogue<T>& epilogue, int group,
                           int first_column, const Sum* stage, const int64_t* offset) {
  constexpr int kRead = n < kPack<Sum> ? n : kPack<Sum>;
  const bool by_rows = c.channels_innermost;
#pragma unroll 1
  for (unsigned e = threadIdx.x * n; e < S::kRows * S::kColumns; e += S::kThreads * n) {
    const unsigned row = by_rows ? e / S::kColumns : e % S::kRows;
    const unsigned column = by_rows ? e % S::kColumns : e / S::kRows;
    const int channel = first_column + column;
    if (offset[row] < 0 || channel >= c.columns) continue;
    const Sum* const from = stage + staged<S>(by_rows, row, column);
    Sum sum[n];
#pragma unroll
    for (int i = 0; i < n; i += kRead) {
      const auto read = *reinterpret_cast<const Pack<Sum, kRead>*>(from + i);
#pragma unroll
      for (int k = 0; k < kRead; ++k) sum[i + k] = read.element[k];
    }
    const int64_t at = offset[row] + channel * c.result.channel;
    epilogue.finish_all(sum, int64_t{group} * c.columns + channel, by_rows, at);
    epilogue.store(sum, c.result.data + at);
  }
}

namespace kernels {

// Blocks that a multiprocessor has to hold: two or three of four warps on tensor cores. Elsewhere
// it is one: told nothing, the compiler spills registers to make room for a third.
template <typename S>
constexpr int kBlocks = !S::kTensorCores || S::kElements ? 1
                        : S::kColumns == 128             ? 2
                                                         : 3;

template <typename S>
__global__ void __launch_bounds__(S::kThreads, kBlocks<S>)
    convolve(Convolution<typename S::Element> c, Epilogue<typename S::Element> epilogue) {
  using T = typename S::Element;
  using Sum = typename S::Sum;
  // Blocks of the same pixels run side by side, for the cache.
  uint32_t block = blockIdx.x;
  const int first_column = c.column_tiles.take(block) * S::kColumns;
  const int first_pixel = c.row_tiles.take(block) * S::kRows;
  const int phase = c.phases.take(block), group = block;
  const Part<T> part(c, phase, group);
  if (first_pixel >= part.pixels) return;

  typename S::Sums sums;
  {
    ConvolutionLoader<S> loader(c, part, first_pixel, first_column);
    multiply_tiles<S>(sums, loader, loader.tiles(), [](const auto&) {});
  }

  Sum* const stage = shared_memory<Sum>();
  if (c.channels_innermost)
    sums.each([&](int row, int column, const auto& sum) {
      *reinterpret_cast<std::decay_t<decltype(sum)>*>(
          stage + staged<S>(true, S::warp_row() + row, S::warp_column() + column)) = sum;
    });
  else
    sums.each([&](int row, int column, const auto& sum) {
#pragma unroll
      for (const Sum& one : sum.element)
        stage[staged<S>(false, S::warp_row() + row,
                        S::warp_column() + column + static_cast<int>(&one - sum.element))] = one;
    });
  // The offset of each row's pixel in the result, or -1.
  int64_t* const offset = reinterpret_cast<int64_t*>(stage + S::kRows * S::kColumns);
  for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
    const int pixel = first_pixel + row;
    offset[row] = -1;
    if (pixel < part.pixels) {
      const Digits at = Digits::of(pixel, part.row.by_results, part.column.by_results);
      const int y = part.row.first_result + at.middle * part.row.result_step;
      const int x = part.column.first_result + at.inner * part.column.result_step;
      offset[row] = part.group * c.result.group + at.outer * c.result.item + y * c.result.row +
                    x * c.result.pixel;
    }
  }
  barrier();
  if (c.in_chunks)
    store_sums<S, kPack<T>>(c, epilogue, part.group, first_column, stage, offset);
  else
    store_sums<S, 1>(c, epilogue, part.group, first_column, stage, offset);
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
