// Depthwise convolutions of contiguous tensors. Part of kernel.h.
//
//   patch          the rows of a band, copied once with zeros between them, so that pixel (h, t)
//                  lies at h * pitch + t and a tap is a shift of the whole band: one run of pixels,
//                  whatever the width of the rows. Strides cut it into phases
//   register tile  up to eight vectors of pixels of one channel; of the weight gradient nine taps
//
// Reached (Zen 4, 2 cores, copying 44 GB/s): 3x3 of 64x96x32x32, 17 to 19 GB/s of input and output.
//
// A zero of the edge must not meet what is infinite or NaN: such filters, and such sums of the
// weight gradient, are computed term by term.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/table.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"

namespace convbp::depthwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

// A copied band: the source rows that its positions read, with zeros around them. For strides it is
// cut into phases, of rows and of columns, in which neighbouring positions read neighbours.
struct Copy {
  const ConvAxis& h;
  const ConvAxis& w;
  // Zeros before a row, columns that it has of the source, and the first of these columns.
  int64_t left, used, first;
  int64_t pitch, rows;  // pitch and rows of a phase

  Copy(const ConvAxis& rows_axis, const ConvAxis& columns_axis, int64_t band)
      : h(rows_axis), w(columns_axis), rows(band + reach(h) / h.step) {
    const int64_t length = w.count + reach(w) / w.step, origin = w.min_offset();
    left = std::clamp<int64_t>(-origin, 0, length);
    first = std::max<int64_t>(0, origin);
    used = std::clamp<int64_t>(w.source_size - first, 0, length - left);
    // Zeros after a row are those before the next one.
    pitch = w.step > 1 ? length : std::max(w.count, used + std::max(left, length - left - used));
  }
  // The places where the values of each tap of these axes begin.
  std::vector<int64_t> places(const ConvAxis& taps_h, const ConvAxis& taps_w) const {
    std::vector<int64_t> places;
    for (const int64_t r : taps_h.offset)
      for (const int64_t s : taps_w.offset) {
        const int64_t down = r - h.min_offset(), right = s - w.min_offset();
        const int64_t phase = down % h.step * w.step + right % w.step;
        places.push_back((phase * rows + down / h.step) * pitch + right / w.step);
      }
    return places;
  }
  static int64_t reach(const ConvAxis& a) {
    if (a.offset.empty()) return 0;
    return *std::max_element(a.offset.begin(), a.offset.end()) - a.min_offset();
  }
  int64_t size() const { return h.step * w.step * rows * pitch; }
  // The positions of `count` rows.
  int64_t positions(int64_t count) const { return (count - 1) * pitch + w.count; }
};

template <typename T>
CONVBP_INLINE void copy_numbers(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Copies the rows for results from h0 on, of the plane whose rows are `row_stride` apart, into a
// copy whose zeros are there. The same rows of the plane `ahead` further on are fetched, for the
// next copy.
template <typename T>
CONVBP_TARGET void copy_band(const Copy& c, const T* plane, int64_t row_stride, int64_t ahead,
                             int64_t h0, T* to) {
  const int64_t top = h0 * c.h.step + c.h.min_offset();
  for (int64_t down = 0; down < c.h.step; ++down)
    for (int64_t right = 0; right < c.w.step; ++right)
      for (int64_t k = 0; k < c.rows; ++k, to += c.pitch) {
        const int64_t i = top + down + k * c.h.step;
        if (i < 0 || i >= c.h.source_size) continue;
        const T* const from = plane + i * row_stride;
        if (ahead && right == 0)
          prefetch<0>(from + ahead, kLine<T>, divide_up(c.w.source_size, kLine<T>));
        if (c.w.step == 1) {
          copy_numbers(from + c.first, c.used, to + c.left);
          continue;
        }
        const int64_t j0 = c.w.min_offset() + right, step = c.w.step;
        const int64_t begin = std::min(c.pitch, j0 < 0 ? divide_up(-j0, step) : 0);
        const int64_t end = std::clamp(
            c.w.source_size > j0 ? divide_up(c.w.source_size - j0, step) : 0, begin, c.pitch);
        if (step == 2)
          for (int64_t x = begin; x < end; ++x) to[x] = from[j0 + 2 * x];
        else
          for (int64_t x = begin; x < end; ++x) to[x] = from[j0 + step * x];
      }
}

// Most vectors of positions summed together, and most taps gathered together.
constexpr int kMostVectors = 8, kMostGathered = 9;

template <int kVectors, typename T>
CONVBP_TARGET void sum_shifted(const std::vector<int64_t>& places, const T* copied,
                               const T* filters, T start, T* sums) {
  const Vector<T> zero = {};
  Vector<T> acc[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) acc[v] = zero + start;
  for (size_t tap = 0; tap < places.size(); ++tap) {
    const T* const from = copied + places[tap];
    const Vector<T> filter = zero + filters[tap];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[v] += vector_at(from + v * Simd<T>::kLanes) * filter;
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) vector_at(sums + v * Simd<T>::kLanes) = acc[v];
}

template <typename T>
bool all_finite(const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!(x[i] - x[i] == T(0))) return false;
  return true;
}

// Sums term by term: where a filter is infinite or NaN, a zero of the edge must not meet it.
template <typename T>
CONVBP_TARGET void sum_inside(const Depthwise& d, const Copy& c, const T* plane, int64_t row_stride,
                              const T* filters, T start, int64_t h0, int64_t h1, T* sums) {
  for (int64_t h = h0; h < h1; ++h)
    for (int64_t t = 0; t < d.w.count; ++t) {
      const TapRange r = taps_inside(d.h, h), s = taps_inside(d.w, t);
      T sum = start;
      for (int64_t y = r.first; y < r.last; ++y)
        for (int64_t x = s.first; x < s.last; ++x)
          sum += plane[(h * d.h.step + d.h.offset[y]) * row_stride + t * d.w.step + d.w.offset[x]] *
                 filters[y * d.w.tap_count() + x];
      sums[(h - h0) * c.pitch + t] = sum;
    }
}

// The axis that all phases together read.
inline ConvAxis axis_of_all(const std::vector<Depthwise>& phases, ConvAxis Depthwise::* axis) {
  ConvAxis all = phases.front().*axis;
  for (const Depthwise& d : phases)
    all.offset.insert(all.offset.end(), (d.*axis).offset.begin(), (d.*axis).offset.end());
  return all;
}

// Writes a row of the result from its phases' sums, which are `apart`: phase i has every spacing-th
// number from i on.
template <typename T>
CONVBP_INLINE void interleave(const T* sums, int64_t apart, const Depthwise* phases, int64_t count,
                              T* __restrict to) {
  const int64_t spacing = phases->w.spacing;
  if (spacing == 1) {
    copy_numbers(sums, phases->w.count, to);
  } else if (spacing == 2 && count == 2) {
    const T* __restrict const even = sums;
    const T* __restrict const odd = sums + apart;
    const int64_t pairs = phases[1].w.count;
    for (int64_t t = 0; t < pairs; ++t) {
      to[2 * t] = even[t];
      to[2 * t + 1] = odd[t];
    }
    if (phases->w.count > pairs) to[2 * pairs] = even[pairs];
  } else {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t t = 0; t < phases[i].w.count; ++t) to[i + t * spacing] = sums[i * apart + t];
  }
}

template <typename T>
CONVBP_TARGET void nchw_tasks(const std::vector<Depthwise>& phases, View<const T> source,
                              const T* filters, const Epilogue<T>& epilogue, View<T> result,
                              int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Depthwise& first = phases.front();  // no other has more positions
  const ConvAxis all_h = axis_of_all(phases, &Depthwise::h),
                 all_w = axis_of_all(phases, &Depthwise::w);
  const Copy copy(all_h, all_w, first.band);
  const int64_t size = copy.size() + copy.left + kMostVectors * kLanes;
  const Scratch copy_block = Scratch::take<T>(ScratchName::kPatch, size);
  T* const copied = copy_block.template data<T>();
  fill_zero(copied, size);
  // Phases of the same rows, whose sums are interleaved together.
  int64_t across = 0;
  while (across < static_cast<int64_t>(phases.size()) && phases[across].h.first == first.h.first)
    ++across;
  const int64_t padded_size = copy.positions(first.band) + kMostVectors * kLanes;
  const Scratch sums_block = Scratch::take<T>(ScratchName::kPixels, across * padded_size);
  T* const sums = sums_block.template data<T>();
  std::vector<std::vector<int64_t>> places;
  for (const Depthwise& d : phases) places.push_back(copy.places(d.h, d.w));

  for (int64_t task = begin; task < end; ++task) {
    const int64_t h0 = task % first.bands() * first.band, plane = task / first.bands();
    const int64_t c = plane % first.channels, b = plane / first.channels;
    const T* const from = &source.at(b, c, 0, 0);
    const T bias = epilogue.bias ? epilogue.bias[c] : T(0);
    // Bands of a plane have their zeros in different places; whole planes have the same.
    if (first.bands() > 1) fill_zero(copied, size);
    copy_band(copy, from, source.stride[2], c + 1 < first.channels ? source.stride[1] : 0, h0,
              copied);
    const T* phase_filters = filters;
    for (size_t phase = 0; phase < phases.size(); ++phase) {
      const Depthwise& d = phases[phase];
      const T* const own = phase_filters + c * d.taps();
      phase_filters += d.taps() * d.channels;
      const int64_t h1 = std::min(h0 + first.band, d.h.count), rows = h1 - h0;
      if (rows <= 0) continue;  // the first phase has a band more
      T* const to = sums + phase % across * padded_size;
      if (all_finite(own, d.taps())) {
        const int64_t positions = copy.positions(rows);
        for (int64_t q = 0; q < positions;) {
          const int64_t vectors = divide_up(positions - q, kLanes);
          const int taken = vectors > 4 ? kMostVectors : vectors > 2 ? 4 : 2;
          (taken == 2   ? &sum_shifted<2, T>
           : taken == 4 ? &sum_shifted<4, T>
                        : &sum_shifted<8, T>)(places[phase], copied + q, own, bias, to + q);
          q += taken * kLanes;
        }
      } else {
        sum_inside(d, copy, from, source.stride[2], own, bias, h0, h1, to);
      }
      if (phase % across + 1 < static_cast<size_t>(across)) continue;

      const Depthwise* const interleaved = &phases[phase + 1 - across];
      const auto store_to = [&](T* data) CONVBP_TARGET {
        for (int64_t h = 0; h < rows; ++h) {
          T* const row = data + b * result.stride[0] + c * result.stride[1] +
                         (d.h.first + (h0 + h) * d.h.spacing) * result.stride[2];
          if (c + 1 < d.channels)
            prefetch<1>(row + result.stride[1], kLine<T>,
                        divide_up(interleaved->w.count * d.w.spacing, kLine<T>));
          interleave(sums + h * copy.pitch, padded_size, interleaved, across, row);
        }
      };
      if (epilogue.pre_activation) store_to(epilogue.pre_activation);
      if (epilogue.activation.functions)
        for (int64_t i = 0; i < across; ++i)
          for (int64_t h = 0; h < rows; ++h)
            epilogue.activation.apply(sums + i * padded_size + h * copy.pitch,
                                      interleaved[i].w.count);
      store_to(result.data);
    }
  }
}

// Adds what kTaps taps gather from a band to the sums of their lanes.
template <int kTaps, typename T>
CONVBP_TARGET void gather_shifted(const T* copied, const int64_t* places, const T* delta,
                                  int64_t positions, T* sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> acc[kTaps] = {};
  const T* from[kTaps];
#pragma GCC unroll 16
  for (int s = 0; s < kTaps; ++s) from[s] = copied + places[s];
  for (int64_t q = 0; q < positions; q += kLanes) {
    const Vector<T> error = vector_at(delta + q);
#pragma GCC unroll 16
    for (int s = 0; s < kTaps; ++s) acc[s] += error * vector_at(from[s] + q);
  }
#pragma GCC unroll 16
  for (int s = 0; s < kTaps; ++s) vector_at(sums + s * kLanes) += acc[s];
}

template <typename T>
struct GatherShifted {
  template <int kTaps>
  static constexpr auto kFunction = &gather_shifted<kTaps, T>;
};

// The sum of one tap, term by term: where the source is infinite or NaN, the zeros between the rows
// of delta must not meet it.
template <typename T>
CONVBP_TARGET T gather_inside(const Depthwise& d, View<const T> input, View<const T> delta,
                              int64_t c, int64_t y, int64_t x, int64_t b0, int64_t b1) {
  T sum = 0;
  for (int64_t b = b0; b < b1; ++b)
    for (int64_t h = 0; h < d.h.count; ++h)
      for (int64_t t = 0; t < d.w.count; ++t) {
        const int64_t i = h * d.h.step + d.h.offset[y], j = t * d.w.step + d.w.offset[x];
        if (i >= 0 && i < d.h.source_size && j >= 0 && j < d.w.source_size)
          sum += delta.at(b, c, h, t) * input.at(b, c, i, j);
      }
  return sum;
}

template <typename T>
CONVBP_TARGET void nchw_weight_grad(const DepthwiseWeightGrad& p, View<const T> input,
                                    View<const T> delta, T* sums, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Depthwise& d = p.conv;
  const Copy copy(d.h, d.w, d.band);
  const std::vector<int64_t> places = copy.places(d.h, d.w);
  const int64_t taps = d.taps();
  const int64_t size = copy.size() + copy.left + kLanes;
  const Scratch copy_block = Scratch::take<T>(ScratchName::kPatch, size);
  T* const copied = copy_block.template data<T>();
  fill_zero(copied, size);
  const Scratch delta_block = Scratch::take<T>(ScratchName::kDelta, d.band * copy.pitch + kLanes);
  T* const errors = delta_block.template data<T>();
  fill_zero(errors, d.band * copy.pitch + kLanes);
  const Scratch lanes_block = Scratch::take<T>(ScratchName::kPixels, (taps + 1) * kLanes);
  T* const lanes = lanes_block.template data<T>();

  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / d.channels, c = task % d.channels;
    const int64_t b0 = chunk * d.batch / p.chunks, b1 = (chunk + 1) * d.batch / p.chunks;
    fill_zero(lanes, (taps + 1) * kLanes);
    for (int64_t b = b0; b < b1; ++b)
      for (int64_t h0 = 0; h0 < d.h.count; h0 += d.band) {
        const int64_t rows = std::min(d.band, d.h.count - h0), positions = copy.positions(rows);
        const bool more = b + 1 < b1;
        if (d.bands() > 1) fill_zero(copied, size);
        copy_band(copy, &input.at(b, c, 0, 0), input.stride[2], more ? input.stride[0] : 0, h0,
                  copied);
        for (int64_t h = 0; h < rows; ++h) {
          const T* const from = &delta.at(b, c, h0 + h, 0);
          if (more) prefetch<0>(from + delta.stride[0], kLine<T>, divide_up(d.w.count, kLine<T>));
          copy_numbers(from, d.w.count, errors + h * copy.pitch);
        }
        if (rows < d.band) fill_zero(errors + rows * copy.pitch, kLanes);
        for (int64_t tap = 0; tap < taps; tap += kMostGathered) {
          const int64_t gathered = std::min<int64_t>(kMostGathered, taps - tap);
          tile_function<GatherShifted<T>, kMostGathered>(gathered)(copied, &places[tap], errors,
                                                                   positions, lanes + tap * kLanes);
        }
        Vector<T> bias = {};
        for (int64_t q = 0; q < positions; q += kLanes) bias += vector_at(errors + q);
        vector_at(lanes + taps * kLanes) += bias;
      }
    T* const to = sums + chunk * p.sums_per_chunk() + p.place(c, 0);
    for (int64_t tap = 0; tap <= taps; ++tap) {
      T sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += lanes[tap * kLanes + lane];
      if (tap < taps && !all_finite(&sum, 1))
        sum =
            gather_inside(d, input, delta, c, tap / d.w.tap_count(), tap % d.w.tap_count(), b0, b1);
      to[tap] = sum;
    }
  }
}

}  // namespace convbp::depthwise::CONVBP_ISA
