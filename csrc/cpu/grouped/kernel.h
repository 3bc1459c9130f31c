// The grouped kernels. Included once per instruction set, as register_tile.h.
//
// The equations are in cpu/reference/conv2d.h. Lanes are the result channels of a group block:
// several groups, or one. Lane l needs channel k of its own group, so a source pixel is permuted
// once for each k; no lane ever meets another group's numbers. Where the group block is one group,
// the permutation is a broadcast.
//
//   gather conv      a run of pixels in registers; a permuted pixel serves three taps of a row
//   weight gradient  accumulators are three taps of a row by channels of the sum
//
// A tile's patch of one group block fits into the first-level cache; the next patch is fetched
// while this one is computed. The loops alone reach 97 % of peak, with 8 channels a group and
// memory 60 % (Zen 4, 2 cores: 140 GF/s; with 4 channels, where half the time is memory's, 120
// GF/s).

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/grouped/table.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"

namespace convbp::grouped::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

template <typename T>
using Vector = typename Simd<T>::Vector;

// Pixels of a run, and channels of the sum that the weight gradient takes together. Beside these,
// registers hold three taps' filters, a permutation and a pixel.
constexpr int kMostRun = CONVBP_VECTOR_BYTES == 64 ? 16 : 10;
constexpr int kMostDepth = CONVBP_VECTOR_BYTES == 64 ? 4 : 2;

// True where an instruction permutes the lanes of a vector; else a group block is one group.
constexpr bool kPermutes = CONVBP_VECTOR_BYTES >= 32;

// A vector of lane numbers.
template <typename T>
struct LaneNumbers {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Integer Type __attribute__((vector_size(CONVBP_VECTOR_BYTES)));
};
template <typename T>
using Lanes = typename LaneNumbers<T>::Type;

// Finds the lanes of a pixel that hold the first channel of each result lane's group. Result lanes
// that do not exist take any lane.
template <typename T>
CONVBP_TARGET void find_first_channels(const GatherConv& c, Lanes<T>& lanes) {
  for (int64_t l = 0; l < Simd<T>::kLanes; ++l)
    lanes[l] = std::min<int64_t>(l / c.out_channels * c.in_channels, Simd<T>::kLanes - 1);
}

// Channel k of each lane's group, of the pixel at `from`; `lanes` says where they are.
template <bool kBroadcast, typename T>
CONVBP_INLINE Vector<T> channel(const T* from, int64_t k, const Lanes<T>& lanes) {
  if constexpr (kBroadcast)
    return from[k] - Vector<T>{};
  else
    return __builtin_shuffle(vector_at(from), lanes);
}

// Numbers that a pixel takes in the patch: a constant, so that addresses are constants too.
template <bool kBroadcast, typename T>
constexpr int64_t kPitch = kBroadcast ? kMostChannels : Simd<T>::kLanes;

// copy_few() for each of several pixels.
template <typename T>
CONVBP_TARGET void copy_pixels(const T* from, int64_t from_x, T* to, int64_t to_x, int64_t channels,
                               int64_t pixels) {
  if (channels == Simd<T>::kLanes)
    for (int64_t x = 0; x < pixels; ++x) vector_at(to + x * to_x) = vector_at(from + x * from_x);
  else
    for (int64_t x = 0; x < pixels; ++x) copy_few(from + x * from_x, to + x * to_x, channels);
}

// Packs what the tile `e` reads of a group block: [patch row][patch column][channel]. Channels that
// do not exist are left as they are: their results are stored nowhere.
template <typename T>
CONVBP_TARGET void pack_group_block(const Grouped& g, const TileExtent& e, View<const T> source,
                                    int64_t group_block, T* patch) {
  const GatherConv& c = g.gather;
  const int64_t rows = c.h.patch_rows(e.rows), columns = c.w.patch_rows(e.columns);
  const int64_t pitch = g.pitch(), channels = g.groups_of(group_block) * c.in_channels;
  const int64_t i0 = c.h.source_position(0, e.h0), j0 = c.w.source_position(0, e.w0);
  const int64_t left = std::min(columns, std::max<int64_t>(0, -j0));
  const int64_t right = std::max(left, std::min(columns, c.w.source_size - j0));
  for (int64_t row = 0; row < rows; ++row, patch += columns * pitch) {
    const int64_t i = i0 + row;
    if (i < 0 || i >= c.h.source_size || left == right) {
      fill_zero(patch, columns * pitch);
      continue;
    }
    fill_zero(patch, left * pitch);
    fill_zero(patch + right * pitch, (columns - right) * pitch);
    const T* const from =
        &source.at(e.b0, group_block * g.groups_per_block * c.in_channels, i, j0 + left);
    if (source.stride[1] == 1)
      copy_pixels(from, source.stride[3], patch + left * pitch, pitch, channels, right - left);
    else
      copy_row(from, source.stride[1], source.stride[3], channels, right - left,
               patch + left * pitch, int64_t{1}, pitch);
  }
}

// Copies a vector of lanes of a tile's results, [pixel][lane], to or from a tensor.
template <bool kToTensor, typename T, typename Tensor>
CONVBP_TARGET void copy_results(const Grouped& g, const TileExtent& e, int64_t group_block,
                                int64_t vector, Tensor* tensor, const int64_t* stride, T* results) {
  constexpr int kLanes = Simd<T>::kLanes;
  const GatherConv& c = g.gather;
  const int64_t lanes = g.lanes_of(group_block, vector);
  const int64_t down = c.h.spacing * stride[2], across = c.w.spacing * stride[3];
  tensor += g.result_place(e.b0, e.h0, e.w0, group_block, vector, stride);
  // Rows without a gap between them count as one row.
  const bool one = down == e.columns * across;
  const int64_t rows = one ? 1 : e.rows, columns = one ? e.rows * e.columns : e.columns;
  for (int64_t h = 0; h < rows; ++h, tensor += down, results += columns * kLanes) {
    if constexpr (kToTensor) {
      if (stride[1] == 1)
        copy_pixels<T>(results, kLanes, tensor, across, lanes, columns);
      else
        copy_row<T, T>(results, 1, kLanes, lanes, columns, tensor, stride[1], across);
    } else {
      if (stride[1] == 1)
        copy_pixels<T>(tensor, across, results, kLanes, lanes, columns);
      else
        copy_row<T, T>(tensor, stride[1], across, lanes, columns, results, 1, kLanes);
    }
  }
}

// Fetches a row of pixels that will be read or written soon: a group block's runs of memory are too
// short for the processor to foresee the next one.
template <bool kWrite, typename T>
CONVBP_INLINE void prefetch_row(const T* row, int64_t channels, int64_t stride_c, int64_t columns,
                                int64_t stride_x) {
  constexpr int kLevel = kWrite ? 3 : 2;
  if (stride_c == 1)
    prefetch<kWrite, kLevel>(row, stride_x, columns);
  else
    for (int64_t c = 0; c < channels; ++c)
      prefetch<kWrite, kLevel>(row + c * stride_c, kLine<T> * stride_x,
                               divide_up(columns, kLine<T>));
}

// Fetches the `part`-th of `parts` of a tile's source rows.
template <typename T>
CONVBP_INLINE void prefetch_source(const Grouped& g, const TileExtent& e, View<const T> source,
                                   int64_t group_block, int64_t part, int64_t parts) {
  const GatherConv& c = g.gather;
  const int64_t rows = c.h.patch_rows(e.rows);
  const int64_t i0 = c.h.source_position(0, e.h0);
  const int64_t j = std::max<int64_t>(0, c.w.source_position(0, e.w0));
  const int64_t columns = std::min(c.w.patch_rows(e.columns), c.w.source_size - j);
  for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; ++row) {
    const int64_t i = i0 + row;
    if (i >= 0 && i < c.h.source_size && columns > 0)
      prefetch_row<false>(&source.at(e.b0, group_block * g.groups_per_block * c.in_channels, i, j),
                          g.groups_of(group_block) * c.in_channels, source.stride[1], columns,
                          source.stride[3]);
  }
}

// Taps of a filter row, three neighbours or one.
struct TapRun {
  int64_t start;  // its place in the patch
  int64_t tap;    // number of the first tap
  int64_t taps;
};

inline void find_tap_runs(const Grouped& g, int64_t patch_columns, std::vector<TapRun>& runs) {
  const GatherConv& c = g.gather;
  const int64_t count = c.w.tap_count();
  runs.clear();
  for (int64_t r = 0; r < c.h.tap_count(); ++r)
    for (int64_t s = 0; s < count;) {
      const bool three = c.w.position_row() <= 2 && s + 3 <= count &&
                         c.w.tap_row(s + 1) == c.w.tap_row(s) + 1 &&
                         c.w.tap_row(s + 2) == c.w.tap_row(s) + 2;
      const int64_t taps = three ? 3 : 1;
      runs.push_back(
          {(c.h.tap_row(r) * patch_columns + c.w.tap_row(s)) * g.pitch(), r * count + s, taps});
      s += taps;
    }
}

// The sums of kRun neighbouring pixels, which are kStep apart in the patch where taps come in
// threes.
template <int kRun, int kStep, bool kBroadcast, typename T>
CONVBP_TARGET void sum_run(const Grouped& g, const std::vector<TapRun>& runs,
                           const Lanes<T>& first_channels, const T* patch, const T* filters,
                           const T* bias, T* sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t pitch = kPitch<kBroadcast, T>;
  const int64_t depth = g.gather.in_channels;
  const int64_t step = g.gather.w.position_row() * pitch;
  Vector<T> acc[kRun];
#pragma GCC unroll 32
  for (int i = 0; i < kRun; ++i) acc[i] = vector_at(bias);
  for (const TapRun& run : runs) {
    const T* const source = patch + run.start;
    const T* filter = filters + run.tap * depth * kLanes;
    Lanes<T> lanes = first_channels;
    for (int64_t k = 0; k < depth; ++k, ++lanes, filter += kLanes) {
      const T* from = source;
      if (run.taps == 3) {
        const Vector<T> w[3] = {vector_at(filter), vector_at(filter + depth * kLanes),
                                vector_at(filter + 2 * depth * kLanes)};
#pragma GCC unroll 64
        for (int j = 0; j < (kRun - 1) * kStep + 3; ++j, from += pitch) {
          const Vector<T> x = channel<kBroadcast>(from, k, lanes);
#pragma GCC unroll 3
          for (int s = 0; s < 3; ++s)
            if (j >= s && (j - s) % kStep == 0 && (j - s) / kStep < kRun)
              acc[(j - s) / kStep] += x * w[s];
        }
      } else {
        const Vector<T> w = vector_at(filter);
#pragma GCC unroll 32
        for (int i = 0; i < kRun; ++i, from += step)
          acc[i] += channel<kBroadcast>(from, k, lanes) * w;
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRun; ++i) vector_at(sums + i * kLanes) = acc[i];
}

template <int kStep, bool kBroadcast, typename T>
struct SumRun {
  template <int kRun>
  static constexpr auto kFunction = &sum_run<kRun, kStep, kBroadcast, T>;
};

// sum_run of that many pixels, for the gather convolution's step.
template <bool kBroadcast, typename T>
auto sum_run_of(const GatherConv& c, int64_t pixels) {
  constexpr auto counts = std::make_integer_sequence<int, kMostRun>();
  return c.w.position_row() == 2 ? tile_function_of<SumRun<2, kBroadcast, T>>(pixels, counts)
                                 : tile_function_of<SumRun<1, kBroadcast, T>>(pixels, counts);
}

template <bool kBroadcast, typename T>
CONVBP_TARGET void gather_conv_tasks_of(const Grouped& g, View<const T> source, const T* filters,
                                        const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                        int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const GatherConv& c = g.gather;
  const Scratch patch_block =
      Scratch::take<T>(ScratchName::kPatch, patch_size(c, 1, c.h.tile, c.w.tile, g.pitch()));
  const Scratch sums_block = Scratch::take<T>(ScratchName::kPixels, c.h.tile * c.w.tile * kLanes);
  T* const patch = patch_block.template data<T>();
  T* const sums = sums_block.template data<T>();
  Lanes<T> first_channels;
  find_first_channels<T>(c, first_channels);
  std::vector<TapRun> runs;
  // Rows that are stored at a time: one, or of planes some whole cache lines.
  const int64_t rows_at_once = result.stride[1] == 1 ? 1 : divide_up(64, c.w.tile);
  const auto extent = [&](int64_t task) {
    const int64_t tile = task / g.group_blocks();
    return tile_extent(c, tile / c.spatial_tiles(), tile % c.spatial_tiles());
  };

  for (int64_t task = begin; task < end; ++task) {
    const int64_t group_block = task % g.group_blocks(), next = std::min(task + 1, end - 1);
    const TileExtent e = extent(task), e_next = extent(next);
    const int64_t patch_columns = c.w.patch_rows(e.columns);
    pack_group_block(g, e, source, group_block, patch);
    find_tap_runs(g, patch_columns, runs);
    const int64_t runs_per_row = divide_up(e.columns, kMostRun);

    for (int64_t v = 0; v < g.vectors(); ++v) {
      const int64_t lanes = g.lanes_of(group_block, v);
      T bias[kLanes] = {};
      if (epilogue.bias)
        copy_few(epilogue.bias + group_block * g.groups_per_block * c.out_channels + v * kLanes,
                 bias, lanes);
      for (TileExtent part = e; part.h0 < e.h0 + e.rows; part.h0 += part.rows) {
        part.rows = std::min(rows_at_once, e.h0 + e.rows - part.h0);
        const T* const row =
            result.data + g.result_place(part.b0, part.h0, part.w0, group_block, v, result.stride);
        for (int64_t h = 0; h < part.rows; ++h) {
          prefetch_row<true>(row + h * c.h.spacing * result.stride[2], lanes, result.stride[1],
                             e.columns, c.w.spacing * result.stride[3]);
          const int64_t in_tile = part.h0 - e.h0 + h;
          if (v == 0) prefetch_source(g, e_next, source, next % g.group_blocks(), in_tile, e.rows);
          for (int64_t n = 0; n < runs_per_row; ++n) {
            const int64_t w = n * e.columns / runs_per_row;
            sum_run_of<kBroadcast, T>(c, (n + 1) * e.columns / runs_per_row - w)(
                g, runs, first_channels,
                patch + (in_tile * c.h.position_row() * patch_columns + w * c.w.position_row()) *
                            g.pitch(),
                filters + (group_block * g.vectors() + v) * g.filters_size(), bias,
                sums + (h * e.columns + w) * kLanes);
          }
        }
        if (epilogue.pre_activation)
          copy_results<true>(g, part, group_block, v, epilogue.pre_activation, result.stride, sums);
        epilogue.activation.apply(sums, part.pixels() * kLanes);
        copy_results<true>(g, part, group_block, v, result.data, result.stride, sums);
      }
    }
  }
}

template <typename T>
CONVBP_TARGET void gather_conv_tasks(const Grouped& g, View<const T> source, const T* filters,
                                     const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                     int64_t end) {
  if (g.groups_per_block == 1)
    gather_conv_tasks_of<true>(g, source, filters, epilogue, result, begin, end);
  else if constexpr (kPermutes)
    gather_conv_tasks_of<false>(g, source, filters, epilogue, result, begin, end);
}

// Adds a tile to the sums of kTaps neighbouring taps and kDepth channels.
template <int kDepth, int kTaps, bool kBroadcast, typename T>
CONVBP_TARGET void add_to_taps(const Grouped& g, const TileExtent& e,
                               const Lanes<T>& first_channels, const T* patch, int64_t k0,
                               const T* delta, T* sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t pitch = kPitch<kBroadcast, T>;
  const GatherConv& c = g.gather;
  const int64_t depth = c.in_channels;
  const int64_t step = c.w.position_row() * pitch;
  const int64_t line = c.h.position_row() * c.w.patch_rows(e.columns) * pitch;
  const Lanes<T> first = first_channels + static_cast<typename LaneNumbers<T>::Integer>(k0);
  Vector<T> acc[kTaps][kDepth] = {};
  for (int64_t h = 0; h < e.rows; ++h, patch += line, delta += e.columns * kLanes) {
    if (kTaps > 1 && step == pitch) {
      // A pixel meets the deltas of as many positions as there are taps.
      const auto column = [&](int64_t j, bool inside) CONVBP_TARGET {
        Vector<T> x[kDepth];
#pragma GCC unroll 8
        for (int k = 0; k < kDepth; ++k)
          x[k] = channel<kBroadcast>(patch + j * pitch, k0 + k, first + k);
#pragma GCC unroll 3
        for (int s = 0; s < kTaps; ++s) {
          if (!inside && (j < s || j - s >= e.columns)) continue;
          const Vector<T> d = vector_at(delta + (j - s) * kLanes);
#pragma GCC unroll 8
          for (int k = 0; k < kDepth; ++k) acc[s][k] += x[k] * d;
        }
      };
      const int64_t inside = std::min<int64_t>(kTaps - 1, e.columns);
      for (int64_t j = 0; j < inside; ++j) column(j, false);
      for (int64_t j = inside; j < e.columns; ++j) column(j, true);
      for (int64_t j = e.columns; j < e.columns + kTaps - 1; ++j) column(j, false);
    } else {
      for (int64_t i = 0; i < e.columns; ++i) {
        const Vector<T> d = vector_at(delta + i * kLanes);
#pragma GCC unroll 3
        for (int s = 0; s < kTaps; ++s)
#pragma GCC unroll 8
          for (int k = 0; k < kDepth; ++k)
            acc[s][k] += channel<kBroadcast>(patch + i * step + s * pitch, k0 + k, first + k) * d;
      }
    }
  }
#pragma GCC unroll 3
  for (int s = 0; s < kTaps; ++s)
#pragma GCC unroll 8
    for (int k = 0; k < kDepth; ++k) vector_at(sums + (s * depth + k0 + k) * kLanes) += acc[s][k];
}

template <int kTaps, bool kBroadcast, typename T>
struct AddToTaps {
  template <int kDepth>
  static constexpr auto kFunction = &add_to_taps<kDepth, kTaps, kBroadcast, T>;
};

template <bool kBroadcast, typename T>
CONVBP_TARGET void weight_grad_tasks_of(const Grouped& g, View<const T> input, View<const T> delta,
                                        T* sums, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr auto depths = std::make_integer_sequence<int, kMostDepth>();
  const GatherConv& c = g.gather;
  const Scratch patch_block =
      Scratch::take<T>(ScratchName::kPatch, patch_size(c, 1, c.h.tile, c.w.tile, g.pitch()));
  const Scratch delta_block = Scratch::take<T>(ScratchName::kDelta, c.h.tile * c.w.tile * kLanes);
  T* const patch = patch_block.template data<T>();
  T* const packed_delta = delta_block.template data<T>();
  Lanes<T> first_channels;
  find_first_channels<T>(c, first_channels);
  std::vector<TapRun> runs;
  const auto extent = [&](int64_t tile) {
    return tile_extent(c, tile / c.spatial_tiles(), tile % c.spatial_tiles());
  };

  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / g.group_block_tasks();
    const int64_t group_block0 = task % g.group_block_tasks() * g.group_blocks_per_task;
    const int64_t group_block1 = std::min(group_block0 + g.group_blocks_per_task, g.group_blocks());
    const auto sums_of = [&](int64_t group_block, int64_t v) {
      return sums + chunk * g.sums_per_chunk() +
             (group_block * g.vectors() + v) * g.sums_per_vector();
    };
    fill_zero(sums_of(group_block0, 0), sums_of(group_block1, 0) - sums_of(group_block0, 0));
    const int64_t last_tile = (chunk + 1) * g.tiles() / g.chunks;
    for (int64_t tile = chunk * g.tiles() / g.chunks; tile < last_tile; ++tile)
      for (int64_t group_block = group_block0; group_block < group_block1; ++group_block) {
        const bool same_tile = group_block + 1 < group_block1;
        const int64_t next = same_tile ? group_block + 1 : group_block0;
        const TileExtent e = extent(tile);
        const TileExtent e_next = extent(same_tile ? tile : std::min(tile + 1, last_tile - 1));
        find_tap_runs(g, c.w.patch_rows(e.columns), runs);
        pack_group_block(g, e, input, group_block, patch);
        for (int64_t v = 0; v < g.vectors(); ++v) {
          copy_results<false>(g, e, group_block, v, delta.data, delta.stride, packed_delta);
          T* const to = sums_of(group_block, v);
          const int64_t parts = static_cast<int64_t>(runs.size());
          for (int64_t n = 0; n < parts; ++n) {
            prefetch_source(g, e_next, input, next, n, parts);
            const T* const row =
                delta.data + g.result_place(e_next.b0, e_next.h0, e_next.w0, next, v, delta.stride);
            for (int64_t h = n * e_next.rows / parts; h < (n + 1) * e_next.rows / parts; ++h)
              prefetch_row<false>(row + h * delta.stride[2], g.lanes_of(next, v), delta.stride[1],
                                  e_next.columns, delta.stride[3]);
            const TapRun& run = runs[n];
            for (int64_t k = 0; k < c.in_channels; k += kMostDepth) {
              const int64_t depth = std::min<int64_t>(kMostDepth, c.in_channels - k);
              (run.taps == 3 ? tile_function_of<AddToTaps<3, kBroadcast, T>>(depth, depths)
                             : tile_function_of<AddToTaps<1, kBroadcast, T>>(depth, depths))(
                  g, e, first_channels, patch + run.start, k, packed_delta,
                  to + run.tap * c.in_channels * kLanes);
            }
          }
          Vector<T> bias = {};
          for (int64_t i = 0; i < e.pixels(); ++i) bias += vector_at(packed_delta + i * kLanes);
          vector_at(to + g.filters_size()) += bias;
        }
      }
  }
}

template <typename T>
CONVBP_TARGET void weight_grad_tasks(const Grouped& g, View<const T> input, View<const T> delta,
                                     T* sums, int64_t begin, int64_t end) {
  if (g.groups_per_block == 1)
    weight_grad_tasks_of<true>(g, input, delta, sums, begin, end);
  else if constexpr (kPermutes)
    weight_grad_tasks_of<false>(g, input, delta, sums, begin, end);
}

template <typename T>
KernelTable<T> kernels() {
  return {CONVBP_VECTOR_BYTES, kPermutes, &gather_conv_tasks<T>, &weight_grad_tasks<T>};
}

template KernelTable<float> kernels();
template KernelTable<double> kernels();

}  // namespace convbp::grouped::CONVBP_ISA
