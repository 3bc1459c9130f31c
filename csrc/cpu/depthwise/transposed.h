// Depthwise convolutions of contiguous tensors, a vector of channels at a time: transposed to
// channels last, computed, and transposed back. Part of kernel.h. Two cases need it: filters of
// many taps, which a vector of pixels would load from any address, two cache lines each; and images
// that are smaller than vectors.
//
// Reached (Zen 4, 2 cores, copying 44 GB/s): 3x3 of 16x960x7x7, 19 to 21 GB/s of input and output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/table.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"

namespace convbp::depthwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

// Calls body(first row, pixels) for the runs of neighbouring pixels in `rows` rows: each row, or,
// where rows are neighbours too, all of them.
template <typename Body>
CONVBP_INLINE void runs_of_pixels(int64_t rows, int64_t width, int64_t row_stride,
                                  const Body& body) {
  if (row_stride == width)
    body(0, rows * width);
  else
    for (int64_t row = 0; row < rows; ++row) body(row, width);
}

// Transposes a square of numbers: to[j * to_step + i] = from[i * from_step + j], for j >= skip.
// Memory `ahead` of the square, which will be read or written next, is fetched.
template <int kWrite>
CONVBP_INLINE void transpose_square(const float* from, int64_t from_step, float* to,
                                    int64_t to_step, int64_t skip, int64_t ahead) {
  constexpr int kLanes = Simd<float>::kLanes;
  Vector<float> row[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) row[i] = vector_at(from + i * from_step);
  prefetch<kWrite, 2>(kWrite ? to + ahead : from + ahead, kWrite ? to_step : from_step, kLanes);
  swap_all_lanes<kLanes / 2>(row);
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j)
    if (j >= skip) vector_at(to + j * to_step) = row[j];
}

// Transposes `pixels` neighbouring pixels of kLanes channels: [pixel][channel]. The last square
// ends with the last pixel.
template <typename T>
CONVBP_INLINE void transpose_run(const T* from, int64_t channel_stride, int64_t pixels, T* to) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  if constexpr (std::is_same_v<T, float>)
    if (pixels >= kLanes) {
      for (int64_t p = 0; p < pixels; p += kLanes) {
        const int64_t x = std::min(p, pixels - kLanes);
        transpose_square<0>(from + x, channel_stride, to + x * kLanes, kLanes, 0,
                            kLanes * channel_stride);
      }
      return;
    }
  pack_row(from, channel_stride, 1, kLanes, pixels, to, kLanes);
}

// Transposes back, for the channels from `skip` on.
template <typename T>
CONVBP_INLINE void transpose_run_back(const T* from, int64_t pixels, int64_t skip, T* to,
                                      int64_t channel_stride) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  if constexpr (std::is_same_v<T, float>)
    if (pixels >= kLanes) {
      for (int64_t p = 0; p < pixels; p += kLanes) {
        const int64_t x = std::min(p, pixels - kLanes);
        transpose_square<1>(from + x * kLanes, kLanes, to + x, channel_stride, skip,
                            kLanes * channel_stride);
      }
      return;
    }
  unpack_row(from + skip, kLanes, kLanes - skip, pixels, to + skip * channel_stride, channel_stride,
             1);
}

// Transposes rows [row0, row1) of kLanes channels of an image: [row][column][channel].
template <typename T>
CONVBP_TARGET void transpose_rows(View<const T> source, int64_t b, int64_t channel, int64_t row0,
                                  int64_t row1, int64_t width, T* to) {
  const T* const from = &source.at(b, channel, row0, 0);
  runs_of_pixels(row1 - row0, width, source.stride[2],
                 [&](int64_t row, int64_t pixels) CONVBP_TARGET {
                   transpose_run(from + row * source.stride[2], source.stride[1], pixels,
                                 to + row * width * Simd<T>::kLanes);
                 });
}

// `phases` are those of one vector of channels.
template <typename T>
CONVBP_TARGET void transposed_tasks(const std::vector<Depthwise>& phases, int64_t channels,
                                    View<const T> source, const T* filters,
                                    const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                    int64_t end) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const Depthwise& first = phases.front();
  const int64_t bands = first.bands(), band = first.band, blocks = divide_up(channels, kLanes);
  int64_t reach_up = 0, reach_down = 0, columns = 0, filters_per_block = 0;
  for (const Depthwise& d : phases) {
    for (const int64_t offset : d.h.offset) {
      reach_up = std::min(reach_up, offset);
      reach_down = std::max(reach_down, offset);
    }
    if (d.w.count) columns = std::max(columns, d.w.first + (d.w.count - 1) * d.w.spacing + 1);
    filters_per_block += d.taps() * kLanes;
  }
  const int64_t width = first.w.source_size, row_size = width * kLanes;
  const int64_t most_rows = (band - 1) * first.h.step + reach_down - reach_up + 1;
  const Scratch patch_block = Scratch::take<T>(ScratchName::kPatch, most_rows * row_size);
  const Scratch result_block =
      Scratch::take<T>(ScratchName::kPixels, band * first.h.spacing * columns * kLanes);
  T* const patch = patch_block.template data<T>();
  T* const transposed = result_block.template data<T>();
  const View<T> to{transposed, {0, 1, columns * kLanes, kLanes}};
  std::vector<TapRow<T>> rows;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t h0 = task % bands * band, block = task / bands % blocks;
    const int64_t b = task / bands / blocks;
    // The last vector of channels ends with the last channel, and stores those that are its own.
    const int64_t channel = std::min(block * kLanes, channels - kLanes);
    const int64_t skip = block * kLanes - channel;
    const int64_t h1 = std::min(h0 + band, first.h.count);
    const int64_t row0 = std::max<int64_t>(0, h0 * first.h.step + reach_up);
    const int64_t row1 = std::min((h1 - 1) * first.h.step + reach_down + 1, first.h.source_size);
    transpose_rows(source, b, channel, row0, row1, width, patch);
    Epilogue<T> bias;
    if (epilogue.bias) bias.bias = epilogue.bias + channel;

    const T* phase_filters = filters + block * filters_per_block;
    int64_t results = 0;  // rows
    for (const Depthwise& d : phases) {
      const auto rows_of_results = function_for<ChannelsLastRows<T>>(d.w);
      const int64_t end = std::min(h1, d.h.count);
      for (int64_t h = h0; h < end; h += kRowsTogether) {
        const int64_t count = std::min<int64_t>(kRowsTogether, end - h);
        meet_rows(
            d.h, h, count, [&](int64_t i) { return patch + (i - row0) * row_size; },
            [&](int64_t tap) { return phase_filters + tap * d.w.tap_count() * kLanes; }, rows);
        const int64_t at = d.h.first + (h - h0) * d.h.spacing;
        results = std::max(results, at + (count - 1) * d.h.spacing + 1);
        rows_of_results(d, count, rows, NextRows<T>(), kLanes, bias,
                        at * to.stride[2] + d.w.first * kLanes, to);
      }
      phase_filters += d.taps() * kLanes;
    }

    const auto store_to = [&](T* data) CONVBP_TARGET {
      T* const at = data + b * result.stride[0] + channel * result.stride[1] +
                    h0 * first.h.spacing * result.stride[2];
      runs_of_pixels(results, columns, result.stride[2],
                     [&](int64_t row, int64_t pixels) CONVBP_TARGET {
                       transpose_run_back(transposed + row * to.stride[2], pixels, skip,
                                          at + row * result.stride[2], result.stride[1]);
                     });
    };
    if (epilogue.pre_activation) store_to(epilogue.pre_activation);
    epilogue.activation.apply(transposed, results * to.stride[2]);
    store_to(result.data);
  }
}

// The weight gradient, with its sums in the order of channels_last.
template <typename T>
CONVBP_TARGET void transposed_weight_grad(const DepthwiseWeightGrad& p, View<const T> input,
                                          View<const T> delta, T* sums, int64_t begin,
                                          int64_t end) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  Depthwise d = p.conv;
  d.channels = kLanes;
  const auto add = function_for<AddRows<T>>(d.w);
  const int64_t padded_size = p.padded_size(), row_size = d.w.source_size * kLanes;
  const int64_t delta_row = d.w.count * kLanes;
  const int64_t reach = d.h.offset.empty() ? 0 : d.h.dense_rows(d.band);
  const Scratch patch_block = Scratch::take<T>(ScratchName::kPatch, reach * row_size);
  const Scratch delta_block = Scratch::take<T>(ScratchName::kDelta, d.band * delta_row);
  T* const patch = patch_block.template data<T>();
  T* const own = delta_block.template data<T>();
  std::vector<TapRow<T, T>> rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / p.parts(), lane0 = task % p.parts() * kLanes;
    const int64_t channel = std::min(lane0, p.conv.channels - kLanes);
    T* const to = sums + chunk * p.sums_per_chunk() + lane0;
    for (int64_t tap = 0; tap <= d.taps(); ++tap) std::fill_n(to + tap * padded_size, kLanes, T(0));
    for (int64_t b = chunk * d.batch / p.chunks; b < (chunk + 1) * d.batch / p.chunks; ++b)
      for (int64_t h0 = 0; h0 < d.h.count; h0 += d.band) {
        const int64_t h1 = std::min(h0 + d.band, d.h.count);
        const int64_t top = h0 * d.h.step + d.h.min_offset();
        const int64_t row0 = std::max<int64_t>(0, top);
        const int64_t row1 = std::min(top + (reach ? d.h.dense_rows(h1 - h0) : 0), d.h.source_size);
        transpose_rows(input, b, channel, row0, row1, d.w.source_size, patch);
        transpose_rows(delta, b, channel, h0, h1, d.w.count, own);
        for (int64_t h = h0; h < h1; h += kRowsTogether) {
          const int64_t count = std::min<int64_t>(kRowsTogether, h1 - h);
          meet_rows(
              d.h, h, count, [&](int64_t i) { return patch + (i - row0) * row_size; },
              [&](int64_t tap) { return to + tap * d.w.tap_count() * padded_size; }, rows);
          add(d, count, rows, NextRows<T>(), kLanes, own + (h - h0) * delta_row, delta_row, kLanes,
              0, kLanes, padded_size, to + d.taps() * padded_size);
        }
      }
  }
}

}  // namespace convbp::depthwise::CONVBP_ISA
