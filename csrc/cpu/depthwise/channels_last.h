// Depthwise convolutions of channels_last tensors. Part of kernel.h.
//
//   register tile  a vector of channels of kRun neighbouring pixels, of two rows where there are
//                  registers for both: a source row that both meet is loaded once
//   inner loop     slides along a row of the source: a vector is loaded once and goes into the sums
//                  of every pixel that it meets, with the filters of the row of taps in registers.
//                  What lies outside is skipped, so edges cost less, not more
//   order          all channels of some pixels before the next pixels: memory is read in its own
//                  order, which alone doubles the speed
//
// Reached (Zen 4, 2 cores, copying 44 GB/s): 3x3 of 64x96x32x32, 18 GB/s of input and output
// before results went past the caches; 7x7 of 8x96x56x56, 160 of 240 GF/s.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/depthwise/table.h"
#include "cpu/simd/register_tile.h"
#include "cpu/simd/stream.h"

namespace convbp::depthwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

template <typename T>
using Vector = typename Simd<T>::Vector;

// The taps of an axis that meet the source from position t: [first, last).
struct TapRange {
  int64_t first, last;
};
inline TapRange taps_inside(const ConvAxis& a, int64_t t) {
  TapRange range{0, a.tap_count()};
  while (range.first < range.last && t * a.step + a.offset[range.first] < 0) ++range.first;
  while (range.last > range.first && t * a.step + a.offset[range.last - 1] >= a.source_size)
    --range.last;
  return range;
}

// Source rows [first, first + count), which the next tile meets for the first time. They are
// fetched while this tile is computed.
template <typename T>
struct NextRows {
  const T* first = nullptr;
  int64_t count = 0, apart = 0;

  NextRows() = default;
  // The next rows of an image, where this tile has the positions [h, h + rows).
  NextRows(const ConvAxis& axis, int64_t h, int64_t rows, const T* image, int64_t apart)
      : apart(apart) {
    const int64_t newest = axis.offset.empty() ? 0 : axis.offset.back();
    const auto end = [&](int64_t t) {
      return std::clamp<int64_t>(t * axis.step + newest + 1, 0, axis.source_size);
    };
    const int64_t from = end(h + rows - 1);
    first = image + from * apart;
    count = end(h + 2 * rows - 1) - from;
  }
};

// Rows of the register tile: two share what they read, where there are registers for two.
constexpr int kRowsTogether = kRows > 6 ? 2 : 1;

// A source row. For each row of a tile that meets it: the filters of the taps that do, or their
// sums; null for the other rows.
template <typename T, typename F = const T>
struct TapRow {
  const T* source;
  F* filters[kRowsTogether];
};

// Finds the source rows that the rows [h, h + count) of a tile meet, in their order. source_row(i)
// is the i-th one, filters_of(tap) the filters of a row of taps.
template <typename T, typename F, typename SourceRow, typename FiltersOf>
CONVBP_INLINE void meet_rows(const ConvAxis& h_axis, int64_t h, int64_t count,
                             const SourceRow& source_row, const FiltersOf& filters_of,
                             std::vector<TapRow<T, F>>& rows) {
  rows.clear();
  TapRange taps[kRowsTogether];
  for (int i = 0; i < kRowsTogether; ++i)
    taps[i] = i < count ? taps_inside(h_axis, h + i) : TapRange{0, 0};
  for (;;) {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    int64_t next[kRowsTogether], first = kNone;
    for (int i = 0; i < kRowsTogether; ++i) {
      next[i] = taps[i].first < taps[i].last ? (h + i) * h_axis.step + h_axis.offset[taps[i].first]
                                             : kNone;
      first = std::min(first, next[i]);
    }
    if (first == kNone) return;
    TapRow<T, F> row{source_row(first), {}};
    for (int i = 0; i < kRowsTogether; ++i)
      if (next[i] == first) row.filters[i] = filters_of(taps[i].first++);
    rows.push_back(row);
  }
}

constexpr int kRun = 7, kShortRun = 4;
constexpr int kMostTaps = 7, kMostTapsApart = 3;

// Calls body(std::integral_constant<int, kRun>(), t) and the like until [0, count) is covered. The
// last run may begin inside the one before: results that are computed twice are the same.
template <typename Body>
CONVBP_INLINE void overlapping_runs(int64_t count, const Body& body) {
  for (int64_t t = 0; t < count;) {
    const int64_t left = count - t;
    if (count >= kRun && left > kShortRun) {
      t = std::min(t, count - kRun);
      body(std::integral_constant<int, kRun>(), t);
      t += kRun;
    } else if (count >= kShortRun) {
      t = std::min(t, count - kShortRun);
      body(std::integral_constant<int, kShortRun>(), t);
      t += kShortRun;
    } else {
      body(std::integral_constant<int, 1>(), t++);
    }
  }
}

// The source columns that `count` positions from t meet: [first, last) are inside, counted from
// column `origin`.
struct Columns {
  int64_t origin, first, last;
  Columns(const ConvAxis& w, int64_t t, int64_t count)
      : origin(t * w.step + w.offset.front()),
        first(std::max<int64_t>(0, -origin)),
        last(std::min(count, w.source_size - origin)) {}
};

// Columns that kCount neighbouring positions meet, the edges counted.
template <int kTaps, int kStep, int kApart, int kCount>
constexpr int kColumnsMet = (kCount - 1) * kStep + (kTaps - 1) * kApart + 1;

// Calls tile(inside, count, t), with true where the positions of a long run meet no edge. Without a
// test for edges the kernel is up to 1.2 times as fast.
template <int kTaps, int kStep, int kApart, typename Count, typename Tile>
CONVBP_INLINE void with_inside(const ConvAxis& w, Count count, int64_t t, const Tile& tile) {
  if constexpr (kTaps > 0 && Count::value == kRun) {
    constexpr int kColumns = kColumnsMet<kTaps, kStep, kApart, kRun>;
    const Columns columns(w, t, kColumns);
    if (columns.first == 0 && columns.last == kColumns) return tile(std::true_type(), count, t);
  }
  tile(std::false_type(), count, t);
}

// Calls meet(i, s, x) for each source vector x from column `origin` on that is inside, and each of
// kCount neighbouring positions i and kTaps taps s, kApart apart, that meet there. A vector is
// loaded once.
template <bool kInside, int kTaps, int kStep, int kApart, int kCount, typename T, typename Meet>
CONVBP_INLINE void slide(const Depthwise& d, int64_t t, const T* row, int64_t pixel,
                         const Meet& meet) {
  constexpr int kColumns = kColumnsMet<kTaps, kStep, kApart, kCount>;
  const Columns columns(d.w, t, kColumns);
  const T* const from = row + columns.origin * pixel;
#pragma GCC unroll 32
  for (int u = 0; u < kColumns; ++u) {
    if (!kInside && (u < columns.first || u >= columns.last)) continue;
    const Vector<T> x = vector_at(from + u * pixel);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const int right = u - i * kStep;
      if (right >= 0 && right % kApart == 0 && right / kApart < kTaps) meet(i, right / kApart, x);
    }
  }
}

// Adds a source row to the sums of the tile's rows [kFirst, kEnd), kCount neighbouring positions
// each, whose kTaps taps are kApart apart.
template <bool kInside, int kFirst, int kEnd, int kTaps, int kStep, int kApart, int kCount,
          typename T>
CONVBP_INLINE void sum_row(const Depthwise& d, const TapRow<T>& row, int64_t t, int64_t pixel,
                           int64_t channel, Vector<T> (&sums)[kRowsTogether][kCount]) {
  Vector<T> filter[kRowsTogether][kTaps];
#pragma GCC unroll 2
  for (int i = kFirst; i < kEnd; ++i)
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s)
      filter[i][s] = vector_at(row.filters[i] + s * d.channels + channel);
  const auto meet = [&](int position, int s, const Vector<T>& x) CONVBP_INLINE_LAMBDA {
#pragma GCC unroll 2
    for (int i = kFirst; i < kEnd; ++i) sums[i][position] += x * filter[i][s];
  };
  slide<kInside, kTaps, kStep, kApart, kCount>(d, t, row.source + channel, pixel, meet);
}

// Calls body(first, end) with the rows of a tile that meet a source row, as constants.
template <typename Row, typename Body>
CONVBP_INLINE void with_rows(const Row& row, const Body& body) {
  constexpr std::integral_constant<int, 0> zero;
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, kRowsTogether> all;
  if (kRowsTogether > 1 && !row.filters[kRowsTogether - 1])
    body(zero, one);
  else if (kRowsTogether > 1 && !row.filters[0])
    body(one, all);
  else
    body(zero, all);
}

// `sum_row` for any taps and step.
template <int kCount, typename T>
CONVBP_INLINE void gather(const Depthwise& d, const TapRow<T>& row, int64_t t, int64_t pixel,
                          int64_t channel, Vector<T> (&sums)[kRowsTogether][kCount]) {
  for (int i = 0; i < kCount; ++i) {
    const TapRange s = taps_inside(d.w, t + i);
    const T* const from = row.source + (t + i) * d.w.step * pixel + channel;
    for (int64_t tap = s.first; tap < s.last; ++tap)
#pragma GCC unroll 2
      for (int y = 0; y < kRowsTogether; ++y)
        if (row.filters[y])
          sums[y][i] += vector_at(from + d.w.offset[tap] * pixel) *
                        vector_at(row.filters[y] + tap * d.channels + channel);
  }
}

// Stores a vector of channels, from c on, of neighbouring pixels, which are `apart`. Vectors that
// go past the caches are gathered in `lines` until a line is whole: half a line costs as much.
template <int kCount, typename T>
CONVBP_INLINE void store_pixels(const Vector<T> (&values)[kCount], int64_t c, T* lines,
                                int64_t apart, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (!lines) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) vector_at(to + i * apart) = values[i];
    return;
  }
  const int64_t at = c % kLine<T>;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) vector_at(lines + i * kLine<T> + at) = values[i];
  if (at + kLanes < kLine<T>) return;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 8
    for (int64_t l = 0; l < kLine<T>; l += kLanes)
      stream((Vector<float>)vector_at(lines + i * kLine<T> + l),
             reinterpret_cast<float*>(to + i * apart + l - at));
}

// Computes a tile's rows of results, `count_rows` of them. kTaps = 0: any number.
template <int kTaps, int kStep, int kApart, typename T>
CONVBP_TARGET void channels_last_rows(const Depthwise& d, int64_t count_rows,
                                      const std::vector<TapRow<T>>& rows, const NextRows<T>& next,
                                      int64_t pixel, const Epilogue<T>& epilogue, int64_t at_row,
                                      View<T> result) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t apart = d.w.spacing * result.stride[3];
  const int64_t rows_apart = d.h.spacing * result.stride[2];
  const auto tile = [&](auto inside, auto count, int64_t t) CONVBP_TARGET {
    constexpr bool kInside = inside;
    constexpr int kCount = count;
    T lines[kRowsTogether][2][kCount * kLine<T>];
    // The last vector of channels ends with the last channel: some are computed twice.
    for (int64_t c0 = 0; c0 < d.channels; c0 += kLanes) {
      const int64_t c = std::min(c0, d.channels - kLanes);
      const int64_t at = at_row + c + t * apart;
      for (int64_t y = 0; y < next.count; ++y)
        prefetch<0>(next.first + y * next.apart + t * kStep * pixel + c, pixel, kCount * kStep);
      for (int64_t y = 0; !d.streamed && next.first && y < count_rows; ++y)
        prefetch<1>(result.data + at + (count_rows + y) * rows_apart, apart, kCount);
      const Vector<T> bias = epilogue.bias ? vector_at(epilogue.bias + c) : Vector<T>{};
      Vector<T> sums[kRowsTogether][kCount];
#pragma GCC unroll 2
      for (int y = 0; y < kRowsTogether; ++y)
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) sums[y][i] = bias;
      for (const TapRow<T>& row : rows)
        if constexpr (kTaps == 0)
          gather<kCount, T>(d, row, t, pixel, c, sums);
        else
          with_rows(row, [&](auto first, auto end) CONVBP_INLINE_LAMBDA {
            sum_row<kInside, first, end, kTaps, kStep, kApart, kCount, T>(d, row, t, pixel, c,
                                                                          sums);
          });
#pragma GCC unroll 2
      for (int y = 0; y < kRowsTogether; ++y) {
        if (y >= count_rows) break;
        const int64_t to = at + y * rows_apart;
        if (epilogue.pre_activation)
          store_pixels<kCount, T>(sums[y], c, d.streamed ? lines[y][0] : nullptr, apart,
                                  epilogue.pre_activation + to);
        if (epilogue.activation.functions) {
          T values[kCount * kLanes];
#pragma GCC unroll 8
          for (int i = 0; i < kCount; ++i) vector_at(values + i * kLanes) = sums[y][i];
          epilogue.activation.apply(values, kCount * kLanes);
#pragma GCC unroll 8
          for (int i = 0; i < kCount; ++i) sums[y][i] = vector_at(values + i * kLanes);
        }
        store_pixels<kCount, T>(sums[y], c, d.streamed ? lines[y][1] : nullptr, apart,
                                result.data + to);
      }
    }
  };
  overlapping_runs(d.w.count, [&](auto count, int64_t t) CONVBP_TARGET {
    with_inside<kTaps, kStep, kApart>(d.w, count, t, tile);
  });
}

// kFunction<taps, step, apart> for taps that far apart, where there is one, else
// kFunction<0, 0, 1>.
template <typename Row, int kStep, int kApart, int... kTap>
auto function_of(int64_t taps, std::integer_sequence<int, kTap...>) {
  static constexpr decltype(Row::template kFunction<0, 0, 1>) functions[] = {
      Row::template kFunction<kTap + 1, kStep, kApart>...};
  return functions[taps - 1];
}
template <typename Row>
auto function_for(const ConvAxis& w) {
  const int64_t taps = w.tap_count(), apart = taps > 1 ? w.offset[1] - w.offset[0] : 1;
  const auto most = std::make_integer_sequence<int, kMostTaps>();
  const auto most_apart = std::make_integer_sequence<int, kMostTapsApart>();
  if (taps >= 1 && taps <= kMostTaps && apart == 1) {
    if (w.step == 1) return function_of<Row, 1, 1>(taps, most);
    if (w.step == 2) return function_of<Row, 2, 1>(taps, most);
  }
  if (taps >= 1 && taps <= kMostTapsApart && apart == 2 && w.step == 1)
    return function_of<Row, 1, 2>(taps, most_apart);
  return Row::template kFunction<0, 0, 1>;
}

template <typename T>
struct ChannelsLastRows {
  template <int kTaps, int kStep, int kApart>
  static constexpr auto kFunction = &channels_last_rows<kTaps, kStep, kApart, T>;
};

template <typename T>
CONVBP_TARGET void channels_last_tasks(const std::vector<Depthwise>& phases, View<const T> source,
                                       const T* filters, const Epilogue<T>& epilogue,
                                       View<T> result, int64_t begin, int64_t end) {
  const int64_t bands = phases.front().bands(), band = phases.front().band;
  std::vector<TapRow<T>> rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / bands, h0 = task % bands * band;
    const T* const image = &source.at(b, 0, 0, 0);
    // Phases take turns: they read the same numbers, and write side by side.
    for (int64_t h = h0; h < std::min(h0 + band, phases.front().h.count); h += kRowsTogether) {
      const T* phase_filters = filters;
      for (const Depthwise& d : phases) {
        const int64_t count = std::min<int64_t>(kRowsTogether, std::min(h0 + band, d.h.count) - h);
        if (count > 0) {
          meet_rows(
              d.h, h, count, [&](int64_t i) { return image + i * source.stride[2]; },
              [&](int64_t tap) { return phase_filters + tap * d.w.tap_count() * d.channels; },
              rows);
          function_for<ChannelsLastRows<T>>(d.w)(
              d, count, rows, NextRows<T>(d.h, h, count, image, source.stride[2]), source.stride[3],
              epilogue,
              b * result.stride[0] + (d.h.first + h * d.h.spacing) * result.stride[2] +
                  d.w.first * result.stride[3],
              result);
        }
        phase_filters += d.taps() * d.channels;
      }
    }
  }
  if (phases.front().streamed) stream_fence();
}

// Adds a source row to the sums of the taps that meet it from rows [kFirst, kEnd) of delta; `own`
// are kCount neighbouring positions of these rows.
template <bool kInside, int kFirst, int kEnd, int kTaps, int kStep, int kApart, int kCount,
          typename T>
CONVBP_INLINE void add_products(const Depthwise& d, const TapRow<T, T>& row, int64_t t,
                                int64_t pixel, int64_t c, int64_t c0, int64_t padded_size,
                                const Vector<T> (&own)[kRowsTogether][kCount]) {
  Vector<T> acc[kRowsTogether][kTaps];
#pragma GCC unroll 2
  for (int y = kFirst; y < kEnd; ++y)
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s) acc[y][s] = vector_at(row.filters[y] + c0 + s * padded_size);
  const auto meet = [&](int i, int s, const Vector<T>& x) CONVBP_INLINE_LAMBDA {
#pragma GCC unroll 2
    for (int y = kFirst; y < kEnd; ++y) acc[y][s] += x * own[y][i];
  };
  slide<kInside, kTaps, kStep, kApart, kCount>(d, t, row.source + c, pixel, meet);
#pragma GCC unroll 2
  for (int y = kFirst; y < kEnd; ++y)
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s) vector_at(row.filters[y] + c0 + s * padded_size) = acc[y][s];
}

// add_products() for any taps and step.
template <int kCount, typename T>
CONVBP_INLINE void add_any(const Depthwise& d, const TapRow<T, T>& row, int64_t t, int64_t pixel,
                           int64_t c, int64_t c0, int64_t padded_size,
                           const Vector<T> (&own)[kRowsTogether][kCount]) {
  for (int i = 0; i < kCount; ++i) {
    const TapRange s = taps_inside(d.w, t + i);
    const T* const from = row.source + (t + i) * d.w.step * pixel + c;
    for (int64_t tap = s.first; tap < s.last; ++tap)
#pragma GCC unroll 2
      for (int y = 0; y < kRowsTogether; ++y)
        if (row.filters[y])
          vector_at(row.filters[y] + c0 + tap * padded_size) +=
              vector_at(from + d.w.offset[tap] * pixel) * own[y][i];
  }
}

// Adds `count_rows` rows of delta to the sums of the weight gradient, of which a tap has
// `padded_size`; bias_sums are the bias gradient's.
template <int kTaps, int kStep, int kApart, typename T>
CONVBP_TARGET void add_rows(const Depthwise& d, int64_t count_rows,
                            const std::vector<TapRow<T, T>>& rows, const NextRows<T>& next,
                            int64_t pixel, const T* delta, int64_t delta_row, int64_t delta_pixel,
                            int64_t c_begin, int64_t c_end, int64_t padded_size, T* bias_sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  const auto add = [&](auto inside, auto count, int64_t t) CONVBP_TARGET {
    constexpr bool kInside = inside;
    constexpr int kCount = count;
    for (int64_t c0 = c_begin; c0 < c_end; c0 += kLanes) {
      const int64_t c = std::min(c0, d.channels - kLanes);
      const T* const from = delta + t * delta_pixel + c;
      for (int64_t y = 0; y < next.count; ++y)
        prefetch<0>(next.first + y * next.apart + t * kStep * pixel + c, pixel, kCount * kStep);
      for (int64_t y = 0; next.first && y < count_rows; ++y)
        prefetch<0>(from + (count_rows + y) * delta_row, delta_pixel, kCount);
      Vector<T> own[kRowsTogether][kCount];
      Vector<T> bias = vector_at(bias_sums + c0);
#pragma GCC unroll 2
      for (int y = 0; y < kRowsTogether; ++y)
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) {
          own[y][i] = Vector<T>{};
          if (y < count_rows) own[y][i] = vector_at(from + y * delta_row + i * delta_pixel);
          bias += own[y][i];
        }
      vector_at(bias_sums + c0) = bias;
      for (const TapRow<T, T>& row : rows)
        if constexpr (kTaps == 0)
          add_any<kCount, T>(d, row, t, pixel, c, c0, padded_size, own);
        else
          with_rows(row, [&](auto first, auto end) CONVBP_INLINE_LAMBDA {
            add_products<kInside, first, end, kTaps, kStep, kApart, kCount, T>(
                d, row, t, pixel, c, c0, padded_size, own);
          });
    }
  };
  int64_t t = 0;
  for (; t + kRun <= d.w.count; t += kRun)
    with_inside<kTaps, kStep, kApart>(d.w, std::integral_constant<int, kRun>(), t, add);
  for (; t + kShortRun <= d.w.count; t += kShortRun)
    add(std::false_type(), std::integral_constant<int, kShortRun>(), t);
  for (; t < d.w.count; ++t) add(std::false_type(), std::integral_constant<int, 1>(), t);
}

template <typename T>
struct AddRows {
  template <int kTaps, int kStep, int kApart>
  static constexpr auto kFunction = &add_rows<kTaps, kStep, kApart, T>;
};

template <typename T>
CONVBP_TARGET void channels_last_weight_grad(const DepthwiseWeightGrad& p, View<const T> input,
                                             View<const T> delta, T* sums, int64_t begin,
                                             int64_t end) {
  const Depthwise& d = p.conv;
  const auto add = function_for<AddRows<T>>(d.w);
  const int64_t padded_size = p.padded_size();
  std::vector<TapRow<T, T>> rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / p.parts(), c0 = task % p.parts() * p.channels_per_part;
    const int64_t c1 = std::min(c0 + p.channels_per_part, padded_size);
    T* const of_chunk = sums + chunk * p.sums_per_chunk();
    for (int64_t tap = 0; tap <= d.taps(); ++tap)
      std::fill(of_chunk + tap * padded_size + c0, of_chunk + tap * padded_size + c1, T(0));
    const int64_t lines = d.batch * d.h.count, end_line = (chunk + 1) * lines / p.chunks;
    for (int64_t line = chunk * lines / p.chunks; line < end_line;) {
      const int64_t b = line / d.h.count, h = line % d.h.count;
      const int64_t count =
          std::min<int64_t>(kRowsTogether, std::min(end_line - line, d.h.count - h));
      meet_rows(
          d.h, h, count, [&](int64_t i) { return &input.at(b, 0, i, 0); },
          [&](int64_t tap) { return of_chunk + tap * d.w.tap_count() * padded_size; }, rows);
      add(d, count, rows, NextRows<T>(d.h, h, count, &input.at(b, 0, 0, 0), input.stride[2]),
          input.stride[3], &delta.at(b, 0, h, 0), delta.stride[2], delta.stride[3], c0, c1,
          padded_size, of_chunk + d.taps() * padded_size);
      line += count;
    }
  }
}

}  // namespace convbp::depthwise::CONVBP_ISA
