// Depthwise convolutions of channels_last tensors. Part of depthwise_kernel.h.
//
//   register tile  a vector of channels of kRun neighbouring pixels
//   inner loop     slides along a row of the source: a vector is loaded once and goes into the sums
//                  of every pixel that it meets, with the filters of the row of taps in registers.
//                  What lies outside is skipped, so edges cost less, not more
//   order          all channels of some pixels before the next pixels: memory is read in its own
//                  order, which alone doubles the speed
//
// Reached (Zen 4, 2 cores, copying 44 GB/s): 3x3 of 64x96x32x32, 18 GB/s of input and output, 27 with
// the output's lines, which are read before they are written; 7x7 of 8x96x56x56, 160 of 240 GF/s.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "depthwise_table.h"
#include "register_tile.h"

namespace convbp::depthwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

template <typename T>
using Vector = typename Simd<T>::Vector;

// The taps of an axis that meet the source from position t: [first, last).
struct TapRange {
  int64_t first, last;
};
inline TapRange taps_inside(const Axis& a, int64_t t) {
  TapRange range{0, a.tap_count()};
  while (range.first < range.last && t * a.step + a.offset[range.first] < 0) ++range.first;
  while (range.last > range.first && t * a.step + a.offset[range.last - 1] >= a.source_size)
    --range.last;
  return range;
}

// The last source row that the taps of position t meet: of all it needs, the one not met before. It
// is fetched while position t - 1 is computed.
inline int64_t newest_row(const Axis& h, int64_t t) {
  const int64_t row = t * h.step + (h.offset.empty() ? 0 : h.offset.back());
  return std::clamp<int64_t>(row, 0, h.source_size - 1);
}

// A source row and its taps' filters, or their sums.
template <typename T, typename F = const T>
struct TapRow {
  const T* source;
  F* filters;
};

constexpr int kRun = 8, kShortRun = 4;
constexpr int kMostTaps = 7;

// Calls body(std::integral_constant<int, kRun>(), t) and the like until [0, count) is covered. The
// last run may begin inside of the one before: what it computes again is the same.
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

// Which of the source columns that kCount positions from t meet are inside: [first, last), counted
// from column `origin`.
struct Columns {
  int64_t origin, first, last;
  Columns(const Axis& w, int64_t t, int64_t count)
      : origin(t * w.step + w.offset.front()),
        first(std::max<int64_t>(0, -origin)),
        last(std::min(count, w.source_size - origin)) {}
};

// Calls meet(i, s, x) for each source vector x from column `origin` on that is inside, and each of
// kCount neighbouring positions i and kTaps neighbouring taps s that meet there. A vector is loaded
// once.
template <int kTaps, int kStep, int kCount, typename T, typename Meet>
CONVBP_INLINE void slide(const Depthwise& d, int64_t t, const T* row, int64_t pixel,
                         const Meet& meet) {
  constexpr int kColumns = (kCount - 1) * kStep + kTaps;
  const Columns columns(d.w, t, kColumns);
  const T* const from = row + columns.origin * pixel;
#pragma GCC unroll 32
  for (int u = 0; u < kColumns; ++u) {
    if (u < columns.first || u >= columns.last) continue;
    const Vector<T> x = vector_at(from + u * pixel);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
      if (u >= i * kStep && u - i * kStep < kTaps) meet(i, u - i * kStep, x);
  }
}

// Sums of kCount neighbouring positions over `rows`, whose kTaps taps are neighbours.
template <int kTaps, int kStep, int kCount, typename T>
CONVBP_INLINE void sum_taps(const Depthwise& d, const std::vector<TapRow<T>>& rows, int64_t t,
                            int64_t pixel, int64_t channel, Vector<T> (&sums)[kCount]) {
  for (const TapRow<T>& row : rows) {
    Vector<T> filter[kTaps];
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s) filter[s] = vector_at(row.filters + s * d.channels + channel);
    slide<kTaps, kStep, kCount>(
        d, t, row.source + channel, pixel,
        [&](int i, int s, const Vector<T>& x) __attribute__((always_inline)) CONVBP_TARGET {
          sums[i] += x * filter[s];
        });
  }
}

// The same for any taps and step.
template <int kCount, typename T>
CONVBP_INLINE void gather(const Depthwise& d, const std::vector<TapRow<T>>& rows, int64_t t,
                          int64_t pixel, int64_t channel, Vector<T> (&sums)[kCount]) {
  for (const TapRow<T>& row : rows)
    for (int i = 0; i < kCount; ++i) {
      const TapRange s = taps_inside(d.w, t + i);
      const T* const from = row.source + (t + i) * d.w.step * pixel + channel;
      for (int64_t tap = s.first; tap < s.last; ++tap)
        sums[i] += vector_at(from + d.w.offset[tap] * pixel) *
                   vector_at(row.filters + tap * d.channels + channel);
    }
}

// One row of results. kTaps = 0: any.
template <int kTaps, int kStep, typename T>
CONVBP_TARGET void channels_last_row(const Depthwise& d, const std::vector<TapRow<T>>& rows,
                                     const T* next_row, int64_t pixel, const Epilogue<T>& epilogue,
                                     int64_t at_row, View<T> result) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t apart = d.w.spacing * result.stride[3];
  const T* const next_result = result.data + at_row + d.h.spacing * result.stride[2];
  overlapping_runs(d.w.count, [&](auto count, int64_t t) CONVBP_TARGET {
    constexpr int kCount = count;
    // The last vector of channels ends with the last channel: some are computed twice.
    for (int64_t c0 = 0; c0 < d.channels; c0 += kLanes) {
      const int64_t c = std::min(c0, d.channels - kLanes);
      prefetch<0>(next_row + t * kStep * pixel + c, pixel, kCount * kStep);
      prefetch<1>(next_result + t * apart + c, apart, kCount);
      const Vector<T> bias = epilogue.bias ? vector_at(epilogue.bias + c) : Vector<T>{};
      Vector<T> sums[kCount];
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) sums[i] = bias;
      if constexpr (kTaps == 0)
        gather<kCount, T>(d, rows, t, pixel, c, sums);
      else
        sum_taps<kTaps, kStep, kCount, T>(d, rows, t, pixel, c, sums);
      const int64_t at = at_row + c + t * apart;
      if (epilogue.pre_activation)
        for (int i = 0; i < kCount; ++i)
          vector_at(epilogue.pre_activation + at + i * apart) = sums[i];
      if (epilogue.activation.functions) {
        T values[kCount * kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) vector_at(values + i * kLanes) = sums[i];
        epilogue.activation.apply(values, kCount * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i)
          vector_at(result.data + at + i * apart) = vector_at(values + i * kLanes);
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) vector_at(result.data + at + i * apart) = sums[i];
      }
    }
  });
}

// kFunction<taps, step> where the taps are neighbours and there is one, else kFunction<0, 0>.
template <typename Row>
auto function_for(const Axis& w) {
  static constexpr decltype(Row::template kFunction<0, 0>) functions[2][kMostTaps] = {
      {Row::template kFunction<1, 1>, Row::template kFunction<2, 1>, Row::template kFunction<3, 1>,
       Row::template kFunction<4, 1>, Row::template kFunction<5, 1>, Row::template kFunction<6, 1>,
       Row::template kFunction<7, 1>},
      {Row::template kFunction<1, 2>, Row::template kFunction<2, 2>, Row::template kFunction<3, 2>,
       Row::template kFunction<4, 2>, Row::template kFunction<5, 2>, Row::template kFunction<6, 2>,
       Row::template kFunction<7, 2>}};
  const int64_t taps = w.tap_count();
  const bool neighbours = taps > 0 && w.offset.back() - w.offset.front() == taps - 1;
  return neighbours && taps <= kMostTaps && w.step <= 2 ? functions[w.step - 1][taps - 1]
                                                        : Row::template kFunction<0, 0>;
}

template <typename T>
struct ChannelsLastRow {
  template <int kTaps, int kStep>
  static constexpr auto kFunction = &channels_last_row<kTaps, kStep, T>;
};

template <typename T>
CONVBP_TARGET void channels_last_tasks(const std::vector<Depthwise>& phases, View<const T> source,
                                       const T* filters, const Epilogue<T>& epilogue,
                                       View<T> result, int64_t begin, int64_t end) {
  const int64_t bands = phases.front().bands(), band = phases.front().band;
  std::vector<TapRow<T>> rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / bands, h0 = task % bands * band;
    const T* phase_filters = filters;
    for (const Depthwise& d : phases) {
      const auto row_of_results = function_for<ChannelsLastRow<T>>(d.w);
      for (int64_t h = h0; h < std::min(h0 + band, d.h.count); ++h) {
        rows.clear();
        const TapRange r = taps_inside(d.h, h);
        for (int64_t tap = r.first; tap < r.last; ++tap)
          rows.push_back({&source.at(b, 0, h * d.h.step + d.h.offset[tap], 0),
                          phase_filters + tap * d.w.tap_count() * d.channels});
        row_of_results(d, rows, &source.at(b, 0, newest_row(d.h, h + 1), 0), source.stride[3],
                       epilogue,
                       b * result.stride[0] + (d.h.first + h * d.h.spacing) * result.stride[2] +
                           d.w.first * result.stride[3],
                       result);
      }
      phase_filters += d.taps() * d.channels;
    }
  }
}

// What a row of delta adds to the sums of the weight gradient, of which a tap has `room`; bias_sums
// are the bias gradient's.
template <int kTaps, int kStep, typename T>
CONVBP_TARGET void add_row(const Depthwise& d, const std::vector<TapRow<T, T>>& rows,
                           const T* next_row, int64_t pixel, const T* delta, const T* next_delta,
                           int64_t delta_pixel, int64_t c_begin, int64_t c_end, int64_t room,
                           T* bias_sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  const auto add = [&](auto count, int64_t t) CONVBP_TARGET {
    constexpr int kCount = count;
    for (int64_t c0 = c_begin; c0 < c_end; c0 += kLanes) {
      const int64_t c = std::min(c0, d.channels - kLanes);
      prefetch<0>(next_row + t * kStep * pixel + c, pixel, kCount * kStep);
      prefetch<0>(next_delta + t * delta_pixel + c, delta_pixel, kCount);
      Vector<T> own[kCount];
      Vector<T> bias = vector_at(bias_sums + c0);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        own[i] = vector_at(delta + (t + i) * delta_pixel + c);
        bias += own[i];
      }
      vector_at(bias_sums + c0) = bias;
      for (const TapRow<T, T>& row : rows) {
        T* const sums = row.filters + c0;
        if constexpr (kTaps == 0) {
          for (int i = 0; i < kCount; ++i) {
            const TapRange s = taps_inside(d.w, t + i);
            const T* const from = row.source + (t + i) * d.w.step * pixel + c;
            for (int64_t tap = s.first; tap < s.last; ++tap)
              vector_at(sums + tap * room) += vector_at(from + d.w.offset[tap] * pixel) * own[i];
          }
        } else {
          Vector<T> acc[kTaps];
#pragma GCC unroll 8
          for (int s = 0; s < kTaps; ++s) acc[s] = vector_at(sums + s * room);
          slide<kTaps, kStep, kCount>(
              d, t, row.source + c, pixel,
              [&](int i, int s, const Vector<T>& x) __attribute__((always_inline)) CONVBP_TARGET {
                acc[s] += x * own[i];
              });
#pragma GCC unroll 8
          for (int s = 0; s < kTaps; ++s) vector_at(sums + s * room) = acc[s];
        }
      }
    }
  };
  int64_t t = 0;
  for (; t + kRun <= d.w.count; t += kRun) add(std::integral_constant<int, kRun>(), t);
  for (; t + kShortRun <= d.w.count; t += kShortRun)
    add(std::integral_constant<int, kShortRun>(), t);
  for (; t < d.w.count; ++t) add(std::integral_constant<int, 1>(), t);
}

template <typename T>
struct AddRow {
  template <int kTaps, int kStep>
  static constexpr auto kFunction = &add_row<kTaps, kStep, T>;
};

template <typename T>
CONVBP_TARGET void channels_last_weight_grad(const WeightGrad& p, View<const T> input,
                                             View<const T> delta, T* sums, int64_t begin,
                                             int64_t end) {
  const Depthwise& d = p.conv;
  const auto add = function_for<AddRow<T>>(d.w);
  const int64_t room = p.room();
  std::vector<TapRow<T, T>> rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / p.parts(), c0 = task % p.parts() * p.channels_a_part;
    const int64_t c1 = std::min(c0 + p.channels_a_part, room);
    T* const of_chunk = sums + chunk * p.sums_a_chunk();
    for (int64_t tap = 0; tap <= d.taps(); ++tap)
      std::fill(of_chunk + tap * room + c0, of_chunk + tap * room + c1, T(0));
    const int64_t lines = d.batch * d.h.count;
    for (int64_t line = chunk * lines / p.chunks; line < (chunk + 1) * lines / p.chunks; ++line) {
      const int64_t b = line / d.h.count, h = line % d.h.count;
      rows.clear();
      const TapRange r = taps_inside(d.h, h);
      for (int64_t tap = r.first; tap < r.last; ++tap)
        rows.push_back({&input.at(b, 0, h * d.h.step + d.h.offset[tap], 0),
                        of_chunk + tap * d.w.tap_count() * room});
      add(d, rows, &input.at(b, 0, newest_row(d.h, h + 1), 0), input.stride[3],
          &delta.at(b, 0, h, 0), &delta.at(b, 0, std::min(h + 1, d.h.count - 1), 0),
          delta.stride[3], c0, c1, room, of_chunk + d.taps() * room);
    }
  }
}

}  // namespace convbp::depthwise::CONVBP_ISA
