// Depthwise convolutions of contiguous tensors. Part of depthwise_kernel.h.
//
//   register tile  kMost vectors of neighbouring pixels of one channel, filters from memory
//   rows           of a band are copied once with their zeros at the edges, for a stride cut into `step`
//                  phases, so that a tap's pixels are neighbours
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "depthwise_channels_last.h"
#include "depthwise_table.h"
#include "patch.h"
#include "register_tile.h"
#include "scratch.h"

namespace convbp::depthwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

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
CONVBP_TARGET void planes_phase(const Depthwise& d, View<const T> source, const T* filters,
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
CONVBP_TARGET void planes_tasks(const std::vector<Depthwise>& phases, View<const T> source,
                                const T* filters, const Epilogue<T>& epilogue, View<T> result,
                                int64_t begin, int64_t end) {
  for (const Depthwise& d : phases) {
    planes_phase(d, source, filters, epilogue, result, begin, end);
    filters += d.taps() * d.channels;
  }
}

// The sum of a vector's numbers, halves first.
template <typename T>
CONVBP_INLINE T sum_of_lanes(Vector<T> x) {
  T lane[Simd<T>::kLanes];
  vector_at(lane) = x;
#pragma GCC unroll 4
  for (int half = Simd<T>::kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// The weight gradient's sums of one channel over some rows, of kTaps taps of a row: delta is zero behind
// a row's end, and what the taps find there is not looked at: it may be infinite.
template <int kTaps, typename T>
CONVBP_TARGET void add_taps(const T* source, int64_t source_row, const int64_t* places,
                            const T* delta, int64_t delta_row, int64_t rows, int64_t width,
                            T* sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = T(i);
  const auto inside = lane < Vector<T>{} + T(width % kLanes);
  Vector<T> acc[kTaps] = {};
  for (int64_t h = 0; h < rows; ++h) {
    const T* const from = source + h * source_row;
    const T* const own = delta + h * delta_row;
    int64_t t = 0;
    for (; t + kLanes <= width; t += kLanes)
#pragma GCC unroll 8
      for (int s = 0; s < kTaps; ++s) acc[s] += vector_at(own + t) * vector_at(from + places[s] + t);
    if (t == width) continue;
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s) {
      const Vector<T> x = vector_at(from + places[s] + t);
      acc[s] += vector_at(own + t) * (inside ? x : Vector<T>{});
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < kTaps; ++s) sums[s] += sum_of_lanes<T>(acc[s]);
}

template <typename T, int... kTaps>
auto add_taps_of(int64_t taps, std::integer_sequence<int, kTaps...>) {
  static constexpr decltype(&add_taps<1, T>) functions[] = {&add_taps<kTaps + 1, T>...};
  return functions[taps - 1];
}

template <typename T>
CONVBP_TARGET void planes_weight_grad(const WeightGrad& p, View<const T> input,
                                      View<const T> delta, T* sums, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Depthwise& d = p.conv;
  const int64_t width = d.w.count, pitch = divide_up(width, kLanes) * kLanes;
  const Phases phases(d.w, pitch);
  std::vector<int64_t> places;
  for (const int64_t offset : d.w.offset) places.push_back(phases.place(offset));
  const int64_t copied_rows = d.h.offset.empty() ? 0 : d.h.dense_rows(d.band);
  const Scratch copied_block = Scratch::take<T>(ScratchName::kPatch, copied_rows * phases.row());
  const Scratch delta_block = Scratch::take<T>(ScratchName::kDelta, d.band * pitch);
  T* const copied = copied_block.template data<T>();
  T* const own = delta_block.template data<T>();

  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / p.parts(), c0 = task % p.parts() * p.channels_a_part;
    const int64_t c1 = std::min(c0 + p.channels_a_part, d.channels);
    T* const of_chunk = sums + chunk * p.sums_a_chunk();
    std::fill(of_chunk + p.place(c0, 0), of_chunk + p.place(c1, 0), T(0));
    for (int64_t band = p.first_band(chunk); band < p.first_band(chunk + 1); ++band)
      for (int64_t c = c0; c < c1; ++c) {
        const int64_t b = band / d.bands(), h0 = band % d.bands() * d.band;
        const int64_t rows = std::min(d.band, d.h.count - h0);
        T* const of_channel = of_chunk + p.place(c, 0);
        Vector<T> bias = {};
        for (int64_t h = 0; h < rows; ++h) {
          T* const to = own + h * pitch;
          std::copy_n(&delta.at(b, c, h0 + h, 0), width, to);
          fill_zero(to + width, pitch - width);
          for (int64_t t = 0; t < pitch; t += kLanes) bias += vector_at(to + t);
        }
        of_channel[d.taps()] += sum_of_lanes<T>(bias);
        if (d.taps() == 0) continue;
        const int64_t top = h0 * d.h.step + d.h.min_offset();
        for (int64_t row = 0; row < d.h.dense_rows(rows); ++row)
          if (top + row >= 0 && top + row < d.h.source_size)
            copy_with_edges(d, phases, &input.at(b, c, top + row, 0), copied + row * phases.row());
        for (int64_t r = 0; r < d.h.tap_count(); ++r) {
          // The rows of delta for which the tap is inside.
          const int64_t at = top + d.h.offset[r] - d.h.min_offset();
          const int64_t first = at < 0 ? divide_up(-at, d.h.step) : 0;
          const int64_t inside = d.h.source_size > at ? divide_up(d.h.source_size - at, d.h.step) : 0;
          const int64_t count = std::min(rows, inside) - first;
          if (count <= 0) continue;
          const T* const from = copied + (at - top + first * d.h.step) * phases.row();
          for (int64_t s = 0; s < d.w.tap_count(); s += kMostTaps) {
            const int64_t taps = std::min<int64_t>(kMostTaps, d.w.tap_count() - s);
            add_taps_of<T>(taps, std::make_integer_sequence<int, kMostTaps>())(
                from, d.h.step * phases.row(), &places[s], own + first * pitch, pitch, count, width,
                of_channel + r * d.w.tap_count() + s);
          }
        }
      }
  }
}

}  // namespace convbp::depthwise::CONVBP_ISA
