// The Winograd kernels. Included once per instruction set, as register_tile.h.
//
// What is computed stands in plain.h, its rearrangement in winograd_transform.h. How, for the tiles
// of one task, all of it in the second-level cache:
//
//   transform   the patch's tiles, channels in lanes: [position][tile][channel]
//   multiply    at each of the 36 (16) positions, tiles in the rows of the register tile and result
//               channels in its lanes, summed over the source channels
//   transform   back to pixels of a row of tiles, then bias, activation, store
//
// The weight gradient multiplies, at each position, transformed input (channels in the rows) by
// transformed delta (in the lanes), summed over the tiles of a task and then over the tasks.
//
// Reached (Zen 4, 2 cores, 240 GF/s), counted in the direct algorithm's operations: 3x3 of 128 to 128
// channels of 64x16x16, 610 to 680 GF/s, weight gradient 480 to 510.

#include <cstdint>

#include "patch.h"
#include "register_tile.h"
#include "scratch.h"
#include "winograd_table.h"
#include "winograd_transform.h"

namespace convbp::winograd::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

using Vector = Simd<float>::Vector;
constexpr int kLanes = Simd<float>::kLanes, kVectors = 2, kBlock = kVectors * kLanes;

// An extent up to whole tiles.
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
    for (int64_t i = 0; i < e.rows / p.out; ++i)
      for (int64_t j = 0; j < e.columns / p.out; ++j) body(tile++, b, i, j);
}

// transformed[position][tile][channel] = B^T d B. A pixel's last vector may reach into the next
// pixel, or behind the patch: what it brings is not read.
template <typename F>
CONVBP_TARGET void transform_input(const Winograd& p, const TileExtent& e, const float* patch,
                                   float* transformed) {
  const int64_t pixel = p.channels_a_task, row = (e.columns + 2) * pixel, image = (e.rows + 2) * row;
  const int64_t stream = p.source_stream(), pitch = p.pitch();
  for_tiles(p, e, [&](int64_t tile, int64_t b, int64_t i, int64_t j) CONVBP_TARGET {
    const float* from = patch + b * image + i * F::kOut * row + j * F::kOut * pixel;
    float* to = transformed + tile * pitch;
    for (int64_t k = 0; k < pitch; k += kLanes)
      both_axes<transform::input<F>, Vector>(
          [&](int y, int x) CONVBP_TARGET { return vector_at(from + y * row + x * pixel + k); },
          [&](int y, int x, Vector v) CONVBP_TARGET {
            vector_at(to + (y * F::kTile + x) * stream + k) = v;
          });
  });
}

// product[i][:] (+)= sum_q row_i[q * step] * lane[q][:]; row i starts at rows + i * apart.
template <int kTileRows, bool kAdd>
CONVBP_TARGET void multiply_rows(const float* rows, int64_t apart, int64_t step, const float* lane,
                                 int64_t count, float* product, int64_t product_apart) {
  TileRow<float, 2 * kVectors> acc[kTileRows] = {};
  const float* row[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) row[i] = rows + i * apart;
  accumulate<false>(acc, row, step, lane, count);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    if constexpr (kAdd) acc[i].add(TileRow<float, 2 * kVectors>::at(product + i * product_apart));
    acc[i].store(product + i * product_apart);
  }
}

template <bool kAdd>
struct MultiplyRows {
  template <int kTileRows>
  static constexpr auto kFunction = &multiply_rows<kTileRows, kAdd>;
};

// Any number of rows, a register tile at a time.
template <bool kAdd>
CONVBP_TARGET void multiply(int64_t row_count, const float* rows, int64_t apart, int64_t step,
                            const float* lane, int64_t count, float* product,
                            int64_t product_apart) {
  for (int64_t i = 0; i < row_count; i += kRows) {
    const auto kernel = tile_function<MultiplyRows<kAdd>>(std::min<int64_t>(kRows, row_count - i));
    kernel(rows + i * apart, apart, step, lane, count, product + i * product_apart, product_apart);
  }
}

// Task: a lane block of a group. [position][channel][lane of the block], zero in lanes that do not
// exist; `transformed` is that of the first task.
template <typename T, typename F>
CONVBP_TARGET void transform_filters(const Winograd& p, const T* weight,
                                     const WeightStrides& stride, float* transformed,
                                     int64_t begin, int64_t end) {
  const TapConv& c = p.tap;
  constexpr int64_t kChannels = 8;  // read together: they share cache lines
  float filters[kChannels][3][3][kBlock] = {};
  const bool whole_filters = stride.r == 3 && stride.s == 1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / c.blocks(), lane0 = task % c.blocks() * kBlock;
    const int64_t lanes = std::min<int64_t>(kBlock, c.lanes - lane0);
    float* const to = transformed + (task - begin) * p.filter_block();
    for (int64_t k0 = 0; k0 < c.reduce; k0 += kChannels) {
      const T* const from =
          weight + g * stride.group + lane0 * stride.lane + k0 * stride.reduce;
      const int64_t channels = std::min(kChannels, c.reduce - k0);
      float* const first = &filters[0][0][0][0];
      // Along what lies side by side in the weight.
      if (whole_filters && stride.reduce == 9) {
        copy_row(from, int64_t{1}, stride.lane, channels * 9, lanes, first, kBlock, 1);
      } else if (whole_filters) {
        for (int64_t k = 0; k < channels; ++k)
          copy_row(from + k * stride.reduce, int64_t{1}, stride.lane, int64_t{9}, lanes,
                   &filters[k][0][0][0], kBlock, 1);
      } else {
        for (int r = 0; r < 3; ++r)
          for (int s = 0; s < 3; ++s) {
            const T* tap = from + r * stride.r + s * stride.s;
            if (stride.lane == 1)
              copy_row(tap, int64_t{1}, stride.reduce, lanes, channels, &filters[0][r][s][0], 1,
                       9 * kBlock);
            else
              copy_row(tap, stride.reduce, stride.lane, channels, lanes, &filters[0][r][s][0],
                       9 * kBlock, 1);
          }
      }
      for (int64_t lane = lanes; lane < kBlock; ++lane)
        for (int64_t tap = 0; tap < kChannels * 9; ++tap) (&filters[0][0][0][lane])[tap * kBlock] = 0;
      for (int64_t k = 0; k < channels; ++k)
        for (int v = 0; v < kVectors; ++v)
          both_axes<transform::filter<F>, Vector>(
              [&](int r, int s) CONVBP_TARGET {
                return vector_at(&filters[k][c.h.taps[r]][c.w.taps[s]][v * kLanes]);
              },
              [&](int y, int x, Vector u) CONVBP_TARGET {
                vector_at(to + (y * F::kTile + x) * p.filter_stream() + (k0 + k) * kBlock +
                          v * kLanes) = u;
              });
    }
  }
}

template <typename T, typename F>
CONVBP_TARGET void tap_conv_tasks(const Winograd& p, View<const T> source, const T* weight,
                                  const WeightStrides& stride, const float* filters,
                                  const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                  int64_t end) {
  constexpr int kPositions = F::kTile * F::kTile;
  const TapConv& c = p.tap;
  const int64_t blocks_a_task = divide_up(c.blocks(), c.lane_split);
  const int64_t most_columns = p.whole(c.w.tile);
  const Scratch patch_block = Scratch::take<float>(
      ScratchName::kPatch,
      patch_size(c, c.batch_tile, p.whole(c.h.tile), most_columns, p.channels_a_task) + kLanes);
  const Scratch source_block =
      Scratch::take<float>(ScratchName::kTransformed, kPositions * p.source_stream());
  const Scratch product_block =
      Scratch::take<float>(ScratchName::kProduct, kPositions * p.product_stream());
  const Scratch pixel_block =
      Scratch::take<float>(ScratchName::kPixels, F::kOut * most_columns * kBlock);
  float* const patch = patch_block.data<float>();
  float* const transformed = source_block.data<float>();
  float* const product = product_block.data<float>();
  float* const pixels = pixel_block.data<float>();
  const Scratch filter_scratch =
      Scratch::take<float>(ScratchName::kFilters, filters ? 0 : p.filter_block());

  int64_t transformed_task = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % c.lane_split, pixel_task = task / c.lane_split;
    const int64_t spatial = pixel_task % c.spatial_tiles();
    const int64_t g = pixel_task / c.spatial_tiles() % c.groups;
    const TileExtent e = tile_extent(c, pixel_task / c.spatial_tiles() / c.groups, spatial);
    const TileExtent whole = whole_tiles(p, e);
    const int64_t across = whole.columns / F::kOut;
    const int64_t tiles = whole.pixels() / (F::kOut * F::kOut);
    if (pixel_task != transformed_task) {  // else it is there from the task before
      pack_patch(c, whole, source, g * c.reduce, c.reduce, patch, p.channels_a_task);
      transform_input<F>(p, whole, patch, transformed);
      transformed_task = pixel_task;
    }

    const int64_t last_block = std::min(c.blocks(), (split + 1) * blocks_a_task);
    for (int64_t block = split * blocks_a_task; block < last_block; ++block) {
      const int64_t filter_task = g * c.blocks() + block;
      const float* block_filters = filters + filter_task * p.filter_block();
      if (!filters) {
        block_filters = filter_scratch.data<float>();
        transform_filters<T, F>(p, weight, stride, filter_scratch.data<float>(), filter_task,
                                filter_task + 1);
      }
      for (int position = 0; position < kPositions; ++position)
        multiply<false>(tiles, transformed + position * p.source_stream(), p.pitch(), 1,
                        block_filters + position * p.filter_stream(), c.reduce,
                        product + position * p.product_stream(), kBlock);

      const int64_t channel0 = g * c.lanes + block * kBlock;
      const int64_t lanes = std::min<int64_t>(kBlock, c.lanes - block * kBlock);
      float bias[kBlock] = {};
      if (epilogue.bias)
        for (int64_t lane = 0; lane < lanes; ++lane)
          bias[lane] = load<float>(epilogue.bias[channel0 + lane]);
      const float* tile_product = product;
      for (int64_t b = 0; b < e.images; ++b)
        for (int64_t i = 0; i < e.rows; i += F::kOut) {
          for (int64_t j = 0; j < across; ++j, tile_product += kBlock)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              const float* from = tile_product + v * kLanes;
              const Vector b_v = vector_at(bias + v * kLanes);
              float* to = pixels + j * F::kOut * kBlock + v * kLanes;
              both_axes<transform::output<F>, Vector>(
                  [&](int y, int x) CONVBP_TARGET {
                    return vector_at(from + (y * F::kTile + x) * p.product_stream());
                  },
                  [&](int y, int x, Vector sum) CONVBP_TARGET {
                    vector_at(to + (y * whole.columns + x) * kBlock) = sum + b_v;
                  });
            }
          for (int64_t y = 0; y < std::min<int64_t>(F::kOut, e.rows - i); ++y) {
            float* const row = pixels + y * whole.columns * kBlock;
            const int64_t to = (e.b0 + b) * result.stride[0] + channel0 * result.stride[1] +
                               (e.h0 + i + y) * result.stride[2] + e.w0 * result.stride[3];
            if (epilogue.pre_activation)
              unpack_row(row, kBlock, lanes, e.columns, epilogue.pre_activation + to,
                         result.stride[1], result.stride[3]);
            epilogue.activation.apply(row, e.columns * kBlock);
            unpack_row(row, kBlock, lanes, e.columns, result.data + to, result.stride[1],
                       result.stride[3]);
          }
        }
    }
  }
}

// Delta of an extent in lane blocks: [block][image][row][column][lane], zero outside.
template <typename T>
CONVBP_TARGET void pack_delta(const TileExtent& e, const TileExtent& whole, View<const T> delta,
                              int64_t channel0, int64_t lanes, float* to) {
  for (int64_t lane = 0; lane < lanes; lane += kBlock)
    for (int64_t b = 0; b < e.images; ++b)
      for (int64_t i = 0; i < whole.rows; ++i, to += whole.columns * kBlock) {
        const int64_t columns = i < e.rows ? e.columns : 0;
        if (columns)
          pack_row(&delta.at(e.b0 + b, channel0 + lane, e.h0 + i, e.w0), delta.stride[1],
                   delta.stride[3], std::min<int64_t>(kBlock, lanes - lane), columns, to,
                   int64_t{kBlock});
        fill_zero(to + columns * kBlock, (whole.columns - columns) * kBlock);
      }
}

// The chunks' sums, added in their order and transformed to filters. Task: kTotalChannels of a
// task's channels, for some lanes of a group; `sums` begin with those that the first task is part
// of.
template <typename T, typename F>
CONVBP_TARGET void weight_grad_total(const Winograd& p, const float* sums, View<T> weight_grad,
                                     T* bias_grad, int64_t begin, int64_t end) {
  const TapConv& c = p.tap;
  const int64_t chunk_apart = p.tasks_a_chunk() * p.sums_a_task();
  const int64_t blocks = p.parts_a_task();
  const auto total = [&](const float* from) CONVBP_TARGET {
    Vector sum = vector_at(from);
    for (int64_t chunk = 1; chunk < p.chunks; ++chunk) sum += vector_at(from + chunk * chunk_apart);
    return sum;
  };
  float filters[3][3][kTotalChannels][kLanes];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t lane_task = task / blocks % p.lane_tasks();
    const int64_t part = task / blocks / p.lane_tasks();
    const int64_t k0 = part % p.channel_tasks() * p.channels_a_task, g = part / p.channel_tasks();
    const int64_t first = task % blocks * kTotalChannels;
    const int64_t channels =
        std::min({kTotalChannels, p.channels_a_task - first, c.reduce - k0 - first});
    if (channels <= 0) continue;
    const float* const task_sums = sums + (task / blocks - begin / blocks) * p.sums_a_task();
    const int64_t lane0 = lane_task * p.lanes_a_task;
    for (int64_t v = 0; v < std::min(p.lanes_a_task, c.lanes - lane0); v += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, c.lanes - lane0 - v);
      const int64_t channel = g * c.lanes + lane0 + v;
      for (int64_t k = 0; k < channels; ++k)
        both_axes<transform::filter_grad<F>, Vector>(
            [&](int y, int x) CONVBP_TARGET {
              const int64_t row = (y * F::kTile + x) * p.channels_a_task + first + k;
              return total(task_sums + row * p.lanes_a_task + v);
            },
            [&](int r, int s, Vector grad) CONVBP_TARGET { vector_at(filters[r][s][k]) = grad; });
      const auto put = [&](int64_t lane, int64_t k, int r, int s) CONVBP_TARGET {
        weight_grad.at(channel + lane, k0 + first + k, r, s) = store<T>(filters[r][s][k][lane]);
      };
      // Along what lies side by side in the weight.
      for (int64_t lane = 0; lane < lanes; ++lane)
        if (weight_grad.stride[1] == 1) {
          for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s)
              for (int64_t k = 0; k < channels; ++k) put(lane, k, r, s);
        } else {
          for (int64_t k = 0; k < channels; ++k)
            for (int r = 0; r < 3; ++r)
              for (int s = 0; s < 3; ++s) put(lane, k, r, s);
        }
      if (bias_grad && k0 + first == 0) {
        float bias[kLanes];
        vector_at(bias) = total(task_sums + F::kTile * F::kTile * p.channels_a_task * p.lanes_a_task + v);
        for (int64_t lane = 0; lane < lanes; ++lane)
          bias_grad[channel + lane] = store<T>(bias[lane]);
      }
    }
  }
}

// Task: a chunk of extents, for some channels and lanes of a group.
template <typename T, typename F>
CONVBP_TARGET void weight_grad_tasks(const Winograd& p, View<const T> input, View<const T> delta,
                                     float* sums, View<T> weight_grad, T* bias_grad,
                                     int64_t begin, int64_t end) {
  constexpr int kPositions = F::kTile * F::kTile;
  const TapConv& c = p.tap;
  const int64_t most_rows = p.whole(c.h.tile), most_columns = p.whole(c.w.tile);
  const int64_t most_pixels = c.batch_tile * most_rows * most_columns;
  const int64_t task_blocks = divide_up(p.lanes_a_task, kBlock);
  const int64_t delta_stream = p.most_tiles * kBlock + kApart;
  const Scratch patch_block = Scratch::take<float>(
      ScratchName::kPatch, patch_size(c, c.batch_tile, most_rows, most_columns, p.channels_a_task) + kLanes);
  const Scratch source_block =
      Scratch::take<float>(ScratchName::kTransformed, kPositions * p.source_stream());
  const Scratch delta_block =
      Scratch::take<float>(ScratchName::kDelta, most_pixels * task_blocks * kBlock);
  const Scratch product_block =
      Scratch::take<float>(ScratchName::kProduct, task_blocks * kPositions * delta_stream);
  const Scratch sums_block =
      Scratch::take<float>(ScratchName::kPartial, sums ? 0 : p.sums_a_task());
  float* const patch = patch_block.data<float>();
  float* const transformed = source_block.data<float>();
  float* const packed_delta = delta_block.data<float>();
  float* const transformed_delta = product_block.data<float>();

  for (int64_t task = begin; task < end; ++task) {
    const int64_t lane_task = task % p.lane_tasks();
    const int64_t channel_task = task / p.lane_tasks() % p.channel_tasks();
    const int64_t g = task / p.lane_tasks() / p.channel_tasks() % c.groups;
    const int64_t chunk = task / p.tasks_a_chunk();
    const int64_t k0 = channel_task * p.channels_a_task;
    const int64_t channels = std::min(p.channels_a_task, c.reduce - k0);
    const int64_t lane0 = lane_task * p.lanes_a_task;
    const int64_t lanes = std::min(p.lanes_a_task, c.lanes - lane0);
    float* const task_sums = sums ? sums + task * p.sums_a_task() : sums_block.data<float>();
    float* const bias_sums = task_sums + kPositions * p.channels_a_task * p.lanes_a_task;
    const int64_t first = chunk * p.extents() / p.chunks;
    const int64_t last = (chunk + 1) * p.extents() / p.chunks;
    // The first extent's products begin the sums.
    float* const unset = first < last ? bias_sums : task_sums;
    fill_zero(unset, task_sums + p.sums_a_task() - unset);
    for (int64_t extent = first; extent < last; ++extent) {
      const TileExtent e =
          tile_extent(c, extent / c.spatial_tiles(), extent % c.spatial_tiles());
      const TileExtent whole = whole_tiles(p, e);
      const int64_t tiles = whole.pixels() / (F::kOut * F::kOut);
      pack_patch(c, whole, input, g * c.reduce + k0, channels, patch, p.channels_a_task);
      transform_input<F>(p, whole, patch, transformed);
      pack_delta(e, whole, delta, g * c.lanes + lane0, lanes, packed_delta);

      for (int64_t block = 0; block * kBlock < lanes; ++block) {
        const float* const block_delta = packed_delta + block * whole.pixels() * kBlock;
        float* const streams = transformed_delta + block * kPositions * delta_stream;
        for_tiles(p, whole, [&](int64_t tile, int64_t b, int64_t i, int64_t j) CONVBP_TARGET {
          const float* from = block_delta + ((b * whole.rows + i * F::kOut) * whole.columns +
                                             j * F::kOut) * kBlock;
          float* to = streams + tile * kBlock;
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v)
            both_axes<transform::delta<F>, Vector>(
                [&](int y, int x) CONVBP_TARGET {
                  return vector_at(from + (y * whole.columns + x) * kBlock + v * kLanes);
                },
                [&](int y, int x, Vector w) CONVBP_TARGET {
                  vector_at(to + (y * F::kTile + x) * delta_stream + v * kLanes) = w;
                });
        });
        if (bias_grad) {
          Vector sum[kVectors] = {};
          for (int64_t pixel = 0; pixel < whole.pixels(); ++pixel)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
              sum[v] += vector_at(block_delta + pixel * kBlock + v * kLanes);
          for (int v = 0; v < kVectors; ++v)
            vector_at(bias_sums + block * kBlock + v * kLanes) += sum[v];
        }
      }
      for (int position = 0; position < kPositions; ++position)
        for (int64_t block = 0; block * kBlock < lanes; ++block) {
          const auto multiply_extent = extent == first ? &multiply<false> : &multiply<true>;
          multiply_extent(
              channels, transformed + position * p.source_stream(), 1, p.pitch(),
              transformed_delta + (block * kPositions + position) * delta_stream, tiles,
              task_sums + position * p.channels_a_task * p.lanes_a_task + block * kBlock,
              p.lanes_a_task);
        }
    }
    if (!sums)
      weight_grad_total<T, F>(p, task_sums, weight_grad, bias_grad, task * p.parts_a_task(),
                              (task + 1) * p.parts_a_task());
  }
}

template <typename T, typename F>
Table<T> make_table_of() {
  return {CONVBP_VECTOR_BYTES,      kRows, &transform_filters<T, F>, &tap_conv_tasks<T, F>,
          &weight_grad_tasks<T, F>, &weight_grad_total<T, F>};
}

template <typename T>
Table<T> make_table(int64_t out) {
  return out == Winograd4::kOut ? make_table_of<T, Winograd4>() : make_table_of<T, Winograd2>();
}

// The element types every instruction set is compiled for: those whose sums are float32.
template Table<float> make_table(int64_t);
template Table<BFloat16> make_table(int64_t);
template Table<Half> make_table(int64_t);

}  // namespace convbp::winograd::CONVBP_ISA
