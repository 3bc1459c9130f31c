// Brings an operand into the order the implicit GEMM reads: channels innermost, every group's
// padded with zeros to whole chunks.
//
//     packed[group][item][row][pixel][channel] = source[group, item, channel, row, pixel]
//
// A block turns tiles of 32 positions x 32 channels round through shared memory (a row of 33, so
// that columns are in different banks), and reads and writes neighbours with neighbouring threads.
#pragma once

#include <algorithm>

#include "../integers.h"
#include "gemm_operand.h"
#include "grid.h"

namespace convbp::cuda::gemm {

struct PackSize {
  int64_t groups, items, channels, padded, rows, pixels;

  static constexpr int kTile = 32;
  CONVBP_BOTH int64_t position_tiles() const { return divide_up(rows * pixels, kTile); }
  CONVBP_BOTH int64_t channel_tiles() const { return divide_up(padded, kTile); }
  CONVBP_BOTH int64_t tiles() const { return groups * items * position_tiles() * channel_tiles(); }
};

namespace kernels {

template <typename T>
__global__ void pack(PackSize size, Operand<const T> source, Operand<T> packed) {
  constexpr int kTile = PackSize::kTile;
  T* const tile = shared_memory<T>();
  const bool channels_innermost = source.channel < source.pixel;
  for (int64_t number = blockIdx.x; number < size.tiles(); number += gridDim.x) {
    int64_t rest = number;
    const int64_t first_channel = rest % size.channel_tiles() * kTile;
    rest /= size.channel_tiles();
    const int64_t first_position = rest % size.position_tiles() * kTile;
    rest /= size.position_tiles();
    const int64_t item = rest % size.items, group = rest / size.items;
    const T* const from = source.data + group * source.group + item * source.item;
    T* const to = packed.data + group * packed.group + item * packed.item;

    for (int e = threadIdx.x; e < kTile * kTile; e += kThreads) {
      const int c = channels_innermost ? e % kTile : e / kTile;
      const int p = channels_innermost ? e / kTile : e % kTile;
      const int64_t channel = first_channel + c, position = first_position + p;
      T value = static_cast<T>(0.f);
      if (channel < size.channels && position < size.rows * size.pixels)
        value = from[channel * source.channel + position / size.pixels * source.row +
                     position % size.pixels * source.pixel];
      tile[p * (kTile + 1) + c] = value;
    }
    barrier();
    const int channels = static_cast<int>(std::min<int64_t>(kTile, size.padded - first_channel));
    for (int e = threadIdx.x; e < kTile * channels; e += kThreads) {
      const int p = e / channels, c = e % channels;
      const int64_t position = first_position + p;
      if (position < size.rows * size.pixels)
        to[position / size.pixels * packed.row + position % size.pixels * packed.pixel +
           first_channel + c] = tile[p * (kTile + 1) + c];
    }
    barrier();
  }
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
