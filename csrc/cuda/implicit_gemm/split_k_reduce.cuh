// Adds the splits of a weight gradient (weight_grad.cuh), in their order:
//
//     weight_grad[filter, channel, tap] = sum over splits of partial[split, filter, tap, channel]
//     bias_grad[filter] = sum over splits of bias_partial[split, filter]
//
// Bound by memory. Partial sums are a matrix of rows, one for each tap of a filter, and channels:
// neighbouring lanes read neighbouring channels. Where the gradient's taps lie closer together than
// its channels, as torch has them unless told otherwise, neighbouring lanes write neighbouring
// taps. A block then transposes tiles through shared memory: 32 channels of a *run* of rows, the
// taps of one filter or 32 of them. A tile has several runs where one has fewer sums than a block
// has threads.
#pragma once

#include <algorithm>

#include "cuda/grid.h"
#include "cuda/implicit_gemm/weight_grad.cuh"

namespace convbp::cuda::gemm {

struct SplitTiles {
  static constexpr uint32_t kMost = 32;  // channels, and rows of a run

  uint32_t rows, channels, padded;  // padded: to whole chunks, as partial sums are
  uint32_t run, tile_rows, tile_channels, row_tiles, channel_tiles;
  Divisor by_run, by_tile_channels, by_channel_tiles, by_taps, by_width;

  SplitTiles(int64_t filters, int64_t channels_, int64_t padded_, int64_t taps, int64_t width)
      : rows(static_cast<uint32_t>(filters * taps)),
        channels(static_cast<uint32_t>(channels_)),
        padded(static_cast<uint32_t>(padded_)),
        run(static_cast<uint32_t>(std::min<int64_t>(taps, kMost))),
        tile_channels(std::min(padded, kMost)),
        by_run(run),
        by_tile_channels(tile_channels),
        by_taps(static_cast<uint32_t>(taps)),
        by_width(static_cast<uint32_t>(width)) {
    tile_rows = run * std::max(1u, kThreads / (tile_channels * run));
    row_tiles = static_cast<uint32_t>(divide_up(rows, tile_rows));
    channel_tiles = static_cast<uint32_t>(divide_up(channels, tile_channels));
    by_channel_tiles = Divisor(channel_tiles);
  }

  CONVBP_BOTH uint32_t tiles() const { return row_tiles * channel_tiles; }
  // The place of a sum in shared memory: neither neighbouring channels nor neighbouring taps share
  // a bank.
  CONVBP_BOTH uint32_t place(uint32_t row, uint32_t channel) const {
    const uint32_t number = by_run.quotient(row);
    return (number * tile_channels + channel) * (run | 1) + row - number * run;
  }
  static constexpr uint32_t kPlaces = kMost * (kMost + 1);
};

namespace kernels {

template <typename T>
__global__ void reduce_splits(GemmWeightGrad<T> w, SplitTiles size, View<T> weight_grad,
                              T* bias_grad) {
  using A = Accumulator<T>;
  A* const tile = shared_memory<A>();
  const uint32_t filters = w.groups * w.filters, splits = w.splits;
  const bool taps_innermost = weight_grad.stride[3] < weight_grad.stride[1];
  const uint32_t bias_tiles = bias_grad ? (filters + kThreads - 1) / kThreads : 0;
  for (uint32_t number = blockIdx.x; number < size.tiles() + bias_tiles; number += gridDim.x) {
    if (number >= size.tiles()) {
      const uint32_t o = (number - size.tiles()) * kThreads + threadIdx.x;
      A sum = 0;
      if (o < filters) {
        for (uint32_t split = 0; split < splits; ++split)
          sum += w.bias_partial[int64_t{split} * filters + o];
        bias_grad[o] = static_cast<T>(sum);
      }
      continue;
    }
    const uint32_t row_tile = size.by_channel_tiles.quotient(number);
    const uint32_t first_row = row_tile * size.tile_rows;
    const uint32_t first_channel = (number - row_tile * size.channel_tiles) * size.tile_channels;
    const auto is_there = [&](uint32_t row, uint32_t channel) {
      return first_row + row < size.rows && first_channel + channel < size.channels;
    };
    const uint32_t places = size.tile_rows * size.tile_channels;
    for (uint32_t e = threadIdx.x; e < places; e += kThreads) {
      const uint32_t row = size.by_tile_channels.quotient(e);
      const uint32_t channel = e - row * size.tile_channels;
      if (!is_there(row, channel)) continue;
      const int64_t at = int64_t{first_row + row} * size.padded + first_channel + channel;
      A sum = 0;
      for (uint32_t split = 0; split < splits; ++split)
        sum += w.partial[int64_t{split} * size.rows * size.padded + at];
      tile[size.place(row, channel)] = sum;
    }
    barrier();
    for (uint32_t e = threadIdx.x; e < places; e += kThreads) {
      // (row, channel), or (run, channel, tap)
      uint32_t row = size.by_tile_channels.quotient(e), channel = e - row * size.tile_channels;
      if (taps_innermost) {
        const uint32_t line = size.by_run.quotient(e);
        const uint32_t run = size.by_tile_channels.quotient(line);
        row = run * size.run + e - line * size.run, channel = line - run * size.tile_channels;
      }
      if (!is_there(row, channel)) continue;
      const uint32_t o = size.by_taps.quotient(first_row + row);
      const uint32_t tap = first_row + row - o * size.by_taps.divisor;
      const uint32_t r = size.by_width.quotient(tap), s = tap - r * size.by_width.divisor;
      weight_grad.at(o, first_channel + channel, r, s) =
          static_cast<T>(tile[size.place(row, channel)]);
    }
    barrier();
  }
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
