// Brings an operand into the order that the implicit GEMM reads: channels innermost, and each
// group's channels padded with zeros to whole chunks.
//
//     packed[group][item][row][pixel][channel] = source[group, item, channel, row, pixel]
//
// Bound by memory: a block transposes tiles of 32 places (an item's position) x 32 channels through
// shared memory, and reads and writes neighbours with neighbouring lanes. Places are numbered in
// the order in which the source has them: a tile is full where an item is a filter of a few taps.
// Rows of the tile are longer than they need be by an element, of 16 bits by two: a column, too,
// lies in different banks.
#pragma once

#include <algorithm>

#include "core/integers.h"
#include "cuda/grid.h"
#include "cuda/implicit_gemm/operand.h"

namespace convbp::cuda::gemm {

struct PackSize {
  int64_t groups, items, channels, padded, rows, pixels;

  // (b + c, i, j) is (item, row, pixel).
  Positions places(bool items_innermost) const {
    if (items_innermost) return {{1, items, rows, pixels}, true};
    return {{items, 1, rows, pixels}, false};
  }
};

namespace kernels {

constexpr int kPackTile = 32;
template <typename T>
constexpr int kPackRow = kPackTile + (sizeof(T) < 4 ? 4 / sizeof(T) : 1);

template <typename T>
__global__ void pack(PackSize size, Positions places, int tile_places, uint32_t channel_tiles,
                     uint32_t place_tiles, Operand<const T> source, T* packed) {
  constexpr int kTile = kPackTile, kRow = kPackRow<T>, kWarps = kThreads / kTile;
  T* const tile = shared_memory<T>();
  const bool channels_innermost = source.channel <= source.pixel && source.channel <= source.item;
  const int lane = threadIdx.x % kTile, warp = threadIdx.x / kTile;
  const uint32_t tiles = static_cast<uint32_t>(size.groups) * place_tiles * channel_tiles;
  for (uint32_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const uint32_t rest = number / channel_tiles, group = rest / place_tiles;
    const int64_t first_channel = int64_t{number - rest * channel_tiles} * kTile;
    const int64_t first_place = int64_t{rest - group * place_tiles} * tile_places;
    const auto read = [&](const T* place, int p, int c) {
      T value = static_cast<T>(0.f);
      const int64_t channel = first_channel + c;
      if (place && channel < size.channels) value = place[channel * source.channel];
      tile[p * kRow + c] = value;
    };
    const auto place = [&](int p) -> const T* {
      if (p >= tile_places || first_place + p >= places.count) return nullptr;
      const Position at = places.position(first_place + p);
      return source.data + group * source.group + (at.b + at.c) * source.item + at.i * source.row +
             at.j * source.pixel;
    };
    if (channels_innermost) {
#pragma unroll 1
      for (int p = warp; p < tile_places; p += kWarps) read(place(p), p, lane);
    } else {
      const T* const from = place(lane);
#pragma unroll
      for (int c = warp; c < kTile; c += kWarps) read(from, lane, c);
    }
    barrier();
#pragma unroll 1
    for (int p = warp; p < tile_places; p += kWarps) {
      int64_t to = first_place + p;
      if (to >= places.count || first_channel + lane >= size.padded) continue;
      if (places.channels_innermost) {
        const Position at = places.position(to);
        to = (at.c * size.rows + at.i) * size.pixels + at.j;
      }
      packed[(group * places.count + to) * size.padded + first_channel + lane] =
          tile[p * kRow + lane];
    }
    barrier();
  }
}

}  // namespace kernels

template <typename T>
void pack(Context& context, const PackSize& size, const Operand<const T>& source, T* packed) {
  constexpr int kTile = kernels::kPackTile;
  const Positions places = size.places(source.item < source.pixel);
  // Tiles have whole filters where a filter of a few taps lies by itself, so that no two blocks
  // read the same sectors.
  const int64_t positions = std::max<int64_t>(size.rows * size.pixels, 1);
  const bool whole = positions < kTile && source.item > positions;
  const int64_t tile_places = whole ? kTile / positions * positions : kTile;
  const int64_t place_tiles = divide_up(places.count, tile_places);
  const int64_t channel_tiles = divide_up(size.padded, kTile);
  launch(context, "pack", kernels::pack<T>,
         blocks_for(size.groups * place_tiles * channel_tiles * kThreads, context), kThreads,
         kTile * kernels::kPackRow<T> * sizeof(T), size, places, static_cast<int>(tile_places),
         static_cast<uint32_t>(channel_tiles), static_cast<uint32_t>(place_tiles), source, packed);
}

}  // namespace convbp::cuda::gemm
