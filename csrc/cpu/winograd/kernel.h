// The Winograd kernels. Included once per instruction set, as register_tile.h.
//
// The equations are in cpu/reference/conv2d.h, their rearrangement in transform.h. The steps for
// the tiles of one task, whose data stay in the second-level cache:
//
//   transform   the patch's tiles, channels in lanes: [point][tile][slot][channel]; a slot is a
//               phase of the source, of which there are two an axis with stride 2
//   multiply    at each of a tile's points, 36 of F(4x4, 3x3), tiles in the rows of the register tile
//               and result channels in its lanes, summed over the source channels
//   transform   back to pixels of a row of tiles, then bias, activation, store
//
// The weight gradient multiplies, at each point, transformed input (channels in the rows) by
// transformed delta (in the lanes), summed over the tiles of a task and then over the tasks.
//
// Reached (Zen 4, 2 cores, 240 GF/s) with two vectors a row, counted in the direct algorithm's
// operations: 3x3 of 128 to 128 channels of 64x16x16, 610 to 680 GF/s, weight gradient 480 to 510.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"
#include "cpu/simd/stream.h"
#include "cpu/winograd/table.h"
#include "cpu/winograd/transform.h"

namespace convbp::winograd::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

using Vector = Simd<float>::Vector;
constexpr int kLanes = Simd<float>::kLanes;

// The Form that a kernel is compiled for, and the vectors of a row of its register tile.
template <int kOut_, int kTaps, int kSourcePhases_, int kResultPhases_, int kVectors_>
struct Variant {
  static constexpr int kOut = kOut_, kSourcePhases = kSourcePhases_;
  static constexpr int kResultPhases = kResultPhases_, kPhases = kSourcePhases * kResultPhases;
  static constexpr int kKernel = kPhases == 1 ? kTaps : 2 * kTaps - 1;
  static constexpr int kVectors = kVectors_, kBlock = kVectors * kLanes;
  // Rows of the register tile.
  static constexpr int kRows = 2 * CONVBP_ISA::kRows / kVectors;
  // The minimal filtering of a phase of an axis.
  template <int kPhase>
  using Axis = F<kOut, kTaps, kPhase == 1>;
  static constexpr int kTile = Axis<0>::kTile;
  // The number of point (y, x) of phases (a, b) of the results, and of their filters.
  static constexpr int result_point(int a, int b, int y, int x) {
    if (kResultPhases == 1) return y * kTile + x;
    return a * kTile * (2 * kTile - 1) + b * kTile * (kTile - a) + y * (kTile - b) + x;
  }
  // Phases of the source that have a point; and how many of them come before (a, b).
  static constexpr int slots(int y, int x) {
    return kSourcePhases == 1 ? 1 : (y + 1 < kTile ? 2 : 1) * (x + 1 < kTile ? 2 : 1);
  }
  static constexpr int slot(int a, int b, int x) {
    return kSourcePhases == 1 ? 0 : a * (x + 1 < kTile ? 2 : 1) + b;
  }
};

// Calls body(a, b) for each pair of phases of two axes, numbers that are known when compiled.
template <int kPhases, typename Body>
CONVBP_INLINE void for_phases(const Body& body) {
  constexpr std::integral_constant<int, 0> first;
  body(first, first);
  if constexpr (kPhases == 2) {
    constexpr std::integral_constant<int, 1> second;
    body(first, second);
    body(second, first);
    body(second, second);
  }
}

// An extent enlarged to whole tiles.
inline TileExtent whole_tiles(const Winograd& p, TileExtent e) {
  e.rows = p.whole(e.rows);
  e.columns = p.whole(e.columns);
  return e;
}

// Calls body(tile number, image, row of tiles, column of tiles) for each tile of a whole extent.
template <typename Body>
CONVBP_INLINE void for_tiles(const Winograd& p, const TileExtent& e, const Body& body) {
  int64_t tile = 0;
  for (int64_t b = 0; b < e.images; ++b)
    for (int64_t i = 0; i < e.rows / p.form.out; ++i)
      for (int64_t j = 0; j < e.columns / p.form.out; ++j) body(tile++, b, i, j);
}

// transformed[point][tile][slot][channel] = B^T d B. A pixel's last vector may reach into the next
// pixel, or past the end of the patch; the excess is written over by the next slot or tile, or not
// read.
template <typename V>
CONVBP_TARGET void transform_input(const Winograd& p, const TileExtent& e, const float* patch,
                                   float* transformed) {
  const GatherConv& c = p.gather;
  const int64_t pixel = p.ic_per_task, row = c.w.patch_rows(e.columns) * pixel;
  const int64_t image = c.h.patch_rows(e.rows) * row;
  const int64_t stream = p.source_stream(), pitch = p.pitch();
  const int64_t down = p.h.source_step * row, right = p.w.source_step * pixel;
  for_tiles(p, e, [&](int64_t tile, int64_t b, int64_t i, int64_t j) CONVBP_TARGET {
    const float* const first =
        patch + b * image + i * V::kOut * c.h.step * row + j * V::kOut * c.w.step * pixel;
    float* to = transformed + tile * pitch;
    for_phases<V::kSourcePhases>([&](auto kA, auto kB) CONVBP_TARGET {
      using Y = typename V::template Axis<kA>;
      using X = typename V::template Axis<kB>;
      const float* from = first + p.h.phases[kA].source * row + p.w.phases[kB].source * pixel;
      for (int64_t k = 0; k < pixel; k += kLanes)
        transform_2d<transform::input<Y>, transform::input<X>, Vector>(
            [&](int y, int x) CONVBP_TARGET { return vector_at(from + y * down + x * right + k); },
            [&](int y, int x, Vector v) CONVBP_TARGET {
              vector_at(to + (y * V::kTile + x) * stream + V::slot(kA, kB, x) * pixel + k) = v;
            });
    });
  });
}

// About this number of products is added up in registers before their sum is added to the others:
// the rounding error grows with this number, and hardly with the channels.
constexpr int64_t kAddedInRegisters = 64;

// product[i][:] (+)= sum_q row_i[q * step] * lane[q][:], `part` products at a time; row i starts at
// rows + i * apart.
template <int kTileRows, int kVectors, bool kAdd>
CONVBP_TARGET void multiply_rows(const float* rows, int64_t apart, int64_t step, const float* lane,
                                 int64_t count, int64_t part, float* product,
                                 int64_t product_apart) {
  using Row = TileRow<float, 2 * kVectors>;
  if constexpr (kAdd)  // sums lie far away, and are not wanted before the end
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) prefetch<1>(product + v * kLanes, product_apart, kTileRows);
  const auto add_up = [&](auto add, int64_t q) CONVBP_INLINE_LAMBDA {
    Row acc[kTileRows] = {};
    const float* row[kTileRows];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) row[i] = rows + i * apart + q * step;
    accumulate<false>(acc, row, step, lane + q * kVectors * kLanes, std::min(part, count - q));
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if constexpr (add) acc[i].add(Row::at(product + i * product_apart));
      acc[i].store(product + i * product_apart);
    }
  };
  add_up(std::bool_constant<kAdd>(), 0);
  for (int64_t q = part; q < count; q += part) add_up(std::true_type(), q);
}

template <int kVectors, bool kAdd>
struct MultiplyRows {
  template <int kTileRows>
  static constexpr auto kFunction = &multiply_rows<kTileRows, kVectors, kAdd>;
};

// Multiplies any number of rows, a register tile at a time.
template <typename V, bool kAdd>
CONVBP_TARGET void multiply(int64_t row_count, const float* rows, int64_t apart, int64_t step,
                            const float* lane, int64_t count, float* product,
                            int64_t product_apart) {
  const int64_t parts = (count + kAddedInRegisters / 2) / kAddedInRegisters;
  const int64_t part = divide_up(count, std::max<int64_t>(1, parts));
  for (int64_t i = 0; i < row_count; i += V::kRows) {
    const auto kernel = tile_function<MultiplyRows<V::kVectors, kAdd>, V::kRows>(
        std::min<int64_t>(V::kRows, row_count - i));
    kernel(rows + i * apart, apart, step, lane, count, part, product + i * product_apart,
           product_apart);
  }
}

// transformed[point][slot][channel][lane of the block] = G g G^T, of `channels` filters from channel
// k0 on: filters[channel][tap][lane].
template <typename V>
CONVBP_TARGET void transform_filters_of_channels(const Winograd& p, const float* filters,
                                                 int64_t k0, int64_t channels, float* transformed) {
  constexpr int kBlock = V::kBlock, kSide = V::kKernel;
  for (int64_t k = 0; k < channels; ++k)
    for (int v = 0; v < kBlock; v += kLanes)
      for_phases<V::kPhases>([&](auto kA, auto kB) CONVBP_TARGET {
        using Y = typename V::template Axis<kA>;
        using X = typename V::template Axis<kB>;
        const auto &h_taps = p.h.phases[kA].taps, &w_taps = p.w.phases[kB].taps;
        transform_2d<transform::filter<Y>, transform::filter<X>, Vector>(
            [&](int r, int s) CONVBP_TARGET {
              const int64_t tap = (k * kSide + h_taps[r]) * kSide + w_taps[s];
              return vector_at(filters + tap * kBlock + v);
            },
            [&](int y, int x, Vector u) CONVBP_TARGET {
              const int64_t channel = V::slot(kA, kB, x) * p.gather.in_channels + k0 + k;
              const int64_t point = V::result_point(kA, kB, y, x);
              vector_at(transformed + point * p.filter_stream() + channel * kBlock + v) = u;
            });
      });
}

// Task: a channel block of a group, zero in lanes that do not exist; `transformed` begins with the
// first task's.
template <typename T, typename V>
CONVBP_TARGET void transform_filters(const Winograd& p, const T* weight,
                                     const WeightStrides& stride, float* transformed, int64_t begin,
                                     int64_t end) {
  const GatherConv& c = p.gather;
  constexpr int kBlock = V::kBlock, kSide = V::kKernel;
  constexpr int64_t kFilter = kSide * kSide;
  // Channels that are read together: they share cache lines.
  constexpr int64_t kChannels = V::kKernel == 3 ? 8 : 2;
  float filters[kChannels][kSide][kSide][kBlock] = {};
  const bool whole_filters = stride.r == kSide && stride.s == 1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / c.blocks(), o0 = task % c.blocks() * kBlock;
    const int64_t lanes = std::min<int64_t>(kBlock, c.out_channels - o0);
    float* const to = transformed + (task - begin) * p.filter_block();
    for (int64_t k0 = 0; k0 < c.in_channels; k0 += kChannels) {
      const T* const from =
          weight + g * stride.group + o0 * stride.out_channel + k0 * stride.in_channel;
      const int64_t channels = std::min(kChannels, c.in_channels - k0);
      float* const first = &filters[0][0][0][0];
      // Copies along the numbers that lie side by side in the weight.
      if (whole_filters && stride.in_channel == kFilter) {
        copy_row(from, int64_t{1}, stride.out_channel, channels * kFilter, lanes, first, kBlock, 1);
      } else if (whole_filters) {
        for (int64_t k = 0; k < channels; ++k)
          copy_row(from + k * stride.in_channel, int64_t{1}, stride.out_channel, kFilter, lanes,
                   &filters[k][0][0][0], kBlock, 1);
      } else {
        for (int r = 0; r < kSide; ++r)
          for (int s = 0; s < kSide; ++s) {
            const T* tap = from + r * stride.r + s * stride.s;
            if (stride.out_channel == 1)
              copy_row(tap, int64_t{1}, stride.in_channel, lanes, channels, &filters[0][r][s][0], 1,
                       kFilter * kBlock);
            else
              copy_row(tap, stride.in_channel, stride.out_channel, channels, lanes,
                       &filters[0][r][s][0], kFilter * kBlock, 1);
          }
      }
      for (int64_t lane = lanes; lane < kBlock; ++lane)
        for (int64_t tap = 0; tap < kChannels * kFilter; ++tap)
          (&filters[0][0][0][lane])[tap * kBlock] = 0;
      transform_filters_of_channels<V>(p, first, k0, channels, to);
    }
  }
}

// The products of a task's tiles with a channel block's filters, [point][tile][lane].
template <typename V>
CONVBP_TARGET void multiply_points(const Winograd& p, int64_t tiles, const float* transformed,
                                   const float* filters, float* product) {
  for_phases<V::kResultPhases>([&](auto kA, auto kB) CONVBP_TARGET {
    for (int y = 0; y < V::kTile - kA; ++y)
      for (int x = 0; x < V::kTile - kB; ++x) {
        const int64_t point = V::result_point(kA, kB, y, x);
        multiply<V, false>(tiles, transformed + (y * V::kTile + x) * p.source_stream(), p.pitch(),
                           1, filters + point * p.filter_stream(),
                           V::slots(y, x) * p.gather.in_channels,
                           product + point * p.product_stream(), V::kBlock);
      }
  });
}

// Transforms products to pixels of `across` neighbouring tiles, A^T m A and the bias:
// [row][column][lane].
template <typename V>
CONVBP_TARGET void transform_results(const Winograd& p, const float* product, const float* bias,
                                     int64_t across, float* pixels) {
  constexpr int kBlock = V::kBlock, kStep = V::kOut * V::kResultPhases;
  const int64_t apart = across * kStep;
  const int64_t down = p.h.result_step * apart * kBlock, right = p.w.result_step * kBlock;
  for (int64_t j = 0; j < across; ++j)
    for (int v = 0; v < kBlock; v += kLanes) {
      const float* const from = product + j * kBlock + v;
      float* const tile = pixels + j * kStep * kBlock + v;
      const Vector b = vector_at(bias + v);
      for_phases<V::kResultPhases>([&](auto kA, auto kB) CONVBP_TARGET {
        using Y = typename V::template Axis<kA>;
        using X = typename V::template Axis<kB>;
        float* const to = tile + (p.h.phases[kA].result * apart + p.w.phases[kB].result) * kBlock;
        transform_2d<transform::output<Y>, transform::output<X>, Vector>(
            [&](int y, int x) CONVBP_TARGET {
              return vector_at(from + V::result_point(kA, kB, y, x) * p.product_stream());
            },
            [&](int y, int x, Vector sum)
                CONVBP_TARGET { vector_at(to + y * down + x * right) = sum + b; });
      });
    }
}

// Stores the results of a task and a channel block, a row of tiles after the other: pixels, g,
// store. `pixels` has room for such a row.
template <typename T, typename V>
CONVBP_TARGET void store_results(const Winograd& p, const TileExtent& e, const float* product,
                                 const Epilogue<T>& epilogue, int64_t channel0, int64_t lanes,
                                 float* pixels, View<T> result) {
  constexpr int kBlock = V::kBlock, kSpacing = V::kResultPhases, kStep = V::kOut * kSpacing;
  const int64_t across = p.whole(e.columns) / V::kOut;
  const int64_t h0 = e.h0 * kSpacing, h1 = std::min((e.h0 + e.rows) * kSpacing, p.h.results);
  const int64_t w0 = e.w0 * kSpacing, w1 = std::min((e.w0 + e.columns) * kSpacing, p.w.results);
  float bias[kBlock] = {};
  if (epilogue.bias)
    for (int64_t lane = 0; lane < lanes; ++lane)
      bias[lane] = load<float>(epilogue.bias[channel0 + lane]);
  for (int64_t b = 0; b < e.images; ++b)
    for (int64_t h = h0; h < h1; h += kStep, product += across * kBlock) {
      transform_results<V>(p, product, bias, across, pixels);
      const PixelRows<const float> rows{pixels, std::min<int64_t>(kStep, h1 - h), w1 - w0,
                                        across * kStep * kBlock, kBlock};
      const int64_t to = (e.b0 + b) * result.stride[0] + channel0 * result.stride[1] +
                         h * result.stride[2] + w0 * result.stride[3];
      if (epilogue.pre_activation)
        unpack_rows(rows, lanes, epilogue.pre_activation + to, result.stride, p.streamed);
      for (int64_t y = 0; y < rows.rows; ++y)
        epilogue.activation.apply(pixels + y * rows.apart, rows.width * kBlock);
      unpack_rows(rows, lanes, result.data + to, result.stride, p.streamed);
    }
}

template <typename T, typename V>
CONVBP_TARGET void gather_conv_tasks(const Winograd& p, View<const T> source, const T* weight,
                                     const WeightStrides& stride, const float* filters,
                                     const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                     int64_t end) {
  constexpr int kBlock = V::kBlock;
  const GatherConv& c = p.gather;
  const int64_t blocks_per_task = divide_up(c.blocks(), c.oc_split);
  const int64_t most_columns = p.whole(c.w.tile);
  const Scratch patch_block = Scratch::take<float>(
      ScratchName::kPatch,
      patch_size(c, c.batch_tile, p.whole(c.h.tile), most_columns, p.ic_per_task) + kLanes);
  const Scratch source_block =
      Scratch::take<float>(ScratchName::kTransformed, p.form.source_points() * p.source_stream());
  const Scratch product_block =
      Scratch::take<float>(ScratchName::kProduct, p.form.result_points() * p.product_stream());
  const Scratch pixel_block = Scratch::take<float>(
      ScratchName::kPixels, V::kOut * V::kResultPhases * most_columns * V::kResultPhases * kBlock);
  const Scratch filter_scratch =
      Scratch::take<float>(ScratchName::kFilters, filters ? 0 : p.filter_block());
  float* const patch = patch_block.data<float>();
  float* const transformed = source_block.data<float>();
  float* const product = product_block.data<float>();
  float* const own_filters = filter_scratch.data<float>();

  int64_t transformed_task = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % c.oc_split, pixel_task = task / c.oc_split;
    const int64_t spatial = pixel_task % c.spatial_tiles();
    const int64_t g = pixel_task / c.spatial_tiles() % c.groups;
    const TileExtent e = tile_extent(c, pixel_task / c.spatial_tiles() / c.groups, spatial);
    const TileExtent whole = whole_tiles(p, e);
    if (pixel_task != transformed_task) {  // else the task before left it there
      pack_patch(c, whole, source, g * c.in_channels, c.in_channels, patch, p.ic_per_task);
      transform_input<V>(p, whole, patch, transformed);
      transformed_task = pixel_task;
    }

    const int64_t last_block = std::min(c.blocks(), (split + 1) * blocks_per_task);
    for (int64_t block = split * blocks_per_task; block < last_block; ++block) {
      const int64_t filter_task = g * c.blocks() + block;
      if (!filters)
        transform_filters<T, V>(p, weight, stride, own_filters, filter_task, filter_task + 1);
      multiply_points<V>(p, whole.pixels() / (V::kOut * V::kOut), transformed,
                         filters ? filters + filter_task * p.filter_block() : own_filters, product);
      store_results<T, V>(p, e, product, epilogue, g * c.out_channels + block * kBlock,
                          std::min<int64_t>(kBlock, c.out_channels - block * kBlock),
                          pixel_block.data<float>(), result);
    }
  }
  if (p.streamed) stream_fence();
}

// Packs delta of an extent in channel blocks: [block][image][row][column][lane], zero outside.
template <int kBlock, typename T>
CONVBP_TARGET void pack_delta(const TileExtent& e, const TileExtent& whole, View<const T> delta,
                              int64_t channel0, int64_t lanes, float* to) {
  const int64_t row = whole.columns * kBlock;
  for (int64_t lane = 0; lane < lanes; lane += kBlock)
    for (int64_t b = 0; b < e.images; ++b, to += whole.rows * row) {
      for (int64_t i = 0; i < e.rows; ++i)
        fill_zero(to + i * row + e.columns * kBlock, (whole.columns - e.columns) * kBlock);
      fill_zero(to + e.rows * row, (whole.rows - e.rows) * row);
      pack_rows(&delta.at(e.b0 + b, channel0 + lane, e.h0, e.w0), delta.stride,
                std::min<int64_t>(kBlock, lanes - lane),
                PixelRows<float>{to, e.rows, e.columns, row, kBlock});
    }
}

// The sum of all chunks, added in their order.
CONVBP_INLINE Vector total(const Winograd& p, const float* sums) {
  Vector sum = vector_at(sums);
  for (int64_t chunk = 1; chunk < p.chunks; ++chunk)
    sum += vector_at(sums + chunk * p.tasks_per_chunk() * p.sums_per_task());
  return sum;
}

// filters[channel][tap][lane] = G^T m G, of `channels` channels of a task from k0 on and a vector
// of its lanes.
template <typename V>
CONVBP_TARGET void transform_sums(const Winograd& p, const float* sums, int64_t k0,
                                  int64_t channels, float* filters) {
  constexpr int kSide = V::kKernel;
  for (int64_t k = 0; k < channels; ++k)
    for_phases<V::kPhases>([&](auto kA, auto kB) CONVBP_TARGET {
      using Y = typename V::template Axis<kA>;
      using X = typename V::template Axis<kB>;
      const auto &h_taps = p.h.phases[kA].taps, &w_taps = p.w.phases[kB].taps;
      transform_2d<transform::filter_grad<Y>, transform::filter_grad<X>, Vector>(
          [&](int y, int x) CONVBP_TARGET {
            const int64_t row =
                (y * V::kTile + x) * p.pitch() + V::slot(kA, kB, x) * p.ic_per_task + k0 + k;
            return total(p, sums + row * p.oc_per_task);
          },
          [&](int r, int s, Vector grad) CONVBP_TARGET {
            const int64_t tap = (k * kSide + h_taps[r]) * kSide + w_taps[s];
            vector_at(filters + tap * kLanes) = grad;
          });
    });
}

// Adds the chunks' sums and transforms them to the gradients. Task: kTotalChannels of a task's
// channels, for some lanes of a group; `sums` begin with those that the first task is part of.
template <typename T, typename V>
CONVBP_TARGET void weight_grad_total(const Winograd& p, const float* sums, View<T> weight_grad,
                                     T* bias_grad, int64_t begin, int64_t end) {
  const GatherConv& c = p.gather;
  const int64_t blocks = p.parts_per_task();
  constexpr int kSide = V::kKernel;
  float filters[kTotalChannels][kSide][kSide][kLanes];
  float* const from = &filters[0][0][0][0];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t oc_task = task / blocks % p.oc_tasks();
    const int64_t part = task / blocks / p.oc_tasks();
    const int64_t k0 = part % p.ic_tasks() * p.ic_per_task, g = part / p.ic_tasks();
    const int64_t first = task % blocks * kTotalChannels;
    const int64_t channels =
        std::min({kTotalChannels, p.ic_per_task - first, c.in_channels - k0 - first});
    if (channels <= 0) continue;
    const float* const task_sums = sums + (task / blocks - begin / blocks) * p.sums_per_task();
    const int64_t o0 = oc_task * p.oc_per_task;
    for (int64_t v = 0; v < std::min(p.oc_per_task, c.out_channels - o0); v += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, c.out_channels - o0 - v);
      const int64_t channel = g * c.out_channels + o0 + v;
      transform_sums<V>(p, task_sums + v, first, channels, from);
      // Copies along the numbers that lie side by side in the weight.
      T* const to = &weight_grad.at(channel, k0 + first, 0, 0);
      const int64_t* const stride = weight_grad.stride;
      if (stride[3] == 1 && stride[2] == kSide && stride[1] == kSide * kSide) {
        unpack_row(from, kLanes, lanes, channels * kSide * kSide, to, stride[0], 1);
      } else {
        for (int r = 0; r < kSide; ++r)
          for (int s = 0; s < kSide; ++s)
            unpack_row(&filters[0][r][s][0], kSide * kSide * kLanes, lanes, channels,
                       to + r * stride[2] + s * stride[3], stride[0], stride[1]);
      }
      if (bias_grad && k0 + first == 0) {
        float bias[kLanes];
        vector_at(bias) = total(p, task_sums + p.bias_sums() + v);
        for (int64_t lane = 0; lane < lanes; ++lane)
          bias_grad[channel + lane] = store<T>(bias[lane]);
      }
    }
  }
}

// transformed[point][tile][lane] = A delta A^T of an extent's channel block, as pack_delta leaves
// it; all phases of the source share its points.
template <typename V>
CONVBP_TARGET void transform_delta(const Winograd& p, const TileExtent& whole, const float* delta,
                                   float* transformed) {
  using Axis = typename V::template Axis<0>;
  constexpr int kBlock = V::kBlock;
  for_tiles(p, whole, [&](int64_t tile, int64_t b, int64_t i, int64_t j) CONVBP_TARGET {
    const float* const from =
        delta + ((b * whole.rows + i * V::kOut) * whole.columns + j * V::kOut) * kBlock;
    float* const to = transformed + tile * kBlock;
    for (int v = 0; v < kBlock; v += kLanes)
      transform_2d<transform::delta<Axis>, transform::delta<Axis>, Vector>(
          [&](int y, int x)
              CONVBP_TARGET { return vector_at(from + (y * whole.columns + x) * kBlock + v); },
          [&](int y, int x, Vector w)
              CONVBP_TARGET { vector_at(to + (y * V::kTile + x) * p.product_stream() + v) = w; });
  });
}

// sums[lane] += the sum of the lane over all pixels, for a channel block.
template <int kBlock>
CONVBP_TARGET void add_pixels(const float* pixels, int64_t count, float* sums) {
  Vector sum[kBlock / kLanes] = {};
  for (int64_t pixel = 0; pixel < count; ++pixel)
#pragma GCC unroll 4
    for (int v = 0; v < kBlock / kLanes; ++v)
      sum[v] += vector_at(pixels + pixel * kBlock + v * kLanes);
  for (int v = 0; v < kBlock / kLanes; ++v) vector_at(sums + v * kLanes) += sum[v];
}

// Task: a chunk of extents, for some channels and lanes of a group.
template <typename T, typename V>
CONVBP_TARGET void weight_grad_tasks(const Winograd& p, View<const T> input, View<const T> delta,
                                     float* sums, View<T> weight_grad, T* bias_grad, int64_t begin,
                                     int64_t end) {
  constexpr int kPoints = V::kTile * V::kTile, kBlock = V::kBlock;
  const GatherConv& c = p.gather;
  const int64_t most_rows = p.whole(c.h.tile), most_columns = p.whole(c.w.tile);
  const int64_t most_pixels = c.batch_tile * most_rows * most_columns;
  const int64_t task_blocks = divide_up(p.oc_per_task, kBlock);
  const int64_t delta_stream = p.product_stream();
  const Scratch patch_block = Scratch::take<float>(
      ScratchName::kPatch,
      patch_size(c, c.batch_tile, most_rows, most_columns, p.ic_per_task) + kLanes);
  const Scratch source_block =
      Scratch::take<float>(ScratchName::kTransformed, p.form.source_points() * p.source_stream());
  const Scratch delta_block =
      Scratch::take<float>(ScratchName::kDelta, most_pixels * task_blocks * kBlock);
  const Scratch product_block =
      Scratch::take<float>(ScratchName::kProduct, task_blocks * kPoints * delta_stream);
  const Scratch sums_block =
      Scratch::take<float>(ScratchName::kPartial, sums ? 0 : p.sums_per_task());
  float* const patch = patch_block.data<float>();
  float* const transformed = source_block.data<float>();
  float* const packed_delta = delta_block.data<float>();
  float* const transformed_delta = product_block.data<float>();

  for (int64_t task = begin; task < end; ++task) {
    const int64_t oc_task = task % p.oc_tasks();
    const int64_t ic_task = task / p.oc_tasks() % p.ic_tasks();
    const int64_t g = task / p.oc_tasks() / p.ic_tasks() % c.groups;
    const int64_t chunk = task / p.tasks_per_chunk();
    const int64_t k0 = ic_task * p.ic_per_task;
    const int64_t channels = std::min(p.ic_per_task, c.in_channels - k0);
    const int64_t o0 = oc_task * p.oc_per_task;
    const int64_t lanes = std::min(p.oc_per_task, c.out_channels - o0);
    float* const task_sums = sums ? sums + task * p.sums_per_task() : sums_block.data<float>();
    float* const bias_sums = task_sums + p.bias_sums();
    const int64_t first = chunk * p.extents() / p.chunks;
    const int64_t last = (chunk + 1) * p.extents() / p.chunks;
    // The first extent's products are the first sums.
    float* const unset = first < last ? bias_sums : task_sums;
    fill_zero(unset, task_sums + p.sums_per_task() - unset);
    for (int64_t extent = first; extent < last; ++extent) {
      const TileExtent e = tile_extent(c, extent / c.spatial_tiles(), extent % c.spatial_tiles());
      const TileExtent whole = whole_tiles(p, e);
      const int64_t tiles = whole.pixels() / (V::kOut * V::kOut);
      pack_patch(c, whole, input, g * c.in_channels + k0, channels, patch, p.ic_per_task);
      transform_input<V>(p, whole, patch, transformed);
      pack_delta<kBlock>(e, whole, delta, g * c.out_channels + o0, lanes, packed_delta);

      for (int64_t block = 0; block * kBlock < lanes; ++block) {
        const float* const block_delta = packed_delta + block * whole.pixels() * kBlock;
        transform_delta<V>(p, whole, block_delta,
                           transformed_delta + block * kPoints * delta_stream);
        if (bias_grad) add_pixels<kBlock>(block_delta, whole.pixels(), bias_sums + block * kBlock);
      }
      const auto multiply_extent = extent == first ? &multiply<V, false> : &multiply<V, true>;
      for (int y = 0; y < V::kTile; ++y)
        for (int x = 0; x < V::kTile; ++x)
          for (int64_t block = 0; block * kBlock < lanes; ++block) {
            const int64_t point = y * V::kTile + x;
            const int64_t rows = (V::slots(y, x) - 1) * p.ic_per_task + channels;
            multiply_extent(rows, transformed + point * p.source_stream(), 1, p.pitch(),
                            transformed_delta + (block * kPoints + point) * delta_stream, tiles,
                            task_sums + point * p.pitch() * p.oc_per_task + block * kBlock,
                            p.oc_per_task);
          }
    }
    if (!sums)
      weight_grad_total<T, V>(p, task_sums, weight_grad, bias_grad, task * p.parts_per_task(),
                              (task + 1) * p.parts_per_task());
  }
}

template <typename T, typename V>
KernelTable<T> kernels_of() {
  KernelTable<T> table = {CONVBP_VECTOR_BYTES,      V::kVectors, V::kRows, &transform_filters<T, V>,
                          &gather_conv_tasks<T, V>, nullptr,     nullptr};
  if constexpr (V::kResultPhases == 1) {
    table.weight_grad = &weight_grad_tasks<T, V>;
    table.weight_grad_total = &weight_grad_total<T, V>;
  }
  return table;
}

template <typename T, int kVectors>
KernelTable<T> kernels_of(const Form& form) {
  const auto is = [&](int64_t out, int64_t taps) { return form.out == out && form.taps == taps; };
  if (is(2, 5)) return kernels_of<T, Variant<2, 5, 1, 1, kVectors>>();
  if (is(3, 4)) return kernels_of<T, Variant<3, 4, 2, 1, kVectors>>();
  if (form.source_phases == 2)
    return is(4, 2) ? kernels_of<T, Variant<4, 2, 2, 1, kVectors>>()
                    : kernels_of<T, Variant<2, 2, 2, 1, kVectors>>();
  if (form.result_phases == 2)
    return is(4, 2) ? kernels_of<T, Variant<4, 2, 1, 2, kVectors>>()
                    : kernels_of<T, Variant<2, 2, 1, 2, kVectors>>();
  return is(4, 3) ? kernels_of<T, Variant<4, 3, 1, 1, kVectors>>()
                  : kernels_of<T, Variant<2, 3, 1, 1, kVectors>>();
}

template <typename T>
KernelTable<T> kernels(const Form& form, [[maybe_unused]] int64_t lanes) {
  // The addresses of 12 rows, of two vectors each, do not fit into registers. A row therefore has
  // four vectors with AVX-512, and there are half as many rows, unless more lanes stay empty.
  // float32 alone has such kernels: every form is compiled once more for them.
  if constexpr (CONVBP_VECTOR_BYTES == 64 && std::is_same_v<T, float>)
    if (divide_up(lanes, 4 * kLanes) * 2 == divide_up(lanes, 2 * kLanes))
      return kernels_of<T, 4>(form);
  return kernels_of<T, 2>(form);
}

// The element types every instruction set is compiled for: those whose sums are float32.
template KernelTable<float> kernels(const Form&, int64_t);
template KernelTable<BFloat16> kernels(const Form&, int64_t);
template KernelTable<Half> kernels(const Form&, int64_t);

}  // namespace convbp::winograd::CONVBP_ISA
