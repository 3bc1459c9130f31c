// The gather convolution for few channels: an NCHW patch, pixels in the vector lanes. Part of
// kernel.h.
//
//   patch          [channel][row modulo step][column modulo step][row][column], zeros at the edges,
//                  each plane with room for a vector after it
//   register tile  kOut result channels x nchw_vectors(kOut) vectors of neighbouring pixels
//   inner loop     a vector load for each vector, a broadcast weight for each channel
//
// Reached (Zen 4, 2 cores, 240 GF/s): input gradient of 7x7 with stride 2 170 GF/s, forward 190.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/types.h"
#include "cpu/direct/plan.h"
#include "cpu/direct/table.h"
#include "cpu/epilogue.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"

namespace convbp::direct::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

constexpr int kMostNchwChannels = 2 * kRows / 3;

// Vectors of pixels a channel: accumulators, source vectors and a weight fill the registers.
constexpr int nchw_vectors(int out) {
  return std::min(8, ((CONVBP_VECTOR_BYTES == 64 ? 32 : 16) - 1) / (out + 1));
}

// A tile's patch in numbers.
struct NchwPatch {
  const GatherConv& c;
  int64_t rows, columns;  // rows and columns of one remainder modulo the step
  NchwPatch(const GatherConv& c, int64_t tile_rows, int64_t tile_columns)
      : c(c), rows(length(c.h, tile_rows)), columns(length(c.w, tile_columns)) {}
  static int64_t length(const ConvAxis& a, int64_t positions) {
    return a.offset.empty() ? positions : positions + (a.offset.back() - a.offset.front()) / a.step;
  }
  int64_t plane() const { return rows * columns + CONVBP_VECTOR_BYTES / 4; }
  int64_t channel() const { return c.h.step * c.w.step * plane(); }
  // The place of source position (h, w) for position (0, 0) of the tile, counted from the first
  // tap's.
  int64_t place(int64_t h, int64_t w) const {
    return (h % c.h.step * c.w.step + w % c.w.step) * plane() + h / c.h.step * columns +
           w / c.w.step;
  }
};

// Writes zeros, mostly few: a whole vector at once, whose excess is written over later.
template <typename Acc>
CONVBP_INLINE void zero_edge(Acc* to, int64_t count) {
  if (count <= 0) return;
  vector_at(to) = typename Simd<Acc>::Vector{};
  if (count > Simd<Acc>::kLanes) fill_zero(to, count);
}

// Packs channels [k0, k0 + channels) of the patch.
template <typename T, typename Acc>
CONVBP_TARGET void pack_nchw_patch(const NchwPatch& p, const TileExtent& e, int64_t b,
                                   View<const T> source, int64_t channel0, int64_t k0,
                                   int64_t channels, Acc* patch) {
  const GatherConv& c = p.c;
  const int64_t patch_channel = p.channel(), h_step = c.h.step, w_step = c.w.step;
  patch += k0 * patch_channel;
  for (int64_t w = 0; w < w_step; ++w) {
    // Columns [first, last) of this remainder are inside.
    const int64_t j = e.w0 * w_step + c.w.min_offset() + w;
    const int64_t first = std::min(p.columns, j < 0 ? divide_up(-j, w_step) : 0);
    const int64_t inside = c.w.source_size > j ? divide_up(c.w.source_size - j, w_step) : 0;
    const int64_t last = std::max(first, std::min(p.columns, inside));
    for (int64_t h = 0; h < h_step; ++h) {
      Acc* to = patch + p.place(h, w);
      int64_t i = e.h0 * h_step + c.h.min_offset() + h;
      for (int64_t row = 0; row < p.rows; ++row, i += h_step, to += p.columns) {
        const bool copied = i >= 0 && i < c.h.source_size && first < last;
        for (int64_t k = 0; k < channels; ++k)
          zero_edge(to + k * patch_channel, copied ? first : p.columns);
        if (!copied) continue;
        copy_row(&source.at(b, channel0 + k0, i, j + first * w_step), source.stride[1],
                 w_step * source.stride[3], channels, last - first, to + first, patch_channel,
                 int64_t{1});
        for (int64_t k = 0; k < channels; ++k)
          zero_edge(to + k * patch_channel + last, p.columns - last);
      }
    }
  }
}

// The sums of kOut channels over all taps, with bias: one register tile, to[v][i * to_channel + :].
template <int kOut, typename Acc, int kVectors>
CONVBP_TARGET void sum_nchw(const std::vector<int64_t>& taps, const Acc* const (&from)[kVectors],
                            int64_t patch_channel, int64_t channels, const Acc* weight,
                            const Acc* bias, Acc* const (&to)[kVectors], int64_t to_channel) {
  using Vector = typename Simd<Acc>::Vector;
  Vector acc[kOut][kVectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[i][v] += bias[i];
  int64_t channel = 0;
  for (int64_t k = 0; k < channels; ++k, channel += patch_channel)
    for (const int64_t tap : taps) {
      Vector x[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) x[v] = vector_at(from[v] + channel + tap);
#pragma GCC unroll 16
      for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) acc[i][v] += weight[i] * x[v];
      weight += kOut;
    }
#pragma GCC unroll 16
  for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) vector_at(to[v] + i * to_channel) = acc[i][v];
}

template <typename T, typename Acc, int kOut>
CONVBP_TARGET void nchw_tasks(const DirectConv& conv, View<const T> source, const void* packed,
                              const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                              int64_t end) {
  constexpr int kLanes = Simd<Acc>::kLanes, kVectors = nchw_vectors(kOut);
  const GatherConv& c = conv.gather;
  const NchwPatch most(c, c.h.tile, c.w.tile);
  const Scratch patch_block =
      Scratch::take<Acc>(ScratchName::kPatch, c.in_channels * most.channel());
  Acc* const patch = patch_block.template data<Acc>();
  const int64_t blocks_per_task = divide_up(c.blocks(), c.oc_split);
  std::vector<int64_t> taps;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % c.oc_split, pixel_task = task / c.oc_split;
    const int64_t g = pixel_task / c.spatial_tiles() % c.groups;
    const TileExtent e =
        tile_extent(c, pixel_task / c.spatial_tiles() / c.groups, pixel_task % c.spatial_tiles());
    const NchwPatch p(c, e.rows, e.columns);
    for (int64_t b = e.b0; b < e.b0 + e.images; ++b) {
      // Channels are packed in the order in which the source has them in memory.
      const int64_t together = source.stride[1] == 1 ? c.in_channels : 1;
      for (int64_t k = 0; k < c.in_channels; k += together)
        pack_nchw_patch(p, e, b, source, g * c.in_channels, k, together, patch);
      const int64_t last_block = std::min(c.blocks(), (split + 1) * blocks_per_task);
      for (int64_t block = split * blocks_per_task; block < last_block; ++block) {
        const Acc* weight =
            static_cast<const Acc*>(packed) + (g * c.blocks() + block) * conv.packed_block_size();
        const int64_t channel0 = g * c.out_channels + block * kOut;
        const int64_t channels = std::min<int64_t>(kOut, c.out_channels - block * kOut);
        Acc bias[kOut] = {};
        if (epilogue.bias)
          for (int64_t i = 0; i < channels; ++i) bias[i] = load<Acc>(epilogue.bias[channel0 + i]);

        for (int64_t phase = 0; phase < conv.phases(); ++phase) {
          const ConvAxis &h = conv.h_phase(phase), &w = conv.w_phase(phase);
          const int64_t rows = Phases::positions(h, e.h0, e.rows);
          const int64_t columns = Phases::positions(w, e.w0, e.columns);
          taps.clear();
          for (const int64_t r : h.offset)
            for (const int64_t s : w.offset)
              taps.push_back(p.place(r - c.h.min_offset(), s - c.w.min_offset()));
          const int64_t row_step = h.spacing * result.stride[2];
          const int64_t column_step = w.spacing * result.stride[3];
          const int64_t start = b * result.stride[0] + channel0 * result.stride[1] +
                                (h.first + e.h0 * h.spacing) * result.stride[2] +
                                (w.first + e.w0 * w.spacing) * result.stride[3];
          const bool in_place = std::is_same_v<T, Acc> && column_step == 1 && channels == kOut &&
                                columns >= kLanes && !epilogue.pre_activation &&
                                !epilogue.activation.functions;
          // The last vector of a row ends with it: some pixels are computed twice.
          const int64_t width = std::min<int64_t>(kLanes, columns);
          const int64_t across = divide_up(columns, kLanes);
          for (int64_t first = 0; first < rows * across; first += kVectors) {
            const Acc* from[kVectors];
            int64_t at[kVectors];
            Acc sums[kOut][kVectors * kLanes];
            Acc* to[kVectors];
            for (int v = 0; v < kVectors; ++v) {
              const int64_t vector = std::min(first + v, rows * across - 1);
              const int64_t row = vector / across;
              const int64_t column = std::min(vector % across * kLanes, columns - width);
              from[v] = patch + row * p.columns + column;
              at[v] = start + row * row_step + column * column_step;
              to[v] = &sums[0][v * kLanes];
              if constexpr (std::is_same_v<T, Acc>)
                if (in_place) to[v] = result.data + at[v];
            }
            sum_nchw<kOut>(taps, from, p.channel(), c.in_channels, weight, bias, to,
                           in_place ? result.stride[1] : kVectors * kLanes);
            if (in_place) continue;
            const auto store_to = [&](T* result_data) CONVBP_TARGET {
              for (int64_t i = 0; i < channels; ++i)
                for (int v = 0; v < kVectors; ++v) {
                  T* const to = result_data + at[v] + i * result.stride[1];
                  const Acc* const sum = &sums[i][v * kLanes];
                  if constexpr (std::is_same_v<T, Acc>)
                    if (column_step == 1 && width == kLanes) {
                      vector_at(to) = vector_at(sum);
                      continue;
                    }
                  for (int64_t j = 0; j < width; ++j) to[j * column_step] = store<T>(sum[j]);
                }
            };
            if (epilogue.pre_activation) store_to(epilogue.pre_activation);
            epilogue.activation.apply(&sums[0][0], kOut * kVectors * kLanes);
            store_to(result.data);
          }
          weight += conv.packed_phase_size(phase);
        }
      }
    }
  }
}

template <typename T, typename Acc>
typename KernelTable<T, Acc>::GatherConvTasks nchw_tasks_of(int64_t block) {
  switch (block) {
    case 1:
      return &nchw_tasks<T, Acc, 1>;
    case 2:
      return &nchw_tasks<T, Acc, 2>;
    case 3:
      return &nchw_tasks<T, Acc, 3>;
    default:
      static_assert(kMostNchwChannels == 8 || kMostNchwChannels == 4);
      return block == 4 ? &nchw_tasks<T, Acc, 4> : &nchw_tasks<T, Acc, kMostNchwChannels>;
  }
}

}  // namespace convbp::direct::CONVBP_ISA
