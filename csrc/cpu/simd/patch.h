// The piece of a tensor that a tile needs, in one form: a *patch*, channels last, converted to the
// accumulator's type and padded with zeros. The inner loops then know no edges, strides, layouts or
// element types. Included once per instruction set, as register_tile.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"
#include "cpu/gather_conv.h"
#include "cpu/simd/register_tile.h"
#include "cpu/simd/stream.h"
#include "cpu/stream_rule.h"

namespace convbp::CONVBP_ISA {

// The output positions of one tile.
struct TileExtent {
  int64_t b0, images, h0, rows, w0, columns;
  int64_t pixels() const { return images * rows * columns; }
};

inline TileExtent tile_extent(const GatherConv& c, int64_t batch_tile, int64_t spatial_tile) {
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

inline int64_t patch_size(const GatherConv& c, int64_t images, int64_t rows, int64_t columns,
                          int64_t pitch) {
  return images * c.h.patch_rows(rows) * c.w.patch_rows(columns) * pitch;
}

// Four numbers as floats, 16 bytes: every instruction set has such vectors and shuffles them
// fastest.
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t FourBits __attribute__((vector_size(16)));
typedef uint16_t FourShort __attribute__((vector_size(8), aligned(2), may_alias));

template <typename T>
constexpr bool kHasFours = std::is_same_v<T, float> || std::is_same_v<T, BFloat16>;

CONVBP_INLINE Four load_four(const float* p) {
  return *reinterpret_cast<const Four*>(p);
}
CONVBP_INLINE Four load_four(const BFloat16* p) {
  return reinterpret_cast<Four>(
      __builtin_convertvector(*reinterpret_cast<const FourShort*>(p), FourBits) << 16);
}
CONVBP_INLINE void store_four(Four x, float* p) {
  *reinterpret_cast<Four*>(p) = x;
}
// Rounds to the nearest number, ties to even, as c10 does; every NaN becomes the same NaN.
CONVBP_INLINE void store_four(Four x, BFloat16* p) {
  const FourBits bits = reinterpret_cast<FourBits>(x);
  const FourBits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *reinterpret_cast<FourShort*>(p) =
      __builtin_convertvector(x == x ? rounded : FourBits{} + 0x7fc0, FourShort);
}

CONVBP_INLINE void transpose(Four (&r)[4]) {
  const Four a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Four d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Transposes four by four numbers: to[j * to_step + i] = from[i * from_step + j].
template <typename From, typename To>
CONVBP_INLINE void transpose_4x4(const From* from, int64_t from_step, To* to, int64_t to_step) {
  Four r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) r[i] = load_four(from + i * from_step);
  transpose(r);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) store_four(r[j], to + j * to_step);
}

// Transposes eight rows of four numbers that stay bfloat16, as four rows of pairs.
CONVBP_INLINE void transpose_8x4(const BFloat16* from, int64_t from_step, BFloat16* to,
                                 int64_t to_step) {
  typedef uint16_t EightShort __attribute__((vector_size(16)));
  Four r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const FourShort a = *reinterpret_cast<const FourShort*>(from + 2 * i * from_step);
    const FourShort b = *reinterpret_cast<const FourShort*>(from + (2 * i + 1) * from_step);
    const EightShort pairs = __builtin_shufflevector(a, b, 0, 4, 1, 5, 2, 6, 3, 7);
    r[i] = reinterpret_cast<Four>(pairs);
  }
  transpose(r);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) *reinterpret_cast<Four*>(to + j * to_step) = r[j];
}

// One step of a transpose: swaps lanes kApart apart between two rows kApart apart.
template <int kApart, int... kLane>
CONVBP_INLINE void swap_lanes(Simd<float>::Vector& a, Simd<float>::Vector& b,
                              std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const auto first =
      __builtin_shufflevector(a, b, (kLane & kApart ? kLanes + kLane - kApart : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kApart ? kLanes + kLane : kLane + kApart)...);
  a = first;
}

template <int kApart, int kLanes>
CONVBP_INLINE void swap_all_lanes(Simd<float>::Vector (&row)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & kApart))
      swap_lanes<kApart>(row[i], row[i + kApart], std::make_integer_sequence<int, kLanes>());
  if constexpr (kApart > 1) swap_all_lanes<kApart / 2>(row);
}

// Transposes as many rows as a vector has lanes: to[j * to_step + i] = from[i * from_step + j].
// Each cache line is read and written once, even where planes a power of two apart meet in the same
// cache sets.
CONVBP_INLINE void transpose_vectors(const float* from, int64_t from_step, float* to,
                                     int64_t to_step) {
  constexpr int kLanes = Simd<float>::kLanes;
  Simd<float>::Vector row[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    row[i] = vector_at(from + i * from_step);
    __builtin_prefetch(from + i * from_step + 64);
  }
  swap_all_lanes<kLanes / 2>(row);
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) vector_at(to + j * to_step) = row[j];
}

// A vector of every kApart-th number; kApart is a power of two.
template <int kApart, int... kLane>
CONVBP_INLINE Simd<float>::Vector vector_of_every(const float* from,
                                                  std::integer_sequence<int, kLane...> lanes) {
  if constexpr (kApart == 1) {
    return vector_at(from);
  } else {
    constexpr int kNext = kApart / 2 * Simd<float>::kLanes;
    return __builtin_shufflevector(vector_of_every<kApart / 2>(from, lanes),
                                   vector_of_every<kApart / 2>(from + kNext, lanes),
                                   (2 * kLane)...);
  }
}

// Copies to[i] = from[kApart * i]. Reads the numbers in between, but none after the last.
template <int kApart>
CONVBP_INLINE void copy_every(const float* from, int64_t count, float* to) {
  constexpr int kLanes = Simd<float>::kLanes;
  int64_t i = 0;
  for (; i + kLanes < count; i += kLanes)
    vector_at(to + i) =
        vector_of_every<kApart>(from + kApart * i, std::make_integer_sequence<int, kLanes>());
  for (; i < count; ++i) to[i] = from[kApart * i];
}

// Copies to[i] = from[i] for i < count, without a loop over the last few.
template <typename T>
CONVBP_INLINE void copy_few(const T* from, T* to, int64_t count) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes)
    vector_at(to) = vector_at(from);
#pragma GCC unroll 4
  for (int part = kLanes / 2; part > 0; part /= 2)
    if (count & part) {
      std::memcpy(to, from, part * sizeof(T));
      from += part;
      to += part;
    }
}

// Copies and converts to[x * to_x + c * to_c] = from[x * from_x + c * from_c] for all x < width and
// c < channels. Blocks fill whole cache lines of the destination, one after the other: going along
// a whole row for each channel would evict lines before they are full.
template <typename From, typename To>
CONVBP_TARGET void copy_row(const From* from, int64_t from_c, int64_t from_x, int64_t channels,
                            int64_t width, To* to, int64_t to_c, int64_t to_x) {
  constexpr int64_t kSide = 16;
  if (from_c == 1 && to_c == 1) {
    if (std::is_same_v<From, To> && from_x == channels && to_x == channels) {
      std::memcpy(to, from, width * channels * sizeof(From));
      return;
    }
    if constexpr (std::is_same_v<From, To> && sizeof(To) >= 4)
      for (int64_t x = 0; x < width; ++x) copy_few(from + x * from_x, to + x * to_x, channels);
    else if (channels == kSide)  // frequent enough for a loop of known length
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < kSide; ++c) to[x * to_x + c] = store<To>(from[x * from_x + c]);
    else
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < channels; ++c) to[x * to_x + c] = store<To>(from[x * from_x + c]);
    return;
  }
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float>)
    if ((from_x == 2 || from_x == 4) && to_x == 1) {
      for (int64_t c = 0; c < channels; ++c)
        (from_x == 2 ? copy_every<2> : copy_every<4>)(from + c * from_c, width, to + c * to_c);
      return;
    }
  if (from_x == 1 && to_x == 1) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t x = 0; x < width; ++x) to[c * to_c + x] = store<To>(from[c * from_c + x]);
    return;
  }
  for (int64_t c0 = 0; c0 < channels; c0 += kSide)
    for (int64_t x0 = 0; x0 < width; x0 += kSide) {
      const int64_t c1 = std::min(c0 + kSide, channels), x1 = std::min(x0 + kSide, width);
      int64_t c = c0, x = x0;
      const bool pack = from_x == 1 && to_c == 1, unpack = from_c == 1 && to_x == 1;
      if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float>)
        if ((pack || unpack) && c1 - c0 == kSide && x1 - x0 == kSide) {
          for (c = c0; c < c1; c += Simd<float>::kLanes)
            for (x = x0; x < x1; x += Simd<float>::kLanes)
              transpose_vectors(from + x * from_x + c * from_c, pack ? from_c : from_x,
                                to + x * to_x + c * to_c, pack ? to_x : to_c);
          continue;
        }
      if constexpr (std::is_same_v<From, BFloat16> && std::is_same_v<To, BFloat16>) {
        if (pack)
          for (x = x0; x + 4 <= x1; x += 4)
            for (c = c0; c + 8 <= c1; c += 8)
              transpose_8x4(from + c * from_c + x, from_c, to + x * to_x + c, to_x);
      } else if constexpr (kHasFours<From> && kHasFours<To>) {
        if (pack) {
          for (x = x0; x + 4 <= x1; x += 4)
            for (c = c0; c + 4 <= c1; c += 4)
              transpose_4x4(from + c * from_c + x, from_c, to + x * to_x + c, to_x);
        } else if (unpack) {
          for (c = c0; c + 4 <= c1; c += 4)
            for (x = x0; x + 4 <= x1; x += 4)
              transpose_4x4(from + x * from_x + c, from_x, to + c * to_c + x, to_c);
        }
      }
      // The rest that whole blocks leave: columns from x on, and all columns of channels from c on.
      for (int64_t cc = c0; cc < c1; ++cc)
        for (int64_t xx = cc < c ? x : x0; xx < x1; ++xx)
          to[xx * to_x + cc * to_c] = store<To>(from[xx * from_x + cc * from_c]);
    }
}

// Zeros the channels of a row of pixels from `first` on, which do not exist.
template <typename Acc>
CONVBP_TARGET void clear_channels(Acc* to, int64_t first, int64_t pitch, int64_t width) {
  if (first == pitch) return;
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = first; c < pitch; ++c) to[x * pitch + c] = Acc(0);
}

// Packs a row of pixels, channels last: to[x * pitch + c] = from[c * stride_c + x * stride_x]. A
// pixel of the patch has `pitch` channels; those that do not exist are zero.
template <typename T, typename Acc>
CONVBP_TARGET void pack_row(const T* from, int64_t stride_c, int64_t stride_x, int64_t channels,
                            int64_t width, Acc* to, int64_t pitch) {
  clear_channels(to, channels, pitch, width);
  copy_row(from, stride_c, stride_x, channels, width, to, 1, pitch);
}

// Unpacks a row of pixels: to[c * stride_c + x * stride_x] = from[x * pitch + c].
template <typename T, typename Acc>
CONVBP_TARGET void unpack_row(const Acc* from, int64_t pitch, int64_t channels, int64_t width,
                              T* to, int64_t stride_c, int64_t stride_x) {
  copy_row(from, 1, pitch, channels, width, to, stride_c, stride_x);
}

template <typename Acc>
CONVBP_TARGET void fill_zero(Acc* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = Acc(0);
}

// Rows of pixels in scratch memory, channels last.
template <typename Acc>
struct PixelRows {
  Acc* data;
  int64_t rows, width;
  int64_t apart;  // from a row to the next, in numbers
  int64_t pitch;  // from a pixel to the next
};

// Goes over the pixels of such rows in the order of an NCHW plane.
template <typename Acc>
struct PixelWalk {
  const PixelRows<Acc>& rows;
  Acc* at;
  int64_t x;

  CONVBP_INLINE PixelWalk(const PixelRows<Acc>& rows, int64_t pixel)
      : rows(rows),
        at(rows.data + pixel / rows.width * rows.apart + pixel % rows.width * rows.pitch),
        x(pixel % rows.width) {}

  template <int kCount>
  CONVBP_INLINE void next(Acc* (&pixel)[kCount]) {
    if (x + kCount <= rows.width) {
#pragma GCC unroll 16
      for (int j = 0; j < kCount; ++j) pixel[j] = at + j * rows.pitch;
      step(kCount);
      return;
    }
    for (int j = 0; j < kCount; ++j) {
      pixel[j] = at;
      step(1);
    }
  }
  // Steps to a pixel of this row, or to the first of the next row.
  CONVBP_INLINE void step(int64_t count) {
    at += count * rows.pitch;
    x += count;
    if (x < rows.width) return;
    x = 0;
    at += rows.apart - rows.width * rows.pitch;
  }
};

// Pixels in a cache line of a plane.
constexpr int kLinePixels = 16;

// Calls body(first pixel, addresses, vectors) for a cache line of pixels at a time, then for single
// vectors; the last vector ends with the last pixel.
template <typename Acc, typename Body>
CONVBP_INLINE void for_vectors_of_pixels(const PixelRows<Acc>& rows, const Body& body) {
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t count = rows.rows * rows.width;
  PixelWalk<Acc> walk(rows, 0);
  Acc* pixel[kLinePixels];
  Acc* rest[kLanes];
  int64_t p = 0;
  for (; p + kLinePixels <= count; p += kLinePixels) {
    walk.next(pixel);
    body(p, pixel, kLinePixels / kLanes);
  }
  for (; p + kLanes <= count; p += kLanes) {
    walk.next(rest);
    body(p, rest, 1);
  }
  if (p == count) return;
  PixelWalk<Acc>(rows, count - kLanes).next(rest);
  body(count - kLanes, rest, 1);
}

// Packs NCHW planes channels last, by transposes in registers. Pixels and rows lie side by side;
// `channels` are whole vectors. 16 planes are taken at a time, which the processor fetches ahead.
// The next 16 planes it does not foresee, so they are fetched here; with the last 16, the next rows
// of the first 16 are fetched, where the next tile begins.
CONVBP_TARGET inline void pack_nchw(const float* from, int64_t plane, int64_t channels,
                                    const PixelRows<float>& to) {
  constexpr int kLanes = Simd<float>::kLanes;
  constexpr int64_t kPlanes = 16;
  const int64_t next_tile = to.rows * to.width - (channels - 1) / kPlanes * kPlanes * plane;
  for (int64_t k0 = 0; k0 < channels; k0 += kPlanes)
    for_vectors_of_pixels(
        to, [&](int64_t p, float* const* pixel, int vectors) CONVBP_INLINE_LAMBDA {
          for (int64_t k = k0; k < std::min(channels, k0 + kPlanes); k += kLanes) {
            const float* const first = from + k * plane + p;
            prefetch<0, 2>(first + (k0 + kPlanes < channels ? kPlanes * plane : next_tile), plane,
                           kLanes);
            for (int v = 0; v < vectors; ++v) {
              Simd<float>::Vector row[kLanes];
#pragma GCC unroll 16
              for (int i = 0; i < kLanes; ++i) row[i] = vector_at(first + i * plane + v * kLanes);
              swap_all_lanes<kLanes / 2>(row);
#pragma GCC unroll 16
              for (int j = 0; j < kLanes; ++j) vector_at(pixel[v * kLanes + j] + k) = row[j];
            }
          }
        });
}

// Unpacks to NCHW planes. Where `streamed` and where vectors are aligned, results go past the
// caches.
CONVBP_TARGET inline void unpack_nchw(const PixelRows<const float>& from, int64_t channels,
                                      float* to, int64_t plane, bool streamed) {
  constexpr int kLanes = Simd<float>::kLanes;
  const bool whole = plane % kLanes == 0 && from.rows * from.width % kLanes == 0 &&
                     reinterpret_cast<uintptr_t>(to) % CONVBP_VECTOR_BYTES == 0;
  for (int64_t c = 0; c < channels; c += kLanes)
    for_vectors_of_pixels(
        from, [&](int64_t p, const float* const* pixel, int vectors) CONVBP_INLINE_LAMBDA {
          for (int v = 0; v < vectors; ++v) {
            Simd<float>::Vector row[kLanes];
#pragma GCC unroll 16
            for (int j = 0; j < kLanes; ++j) row[j] = vector_at(pixel[v * kLanes + j] + c);
            swap_all_lanes<kLanes / 2>(row);
            float* const first = to + c * plane + p + v * kLanes;
            if (streamed && whole)
#pragma GCC unroll 16
              for (int i = 0; i < kLanes; ++i) stream(row[i], first + i * plane);
            else
#pragma GCC unroll 16
              for (int i = 0; i < kLanes; ++i) vector_at(first + i * plane) = row[i];
          }
        });
}

// The number of channels that pack_nchw and unpack_nchw can take: whole vectors. It is 0 where rows
// that lie side by side have fewer pixels than a vector.
template <typename Acc>
CONVBP_INLINE int64_t plane_channels(const PixelRows<Acc>& rows, const int64_t* stride,
                                     int64_t channels) {
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t run = stride[2] == rows.width ? rows.rows * rows.width : rows.width;
  return stride[3] == 1 && stride[1] != 1 && run >= kLanes ? channels / kLanes * kLanes : 0;
}

// Calls body(rows, number of the first row) for rows that lie side by side in a plane.
template <typename Acc, typename Body>
CONVBP_INLINE void for_rows_side_by_side(const PixelRows<Acc>& rows, const int64_t* stride,
                                         const Body& body) {
  if (stride[2] == rows.width) return body(rows, int64_t{0});
  for (int64_t y = 0; y < rows.rows; ++y)
    body(PixelRows<Acc>{rows.data + y * rows.apart, 1, rows.width, rows.apart, rows.pitch}, y);
}

// Packs rows of pixels, channels last, from strides as a View has them. Channels that do not exist
// are zero, up to the pitch.
template <typename T, typename Acc>
CONVBP_TARGET void pack_rows(const T* from, const int64_t* stride, int64_t channels,
                             const PixelRows<Acc>& to) {
  int64_t done = 0;
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Acc, float>) {
    done = plane_channels(to, stride, channels);
    if (done > 0)
      for_rows_side_by_side(to, stride, [&](const PixelRows<Acc>& rows, int64_t y) CONVBP_TARGET {
        pack_nchw(from + y * stride[2], stride[1], done, rows);
      });
    if (done == to.pitch) return;
  }
  for (int64_t y = 0; y < to.rows; ++y) {
    Acc* const row = to.data + y * to.apart;
    clear_channels(row, channels, to.pitch, to.width);
    copy_row(from + y * stride[2] + done * stride[1], stride[1], stride[3], channels - done,
             to.width, row + done, 1, to.pitch);
  }
}

// Unpacks rows of pixels. Where `streamed`, results go past the caches, and the caller ends with a
// stream_fence().
template <typename T>
CONVBP_TARGET void unpack_rows(const PixelRows<const float>& from, int64_t channels, T* to,
                               const int64_t* stride, bool streamed) {
  int64_t done = 0;
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kLanes = Simd<float>::kLanes;
    done = plane_channels(from, stride, channels);
    if (done > 0)
      for_rows_side_by_side(from, stride,
                            [&](const PixelRows<const float>& rows, int64_t y) CONVBP_TARGET {
                              unpack_nchw(rows, done, to + y * stride[2], stride[1], streamed);
                            });
    if (done == channels) return;
    if (streamed && stride[1] == 1 && has_whole_lines(to, stride, channels)) {
      for (int64_t y = 0; y < from.rows; ++y)
        for (int64_t x = 0; x < from.width; ++x)
          for (int64_t c = 0; c < channels; c += kLanes)
            stream(vector_at(from.data + y * from.apart + x * from.pitch + c),
                   to + y * stride[2] + x * stride[3] + c);
      return;
    }
  }
  for (int64_t y = 0; y < from.rows; ++y)
    unpack_row(from.data + y * from.apart + done, from.pitch, channels - done, from.width,
               to + y * stride[2] + done * stride[1], stride[1], stride[3]);
}

// Packs the part of some channels that tile `e` reads: [image][patch_row][patch_column][channel],
// with `pitch` channels a pixel. Further channels go to further panels of the same form,
// `panel_size` numbers apart.
template <typename T, typename Acc>
CONVBP_TARGET void pack_patch(const GatherConv& c, const TileExtent& e, View<const T> source,
                              int64_t channel0, int64_t channels, Acc* patch, int64_t pitch,
                              int64_t panel_size = 0) {
  const int64_t rows = c.h.patch_rows(e.rows), columns = c.w.patch_rows(e.columns);
  if (c.h.dense && c.w.dense) {
    // The patch is a window of the source, zero outside.
    const int64_t i0 = c.h.source_position(0, e.h0), j0 = c.w.source_position(0, e.w0);
    const int64_t top = std::min(rows, std::max<int64_t>(0, -i0));
    const int64_t bottom = std::max(top, std::min(rows, c.h.source_size - i0));
    const int64_t left = std::min(columns, std::max<int64_t>(0, -j0));
    const int64_t right = std::max(left, std::min(columns, c.w.source_size - j0));
    const int64_t apart = columns * pitch;
    for (int64_t b = 0; b < e.images; ++b, patch += rows * apart)
      for (int64_t k = 0; k < channels; k += pitch) {
        Acc* const to = patch + k / pitch * panel_size;
        fill_zero(to, top * apart);
        for (int64_t row = top; row < bottom; ++row) {
          fill_zero(to + row * apart, left * pitch);
          fill_zero(to + row * apart + right * pitch, (columns - right) * pitch);
        }
        fill_zero(to + bottom * apart, (rows - bottom) * apart);
        if (top < bottom && left < right)
          pack_rows(&source.at(e.b0 + b, channel0 + k, i0 + top, j0 + left), source.stride,
                    std::min(pitch, channels - k),
                    PixelRows<Acc>{to + top * apart + left * pitch, bottom - top, right - left,
                                   apart, pitch});
      }
    return;
  }
  for (int64_t b = 0; b < e.images; ++b)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column, patch += pitch) {
        const int64_t i = c.h.source_position(row, e.h0), j = c.w.source_position(column, e.w0);
        const bool outside = i < 0 || i >= c.h.source_size || j < 0 || j >= c.w.source_size;
        for (int64_t k = 0; k < channels; k += pitch) {
          Acc* const to = patch + k / pitch * panel_size;
          if (outside)
            fill_zero(to, pitch);
          else
            pack_row(&source.at(e.b0 + b, channel0 + k, i, j), source.stride[1], source.stride[3],
                     std::min(pitch, channels - k), 1, to, pitch);
        }
      }
}

}  // namespace convbp::CONVBP_ISA
