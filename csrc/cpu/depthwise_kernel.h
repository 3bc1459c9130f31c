// The depthwise kernels. Included once per instruction set, as register_tile.h.
//
// What is computed stands in plain.h. Rows of the source that lie outside are left out of the sums.
//
//   channels_last  channels in lanes, a run of pixels in registers; where the filter reaches over the
//                  left or right edge, pixel by pixel
//   planes         pixels in lanes; the rows of a band are copied once with their zeros at the edges,
//                  for a stride cut into `step` phases so that a tap's pixels are neighbours

#include <algorithm>
#include <cstdint>
#include <vector>

#include "depthwise_table.h"
#include "patch.h"
#include "register_tile.h"
#include "scratch.h"

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

// A source row and its taps' filters.
template <typename T>
struct TapRow {
  const T* source;
  const T* filters;
};

// kRun neighbouring pixels of kLanes channels: sums over the rows' taps [s.first, s.last).
template <int kRun, typename T>
CONVBP_INLINE void run_of_pixels(const Depthwise& d, const std::vector<TapRow<T>>& rows, TapRange s,
                                 int64_t t, int64_t pixel, int64_t channel, Vector<T> start,
                                 Vector<T> (&sums)[kRun]) {
  Vector<T> acc[kRun];  // sums is looked at from outside, and would not stay in registers
#pragma GCC unroll 16
  for (int i = 0; i < kRun; ++i) acc[i] = start;
  for (const TapRow<T>& row : rows)
    for (int64_t tap = s.first; tap < s.last; ++tap) {
      const Vector<T> filter = vector_at(row.filters + tap * d.channels + channel);
      const T* from = row.source + (t * d.w.step + d.w.offset[tap]) * pixel + channel;
#pragma GCC unroll 16
      for (int i = 0; i < kRun; ++i) acc[i] += vector_at(from + i * d.w.step * pixel) * filter;
    }
#pragma GCC unroll 16
  for (int i = 0; i < kRun; ++i) sums[i] = acc[i];
}

template <typename T>
CONVBP_TARGET void channels_last_tasks(const Depthwise& d, View<const T> source, const T* filters,
                                       const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                       int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t pixel = source.stride[3];
  // Positions from where no tap reaches over an edge.
  int64_t inside_first = 0, inside_last = d.w.count;
  while (inside_first < inside_last && taps_inside(d.w, inside_first).first > 0) ++inside_first;
  while (inside_last > inside_first &&
         taps_inside(d.w, inside_last - 1).last < d.w.tap_count())
    --inside_last;
  std::vector<TapRow<T>> rows;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / d.bands(), h0 = task % d.bands() * d.band;
    for (int64_t h = h0; h < std::min(h0 + d.band, d.h.count); ++h) {
      rows.clear();
      const TapRange r = taps_inside(d.h, h);
      for (int64_t tap = r.first; tap < r.last; ++tap)
        rows.push_back({&source.at(b, 0, h * d.h.step + d.h.offset[tap], 0),
                        filters + tap * d.w.tap_count() * d.channels});
      // The last vector of channels ends with the last channel: some are computed twice.
      for (int64_t c0 = 0; c0 < d.channels; c0 += kLanes) {
        const int64_t c = std::min(c0, d.channels - kLanes);
        const Vector<T> bias = epilogue.bias ? vector_at(epilogue.bias + c) : Vector<T>{};
        const auto finish = [&](int64_t t, Vector<T>* sums, int count) CONVBP_TARGET {
          const int64_t at = b * result.stride[0] + c +
                             (d.h.first + h * d.h.spacing) * result.stride[2] +
                             (d.w.first + t * d.w.spacing) * result.stride[3];
          const int64_t apart = d.w.spacing * result.stride[3];
          if (epilogue.pre_activation)
            for (int i = 0; i < count; ++i)
              vector_at(epilogue.pre_activation + at + i * apart) = sums[i];
          epilogue.activation.apply(reinterpret_cast<T*>(sums), count * kLanes);
          for (int i = 0; i < count; ++i) vector_at(result.data + at + i * apart) = sums[i];
        };
        const auto run = [&]<int kRun>(int64_t t, TapRange s) CONVBP_TARGET {
          Vector<T> sums[kRun];
          run_of_pixels<kRun>(d, rows, s, t, pixel, c, bias, sums);
          finish(t, sums, kRun);
        };
        int64_t t = 0;
        for (; t < inside_first; ++t) run.template operator()<1>(t, taps_inside(d.w, t));
        const TapRange all{0, d.w.tap_count()};
        for (; t + kRows <= inside_last; t += kRows) run.template operator()<kRows>(t, all);
        for (; t + 3 <= inside_last; t += 3) run.template operator()<3>(t, all);
        for (; t < d.w.count; ++t) run.template operator()<1>(t, taps_inside(d.w, t));
      }
    }
  }
}

// Tap s of position t lies in phase phase_of(s) of a copied row, at t + place_of(s).
struct Phases {
  int64_t step, origin, length;  // numbers a phase has

  Phases(const Axis& w, int64_t positions)
      : step(w.step), origin(w.min_offset()), length(positions + reach(w) / w.step) {}
  static int64_t reach(const Axis& w) {
    return w.offset.empty() ? 0 : *std::max_element(w.offset.begin(), w.offset.end()) - w.min_offset();
  }
  int64_t row() const { return step * length; }
  int64_t place(int64_t offset) const {
    return (offset - origin) % step * length + (offset - origin) / step;
  }
};

template <typename T>
CONVBP_TARGET void copy_with_edges(const Depthwise& d, const Phases& phases, const T* from, T* to) {
  const int64_t left = std::max<int64_t>(0, -phases.origin);
  if (phases.step == 1) {
    const int64_t start = std::max<int64_t>(0, phases.origin);
    const int64_t count =
        std::max<int64_t>(0, std::min(d.w.source_size - start, phases.length - left));
    fill_zero(to, std::min(left, phases.length));
    for (int64_t i = 0; i < count; ++i) to[left + i] = from[start + i];
    fill_zero(to + left + count, phases.length - left - count);
    return;
  }
  for (int64_t phase = 0; phase < phases.step; ++phase)
    for (int64_t i = 0; i < phases.length; ++i) {
      const int64_t j = phases.origin + phase + i * phases.step;
      to[phase * phases.length + i] = j >= 0 && j < d.w.source_size ? from[j] : T(0);
    }
}

// kVectors neighbouring vectors of pixels.
template <int kVectors, typename T>
CONVBP_INLINE void vectors_of_pixels(const Depthwise& d, const std::vector<TapRow<T>>& rows,
                                     const std::vector<int64_t>& places, int64_t t, T start,
                                     Vector<T>* sums) {
  const Vector<T> zero = {};
  Vector<T> acc[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) acc[v] = zero + start;
  for (const TapRow<T>& row : rows)
    for (int64_t tap = 0; tap < d.w.tap_count(); ++tap) {
      const T* from = row.source + places[tap] + t;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        acc[v] += vector_at(from + v * Simd<T>::kLanes) * row.filters[tap];
    }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = acc[v];
}

template <typename T>
CONVBP_TARGET void planes_tasks(const Depthwise& d, View<const T> source, const T* filters,
                                const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes, kMost = 4;
  const Phases phases(d.w, divide_up(d.w.count, 2 * kLanes) * 2 * kLanes);
  const int64_t taps = d.h.tap_count() * d.w.tap_count();
  std::vector<int64_t> places;
  for (const int64_t offset : d.w.offset) places.push_back(phases.place(offset));
  const Scratch copied_block = Scratch::take<T>(
      ScratchName::kPatch, (d.h.dense_rows(d.band) + 1) * phases.row() + kMost * kLanes);
  T* const copied = copied_block.template data<T>();
  std::vector<TapRow<T>> rows;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t h0 = task % d.bands() * d.band, plane = task / d.bands();
    const int64_t c = plane % d.channels, b = plane / d.channels;
    const int64_t h1 = std::min(h0 + d.band, d.h.count);
    const int64_t top = h0 * d.h.step + d.h.min_offset();
    for (int64_t row = 0; row < d.h.dense_rows(h1 - h0); ++row)
      if (top + row >= 0 && top + row < d.h.source_size)
        copy_with_edges(d, phases, &source.at(b, c, top + row, 0), copied + row * phases.row());
    const T bias = epilogue.bias ? epilogue.bias[c] : T(0);
    for (int64_t h = h0; h < h1; ++h) {
      rows.clear();
      const TapRange r = taps_inside(d.h, h);
      for (int64_t tap = r.first; tap < r.last; ++tap)
        rows.push_back({copied + (h * d.h.step + d.h.offset[tap] - top) * phases.row(),
                        filters + c * taps + tap * d.w.tap_count()});
      for (int64_t t = 0; t < d.w.count; t += kMost * kLanes) {
        Vector<T> sums[kMost];
        const int64_t count = std::min<int64_t>(kMost * kLanes, d.w.count - t);
        if (count > 2 * kLanes)
          vectors_of_pixels<kMost>(d, rows, places, t, bias, sums);
        else
          vectors_of_pixels<2>(d, rows, places, t, bias, sums);
        T* const values = reinterpret_cast<T*>(sums);
        const int64_t at = b * result.stride[0] + c * result.stride[1] +
                           (d.h.first + h * d.h.spacing) * result.stride[2] +
                           (d.w.first + t * d.w.spacing) * result.stride[3];
        const auto put = [&](T* to) CONVBP_TARGET {
          if (d.w.spacing == 1)
            for (int64_t i = 0; i < count; ++i) to[at + i] = values[i];
          else
            for (int64_t i = 0; i < count; ++i) to[at + i * d.w.spacing] = values[i];
        };
        if (epilogue.pre_activation) put(epilogue.pre_activation);
        epilogue.activation.apply(values, count);
        put(result.data);
      }
    }
  }
}

template <typename T>
Table<T> make_table() {
  return {CONVBP_VECTOR_BYTES, &channels_last_tasks<T>, &planes_tasks<T>};
}

template Table<float> make_table();
template Table<double> make_table();

}  // namespace convbp::depthwise::CONVBP_ISA
