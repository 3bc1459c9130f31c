// The piece of a tensor that a tile needs, brought into one form: a *patch*, channels last, converted
// to the accumulator's type and padded with zeros, so that the inner loops know no edges, strides,
// layouts or element types. Included once per instruction set, as register_tile.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "element.h"
#include "register_tile.h"
#include "tap_conv.h"

namespace convbp::CONVBP_ISA {

// The output positions of one tile.
struct TileExtent {
  int64_t b0, images, h0, rows, w0, columns;
  int64_t pixels() const { return images * rows * columns; }
};

inline TileExtent tile_extent(const TapConv& c, int64_t batch_tile, int64_t spatial_tile) {
  const int64_t across = divide_up(c.w.count, c.w.tile);
  TileExtent e;
  e.b0 = batch_tile * c.batch_tile;
  e.h0 = spatial_tile / across * c.h.tile;
  e.w0 = spatial_tile % across * c.w.tile;
  e.images = std::min(c.batch_tile, c.batch - e.b0);
  e.rows = std::min(c.h.tile, c.h.count - e.h0);
  e.columns = std::min(c.w.tile, c.w.count - e.w0);
  return e;
}

inline int64_t patch_size(const TapConv& c, int64_t images, int64_t rows, int64_t columns) {
  return images * c.h.patch_rows(rows) * c.w.patch_rows(columns) * c.reduce;
}

// to[x * pitch + c] = from[c * stride_c + x * stride_x]: a row of `width` pixels to channels
// last. Of the `pitch` channels that a pixel of the patch has, those that do not exist are zero.
template <typename T, typename Acc>
CONVBP_TARGET void pack_row(const T* from, int64_t stride_c, int64_t stride_x, int64_t channels,
                            int64_t width, Acc* to, int64_t pitch) {
  if (channels < pitch)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = channels; c < pitch; ++c) to[x * pitch + c] = Acc(0);
  if (stride_c == 1) {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) to[x * pitch + c] = load<Acc>(from[x * stride_x + c]);
    return;
  }
  // A block of 16 channels fills whole cache lines of the patch, one after the other:
  // going along a whole row for each channel would evict lines before they are full.
  constexpr int64_t kChannels = 16, kPixels = 16;
  for (int64_t c0 = 0; c0 < channels; c0 += kChannels)
    for (int64_t x0 = 0; x0 < width; x0 += kPixels)
      for (int64_t c = c0; c < std::min(c0 + kChannels, channels); ++c)
        for (int64_t x = x0; x < std::min(x0 + kPixels, width); ++x)
          to[x * pitch + c] = load<Acc>(from[c * stride_c + x * stride_x]);
}

// The way back: to[c * stride_c + x * stride_x] = from[x * pitch + c].
template <typename T, typename Acc>
CONVBP_TARGET void unpack_row(const Acc* from, int64_t pitch, int64_t channels, int64_t width,
                              T* to, int64_t stride_c, int64_t stride_x) {
  if (stride_c == 1) {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) to[x * stride_x + c] = store<T>(from[x * pitch + c]);
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x)
      to[c * stride_c + x * stride_x] = store<T>(from[x * pitch + c]);
}

template <typename Acc>
CONVBP_TARGET void fill_zero(Acc* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = Acc(0);
}

// Packs what the tile `e` of group `g` reads: [image][patch row][patch column][channel].
template <typename T, typename Acc>
CONVBP_TARGET void pack_patch(const TapConv& c, const TileExtent& e, int64_t g, View<const T> source,
                              Acc* patch) {
  const int64_t rows = c.h.patch_rows(e.rows), columns = c.w.patch_rows(e.columns);
  const int64_t channels = c.source_channels(g);
  for (int64_t b = 0; b < e.images; ++b)
    for (int64_t row = 0; row < rows; ++row, patch += columns * c.reduce) {
      const int64_t i = c.h.source_position(row, e.h0);
      if (i < 0 || i >= c.h.source_size) {
        fill_zero(patch, columns * c.reduce);
        continue;
      }
      const T* from = &source.at(e.b0 + b, g * c.reduce, i, 0);
      if (c.w.dense) {
        const int64_t j0 = c.w.source_position(0, e.w0);
        const int64_t left = std::min(columns, std::max<int64_t>(0, -j0));
        const int64_t end = std::max(left, std::min(columns, c.w.source_size - j0));
        fill_zero(patch, left * c.reduce);
        if (left < end)
          pack_row(from + (j0 + left) * source.stride[3], source.stride[1], source.stride[3],
                   channels, end - left, patch + left * c.reduce, c.reduce);
        fill_zero(patch + end * c.reduce, (columns - end) * c.reduce);
      } else {
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t j = c.w.source_position(column, e.w0);
          if (j < 0 || j >= c.w.source_size)
            fill_zero(patch + column * c.reduce, c.reduce);
          else
            pack_row(from + j * source.stride[3], source.stride[1], source.stride[3], channels, 1,
                     patch + column * c.reduce, c.reduce);
        }
      }
    }
}

}  // namespace convbp::CONVBP_ISA
