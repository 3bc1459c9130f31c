// The grouped kernels. Included once per instruction set, as register_tile.h.
//
// What is computed stands in plain.h. Lanes are the result channels of a bundle: several groups, or
// one. Lane l needs channel k of its own group, so a source pixel is permuted, once for each k, to
// have it there (no lane ever meets another group's numbers); where the bundle is one group,
// that is a broadcast.
//
//   tap convolution  a run of pixels in registers; a permuted pixel serves three taps of a row
//   weight gradient  accumulators are three taps of a row by channels of the sum

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "element.h"
#include "grouped_table.h"
#include "patch.h"
#include "register_tile.h"
#include "scratch.h"

namespace convbp::grouped::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

template <typename Acc>
using Vector = typename Simd<Acc>::Vector;

// Pixels of a run, and channels of the sum that the weight gradient takes together: beside them,
// registers hold three taps' filters, a permutation and a pixel.
constexpr int kMostRun = CONVBP_VECTOR_BYTES == 64 ? 16 : 10;
constexpr int kMostDepth = 4;

// Lane numbers.
template <typename Acc>
struct Lanes {
  using Integer = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  typedef Integer Type __attribute__((vector_size(CONVBP_VECTOR_BYTES)));
};

// Lane l of the result takes lane first[l] of a pixel for the first channel of its group.
template <typename Acc>
CONVBP_INLINE typename Lanes<Acc>::Type first_channels(const TapConv& c) {
  typename Lanes<Acc>::Type first = {};
  for (int64_t l = 0; l < Simd<Acc>::kLanes; ++l)
    first[l] = std::min<int64_t>(l / c.lanes * c.reduce, Simd<Acc>::kLanes - 1);
  return first;
}

// Channel k of each lane's group, of the pixel at `from`.
template <bool kBroadcast, typename Acc>
CONVBP_INLINE Vector<Acc> channel(const Acc* from, int64_t k, typename Lanes<Acc>::Type lanes) {
  if constexpr (kBroadcast)
    return from[k] - Vector<Acc>{};
  else
    return __builtin_shuffle(vector_at(from), lanes);
}

// Taps of a filter row, three neighbours or one.
struct TapRun {
  int64_t start;  // in the patch
  int64_t tap;    // number of the first
  int64_t taps;
};

inline void find_tap_runs(const Grouped& g, int64_t patch_columns, std::vector<TapRun>& runs) {
  const TapConv& c = g.tap;
  const int64_t count = c.w.tap_count();
  runs.clear();
  for (int64_t r = 0; r < c.h.tap_count(); ++r)
    for (int64_t s = 0; s < count;) {
      const bool three = c.w.position_row() <= 2 && s + 3 <= count &&
                         c.w.tap_row(s + 1) == c.w.tap_row(s) + 1 &&
                         c.w.tap_row(s + 2) == c.w.tap_row(s) + 2;
      const int64_t taps = three ? 3 : 1;
      runs.push_back({(c.h.tap_row(r) * patch_columns + c.w.tap_row(s)) * g.pitch(),
                      r * count + s, taps});
      s += taps;
    }
}

// The sums of kRun neighbouring pixels, kStep apart in the patch where taps come in threes.
template <int kRun, int kStep, bool kBroadcast, typename Acc>
CONVBP_TARGET void sum_run(const Grouped& g, const std::vector<TapRun>& runs, const Acc* patch,
                           const Acc* filters, const Acc* bias, Acc* sums) {
  constexpr int kLanes = Simd<Acc>::kLanes;
  const int64_t depth = g.tap.reduce, pitch = kBroadcast ? depth : kLanes;
  const int64_t step = g.tap.w.position_row() * pitch;
  const auto first = first_channels<Acc>(g.tap);
  Vector<Acc> acc[kRun];
#pragma GCC unroll 32
  for (int i = 0; i < kRun; ++i) acc[i] = vector_at(bias);
  for (const TapRun& run : runs) {
    const Acc* const source = patch + run.start;
    const Acc* filter = filters + run.tap * depth * kLanes;
    auto lanes = first;
    for (int64_t k = 0; k < depth; ++k, ++lanes, filter += kLanes) {
      const Acc* from = source;
      if (run.taps == 3) {
        const Vector<Acc> w[3] = {vector_at(filter), vector_at(filter + depth * kLanes),
                                  vector_at(filter + 2 * depth * kLanes)};
#pragma GCC unroll 64
        for (int j = 0; j < (kRun - 1) * kStep + 3; ++j, from += pitch) {
          const Vector<Acc> x = channel<kBroadcast>(from, k, lanes);
#pragma GCC unroll 3
          for (int s = 0; s < 3; ++s)
            if (j >= s && (j - s) % kStep == 0 && (j - s) / kStep < kRun)
              acc[(j - s) / kStep] += x * w[s];
        }
      } else {
        const Vector<Acc> w = vector_at(filter);
#pragma GCC unroll 32
        for (int i = 0; i < kRun; ++i, from += step) acc[i] += channel<kBroadcast>(from, k, lanes) * w;
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRun; ++i) vector_at(sums + i * kLanes) = acc[i];
}

template <int kStep, bool kBroadcast, typename Acc>
struct SumRun {
  template <int kRun>
  static constexpr auto kFunction = &sum_run<kRun, kStep, kBroadcast, Acc>;
};

// sum_run of that many pixels, for the tap convolution's step.
template <bool kBroadcast, typename Acc>
auto sum_run_of(const TapConv& c, int64_t pixels) {
  constexpr auto counts = std::make_integer_sequence<int, kMostRun>();
  return c.w.position_row() == 2 ? tile_function_of<SumRun<2, kBroadcast, Acc>>(pixels, counts)
                                 : tile_function_of<SumRun<1, kBroadcast, Acc>>(pixels, counts);
}

// Sums of the tile's pixels, [pixel][lane], to where they belong.
template <typename T, typename Acc>
CONVBP_TARGET void store_sums(const TapConv& c, const TileExtent& e, const Acc* sums, int64_t lanes,
                              int64_t channel0, T* to, const int64_t* stride) {
  constexpr int kLanes = Simd<Acc>::kLanes;
  to += e.b0 * stride[0] + channel0 * stride[1] + (c.h.first + e.h0 * c.h.spacing) * stride[2] +
        (c.w.first + e.w0 * c.w.spacing) * stride[3];
  const int64_t down = c.h.spacing * stride[2], across = c.w.spacing * stride[3];
  // Rows that lie one behind the other are one.
  const bool one = down == e.columns * across;
  const int64_t rows = one ? 1 : e.rows, columns = one ? e.rows * e.columns : e.columns;
  for (int64_t h = 0; h < rows; ++h, sums += columns * kLanes) {
    T* const row = to + h * down;
    if constexpr (std::is_same_v<T, Acc>)
      if (stride[1] == 1 && lanes == kLanes) {
        for (int64_t i = 0; i < columns; ++i)
          vector_at(row + i * across) = vector_at(sums + i * kLanes);
        continue;
      }
    unpack_row(sums, int64_t{kLanes}, lanes, columns, row, stride[1], across);
  }
}

template <bool kBroadcast, typename T>
CONVBP_TARGET void tap_conv_tasks_of(const Grouped& g, View<const T> source,
                                     const Accumulator<T>* filters, const Epilogue<T>& epilogue,
                                     View<T> result, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  constexpr int kLanes = Simd<Acc>::kLanes;
  const TapConv& c = g.tap;
  const Scratch patch_block = Scratch::take<Acc>(
      ScratchName::kPatch, patch_size(c, 1, c.h.tile, c.w.tile, g.pitch()));
  const Scratch sums_block =
      Scratch::take<Acc>(ScratchName::kPixels, c.h.tile * c.w.tile * kLanes);
  Acc* const patch = patch_block.template data<Acc>();
  Acc* const sums = sums_block.template data<Acc>();
  std::vector<TapRun> runs;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t bundle = task % g.bundles(), tile = task / g.bundles();
    const TileExtent e = tile_extent(c, tile / c.spatial_tiles(), tile % c.spatial_tiles());
    const int64_t patch_columns = c.w.patch_rows(e.columns);
    pack_patch(c, e, source, bundle * g.together * c.reduce, g.groups_of(bundle) * c.reduce, patch,
               g.pitch());
    find_tap_runs(g, patch_columns, runs);
    const int64_t runs_a_row = divide_up(e.columns, kMostRun);

    for (int64_t v = 0; v < g.vectors(); ++v) {
      const int64_t lanes = g.lanes_of(bundle, v);
      const int64_t channel0 = bundle * g.together * c.lanes + v * kLanes;
      Acc bias[kLanes] = {};
      if (epilogue.bias)
        for (int64_t lane = 0; lane < lanes; ++lane)
          bias[lane] = load<Acc>(epilogue.bias[channel0 + lane]);
      for (int64_t n = 0; n < runs_a_row; ++n) {
        const int64_t w = n * e.columns / runs_a_row;
        const auto sum = sum_run_of<kBroadcast, Acc>(c, (n + 1) * e.columns / runs_a_row - w);
        for (int64_t h = 0; h < e.rows; ++h)
          sum(g, runs,
              patch + (h * c.h.position_row() * patch_columns + w * c.w.position_row()) * g.pitch(),
              filters + (bundle * g.vectors() + v) * g.filters_size(), bias,
              sums + (h * e.columns + w) * kLanes);
      }
      if (epilogue.pre_activation)
        store_sums(c, e, sums, lanes, channel0, epilogue.pre_activation, result.stride);
      epilogue.activation.apply(sums, e.pixels() * kLanes);
      store_sums(c, e, sums, lanes, channel0, result.data, result.stride);
    }
  }
}

template <typename T>
CONVBP_TARGET void tap_conv_tasks(const Grouped& g, View<const T> source,
                                  const Accumulator<T>* filters, const Epilogue<T>& epilogue,
                                  View<T> result, int64_t begin, int64_t end) {
  return (g.together == 1 ? &tap_conv_tasks_of<true, T> : &tap_conv_tasks_of<false, T>)(
      g, source, filters, epilogue, result, begin, end);
}

// What a tile adds to the sums of kTaps neighbouring taps and kDepth channels.
template <int kDepth, int kTaps, bool kBroadcast, typename Acc>
CONVBP_TARGET void add_to_taps(const Grouped& g, const TileExtent& e, const Acc* patch,
                               int64_t k0, const Acc* delta, Acc* sums) {
  constexpr int kLanes = Simd<Acc>::kLanes;
  const TapConv& c = g.tap;
  const int64_t depth = c.reduce, pitch = kBroadcast ? depth : kLanes;
  const int64_t step = c.w.position_row() * pitch;
  const int64_t line = c.h.position_row() * c.w.patch_rows(e.columns) * pitch;
  const auto first = first_channels<Acc>(c) + static_cast<typename Lanes<Acc>::Integer>(k0);
  Vector<Acc> acc[kTaps][kDepth] = {};
  for (int64_t h = 0; h < e.rows; ++h, patch += line, delta += e.columns * kLanes) {
    if (kTaps > 1 && step == pitch) {
      // A pixel meets the deltas of as many positions as there are taps.
      const auto column = [&](int64_t j, bool inside) CONVBP_TARGET {
        Vector<Acc> x[kDepth];
#pragma GCC unroll 8
        for (int k = 0; k < kDepth; ++k)
          x[k] = channel<kBroadcast>(patch + j * pitch, k0 + k, first + k);
#pragma GCC unroll 3
        for (int s = 0; s < kTaps; ++s) {
          if (!inside && (j < s || j - s >= e.columns)) continue;
          const Vector<Acc> d = vector_at(delta + (j - s) * kLanes);
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
        const Vector<Acc> d = vector_at(delta + i * kLanes);
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

template <int kTaps, bool kBroadcast, typename Acc>
struct AddToTaps {
  template <int kDepth>
  static constexpr auto kFunction = &add_to_taps<kDepth, kTaps, kBroadcast, Acc>;
};

template <bool kBroadcast, typename T>
CONVBP_TARGET void weight_grad_tasks_of(const WeightGrad& plan, View<const T> input,
                                        View<const T> delta, Accumulator<T>* sums, int64_t begin,
                                        int64_t end) {
  using Acc = Accumulator<T>;
  constexpr int kLanes = Simd<Acc>::kLanes;
  constexpr auto depths = std::make_integer_sequence<int, kMostDepth>();
  const Grouped& g = plan.grouped;
  const TapConv& c = g.tap;
  const Scratch patch_block = Scratch::take<Acc>(
      ScratchName::kPatch, patch_size(c, 1, c.h.tile, c.w.tile, g.pitch()));
  const Scratch delta_block =
      Scratch::take<Acc>(ScratchName::kDelta, c.h.tile * c.w.tile * kLanes);
  Acc* const patch = patch_block.template data<Acc>();
  Acc* const packed_delta = delta_block.template data<Acc>();
  std::vector<TapRun> runs;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / plan.bundle_tasks();
    const int64_t bundle0 = task % plan.bundle_tasks() * plan.bundles_a_task;
    const int64_t bundle1 = std::min(bundle0 + plan.bundles_a_task, g.bundles());
    const auto sums_of = [&](int64_t bundle) {
      return sums + chunk * plan.sums_a_chunk() + bundle * g.vectors() * plan.sums_a_vector();
    };
    if (bundle0 < bundle1) fill_zero(sums_of(bundle0), sums_of(bundle1) - sums_of(bundle0));
    const int64_t last_tile = (chunk + 1) * g.tiles() / plan.chunks;
    for (int64_t tile = chunk * g.tiles() / plan.chunks; tile < last_tile; ++tile) {
      const TileExtent e = tile_extent(c, tile / c.spatial_tiles(), tile % c.spatial_tiles());
      find_tap_runs(g, c.w.patch_rows(e.columns), runs);
      for (int64_t bundle = bundle0; bundle < bundle1; ++bundle) {
        pack_patch(c, e, input, bundle * g.together * c.reduce, g.groups_of(bundle) * c.reduce,
                   patch, g.pitch());
        for (int64_t v = 0; v < g.vectors(); ++v) {
          Acc* const vector_sums = sums_of(bundle) + v * plan.sums_a_vector();
          const int64_t channel0 = bundle * g.together * c.lanes + v * kLanes;
          for (int64_t h = 0; h < e.rows; ++h)
            pack_row(&delta.at(e.b0, channel0, e.h0 + h, e.w0), delta.stride[1], delta.stride[3],
                     g.lanes_of(bundle, v), e.columns, packed_delta + h * e.columns * kLanes,
                     int64_t{kLanes});
          for (const TapRun& run : runs)
            for (int64_t k = 0; k < c.reduce; k += kMostDepth) {
              const int64_t depth = std::min<int64_t>(kMostDepth, c.reduce - k);
              (run.taps == 3 ? tile_function_of<AddToTaps<3, kBroadcast, Acc>>(depth, depths)
                             : tile_function_of<AddToTaps<1, kBroadcast, Acc>>(depth, depths))(
                  g, e, patch + run.start, k, packed_delta,
                  vector_sums + run.tap * c.reduce * kLanes);
            }
          Vector<Acc> bias = {};
          for (int64_t i = 0; i < e.pixels(); ++i) bias += vector_at(packed_delta + i * kLanes);
          vector_at(vector_sums + g.filters_size()) += bias;
        }
      }
    }
  }
}

template <typename T>
CONVBP_TARGET void weight_grad_tasks(const WeightGrad& plan, View<const T> input,
                                     View<const T> delta, Accumulator<T>* sums, int64_t begin,
                                     int64_t end) {
  return (plan.grouped.together == 1 ? &weight_grad_tasks_of<true, T>
                                     : &weight_grad_tasks_of<false, T>)(plan, input, delta, sums,
                                                                       begin, end);
}

template <typename T>
Table<T> make_table() {
  return {CONVBP_VECTOR_BYTES, CONVBP_VECTOR_BYTES >= 32, &tap_conv_tasks<T>,
          &weight_grad_tasks<T>};
}

template Table<float> make_table();
template Table<double> make_table();

}  // namespace convbp::grouped::CONVBP_ISA
