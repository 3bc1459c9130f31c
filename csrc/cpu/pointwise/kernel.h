// The pointwise kernels. Included once per instruction set, as register_tile.h.
//
// The equations are in cpu/reference/conv2d.h. With R = S = 1, or with filters that do not overlap,
// they are matrix products:
//
//   channels_last  rows are pixels, read in place; lanes are the computed channels, from packed
//                  weights
//   NCHW           lanes are pixels, copied once into a panel [channel][pixel]; rows are the
//                  computed channels, from packed weights: nothing is transposed
//   weight grad    rows and lanes are input and output channels, the sum runs over the pixels;
//                  channels_last reads both in place where they do not crowd the cache, NCHW
//                  transposes the smaller of the two
//
// All sums of a result run in registers, in the order of the channels. The two operands of the
// inner loop take 5 and 2 bytes a cycle, which the second-level cache gives: only operands that are
// read again need lie there, and no sum is cut. Few channels are bound by memory: pixels are read
// and written once, and the next tile's pixels are fetched while this one is computed.
//
// Zen 4, 2 cores, channels_last, GFLOP/s of 240 (forward, input gradient, weight gradient):
// 64 to 64 channels of 32x32 192, 189, 191; 256 to 1024 of 14x14 214, 208, 198.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/pointwise/table.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"

namespace convbp::pointwise::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

template <typename T>
using Vector = typename Simd<T>::Vector;

// Pixels of a panel, NCHW.
template <typename T>
constexpr int kPixels = 2 * Simd<T>::kLanes;

// Pixels evenly spaced in two tensors: offsets of the first in each.
struct PixelRun {
  int64_t first, count, a, b;
};

// Finds the runs of pixels [first, first + count), counted through all images.
template <typename Shape>
inline void find_runs(const Shape& s, int64_t first, int64_t count, const int64_t* a,
                      const int64_t* b, std::vector<PixelRun>& runs) {
  runs.clear();
  for (int64_t at = 0; at < count;) {
    const int64_t pixel = first + at, w = pixel % s.width, line = pixel / s.width;
    const int64_t image = line / s.height, h = line % s.height;
    const int64_t length = std::min(s.width - w, count - at);
    const int64_t in_a = image * a[0] + h * a[2] + w * a[3];
    const int64_t in_b = image * b[0] + h * b[2] + w * b[3];
    if (!runs.empty() && runs.back().a + runs.back().count * a[3] == in_a &&
        runs.back().b + runs.back().count * b[3] == in_b)
      runs.back().count += length;
    else
      runs.push_back({at, length, in_a, in_b});
    at += length;
  }
}

// Memory that will be read next, fetched a line a step.
template <typename T>
struct Ahead {
  const T* at;
  int64_t step = kLine<T>;
};

// acc[i][:] += sum_q row[i][q * row_step] * lane[q * lane_step + :], row[i] = rows + i * apart.
// kAhead: the lanes come from the second-level cache, and are fetched this number of steps before.
template <int kAhead, typename T, int kTileRows, int kHalves, typename... Next>
CONVBP_INLINE void multiply(TileRow<T, kHalves> (&acc)[kTileRows], const T* rows, int64_t apart,
                            int64_t row_step, const T* lane, int64_t lane_step, int64_t count,
                            Next... next) {
  // One pointer for four rows: one for each row would be more than there are registers.
  const T* row[(kTileRows + 3) / 4];
#pragma GCC unroll 4
  for (int i = 0; i < kTileRows; i += 4) row[i / 4] = rows + i * apart;
  for (int64_t q = 0; q < count; ++q) {
    (__builtin_prefetch(next.at), ...);
    ((next.at += next.step), ...);
    const auto x = TileRow<T, kHalves>::at(lane);
    if constexpr (kAhead > 0)
#pragma GCC unroll 4
      for (int64_t l = 0; l < TileRow<T, kHalves>::kLanes; l += kLine<T>)
        __builtin_prefetch(lane + l + kAhead * lane_step);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) acc[i].add_product(row[i / 4][i % 4 * apart], x);
#pragma GCC unroll 4
    for (int i = 0; i < kTileRows; i += 4) row[i / 4] += row_step;
    lane += lane_step;
  }
}

template <typename T>
CONVBP_TARGET void pack_weight(const Product& p, const T* weight, const WeightStrides& stride,
                               T* packed, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / p.blocks(), first = task % p.blocks() * p.block;
    pack_row(weight + g * stride.group + first * stride.out_channel, stride.out_channel,
             stride.in_channel, std::min(p.block, p.channels - first), p.in_channels,
             packed + task * p.packed_block_size(), p.block);
  }
}

// Computes kTileRows pixels, `step` apart, and the lanes of a block: to[at[i] + lane]. kFar: the
// weights are in the second-level cache. The pixels after these begin at `next`.
template <int kTileRows, typename T, int kHalves, bool kFar>
CONVBP_TARGET void pixels_tile(const T* source, int64_t step, const T* next, int64_t in_channels,
                               const T* packed, const T* bias, T* to, const int64_t* at,
                               int64_t lanes) {
  using Row = TileRow<T, kHalves>;
  Row acc[kTileRows] = {};
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int64_t l = 0; l < Row::kLanes; l += kLine<T>) __builtin_prefetch(to + at[i] + l, 1);
  multiply<kFar ? 8 : 0, T>(acc, source, step, 1, packed, Row::kLanes, in_channels, Ahead<T>{next});
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i].add(Row::at(bias));
  if (lanes == Row::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) acc[i].store(to + at[i]);
    return;
  }
  T sums[kTileRows][Row::kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i].store(sums[i]);
  for (int i = 0; i < kTileRows; ++i) copy_few(sums[i], to + at[i], lanes);
}

template <typename T, int kHalves, bool kFar>
struct PixelsTile {
  template <int kTileRows>
  static constexpr auto kFunction = &pixels_tile<kTileRows, T, kHalves, kFar>;
};

// Copies channels [first, first + count) of the pixel that lies at `from`, as one run.
template <typename T>
CONVBP_INLINE void copy_channels(const T* from, const Channels& channels, int64_t first,
                                 int64_t count, T* to) {
  while (count > 0) {
    const int64_t length = std::min(count, channels.piece - first % channels.piece);
    copy_few(from + channels(first), to, length);
    first += length;
    count -= length;
    to += length;
  }
}

constexpr int64_t kNear = 16 * 1024;

// Rows a multiple of this number of bytes apart share few sets of the first-level cache: rows of a
// tile, and rows of a panel of the weight gradient.
constexpr int64_t kTileApart = 2048, kPanelApart = 256;
template <typename T>
bool is_crowded(int64_t stride, int64_t apart) {
  return stride * sizeof(T) % apart == 0;
}

template <typename T, int kHalves>
CONVBP_TARGET void channels_last_tasks(const Product& p, View<const T> source, const T* packed,
                                       const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                                       int64_t end) {
  constexpr int kTileRows = tile_rows(kHalves);
  const int64_t pitch = p.in_channels + kLine<T>;
  const Scratch patch_block = Scratch::take<T>(ScratchName::kPatch, p.pixel_block * pitch);
  T* const patch = patch_block.template data<T>();
  std::vector<int64_t> in_result(p.pixel_block);
  std::vector<T> bias(p.blocks() * p.block);
  std::vector<PixelRun> runs;
  const int64_t pixel_blocks = divide_up(p.pixels(), p.pixel_block);
  const int64_t block_size = p.packed_block_size();
  const bool far = block_size * static_cast<int64_t>(sizeof(T)) > kNear;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % p.channel_split, pixel_task = task / p.channel_split;
    const int64_t g = pixel_task / pixel_blocks, first = pixel_task % pixel_blocks * p.pixel_block;
    const int64_t pixels = std::min(p.pixel_block, p.pixels() - first);
    find_runs(p, first, pixels, source.stride, result.stride, runs);
    const bool copies =
        p.source.at.size() > 1 || runs.size() > 1 || is_crowded<T>(source.stride[3], kTileApart);
    for (const PixelRun& run : runs)
      for (int64_t i = 0; i < run.count; ++i) {
        in_result[run.first + i] = run.b + i * result.stride[3] + g * p.channels;
        if (copies)
          copy_channels(source.data + run.a + i * source.stride[3], p.source, g * p.in_channels,
                        p.in_channels, patch + (run.first + i) * pitch);
      }
    const T* const rows = copies ? patch : source.data + runs[0].a + p.source(g * p.in_channels);
    const int64_t step = copies ? pitch : source.stride[3];

    const int64_t first_block = split * p.blocks() / p.channel_split;
    const int64_t last_block = (split + 1) * p.blocks() / p.channel_split;
    if (epilogue.bias) std::copy_n(epilogue.bias + g * p.channels, p.channels, bias.begin());
    // Several blocks are computed pixel by pixel where their weights stay in the first-level cache,
    // so that whole pixels are read and written at once.
    const int64_t together = std::max<int64_t>(
        1, kNear / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(1, block_size));
    for (int64_t block0 = first_block; block0 < last_block; block0 += together)
      for (int64_t i = 0; i < pixels; i += kTileRows) {
        const int64_t count = std::min<int64_t>(kTileRows, pixels - i);
        const auto tile = far ? tile_function<PixelsTile<T, kHalves, true>, kTileRows>(count)
                              : tile_function<PixelsTile<T, kHalves, false>, kTileRows>(count);
        for (int64_t block = block0; block < std::min(block0 + together, last_block); ++block) {
          const int64_t lane0 = block * p.block, lanes = std::min(p.block, p.channels - lane0);
          tile(rows + i * step, step, rows + (i + kTileRows) * step, p.in_channels,
               packed + (g * p.blocks() + block) * block_size, &bias[lane0], result.data + lane0,
               &in_result[i], lanes);
        }
      }
    if (!epilogue.pre_activation && !epilogue.activation.functions) continue;
    const int64_t lane0 = first_block * p.block;
    const int64_t lanes = std::min(last_block * p.block, p.channels) - lane0;
    for (int64_t i = 0; i < pixels; ++i) {
      T* const sums = result.data + in_result[i] + lane0;
      if (epilogue.pre_activation)
        std::memcpy(epilogue.pre_activation + in_result[i] + lane0, sums, lanes * sizeof(T));
      epilogue.activation.apply(sums, lanes);
    }
  }
}

// Computes kTileRows channels of a panel of pixels: to[i * pitch + pixel].
template <int kTileRows, typename T>
CONVBP_TARGET void channels_tile(const T* panel, int64_t in_channels, const T* packed,
                                 const T* bias, T* to, int64_t pitch) {
  constexpr int kLanes = Simd<T>::kLanes;
  TileRow<T, 4> acc[kTileRows] = {};
  multiply<0, T>(acc, packed, 1, kRows, panel, kPixels<T>, in_channels);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < 2; ++v) vector_at(to + i * pitch + v * kLanes) = acc[i].whole[v] + bias[i];
}

template <typename T>
struct ChannelsTile {
  template <int kTileRows>
  static constexpr auto kFunction = &channels_tile<kTileRows, T>;
};

template <typename T>
CONVBP_TARGET void copy_run(const T* from, int64_t from_step, int64_t count, T* to,
                            int64_t to_step) {
  if (from_step == 1 && to_step == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  else
    for (int64_t i = 0; i < count; ++i) to[i * to_step] = from[i * from_step];
}

// The same pixels of the plane this number of planes further on are fetched: no prefetcher of the
// processor sees them in time. 1.2 to 1.5 times as fast where planes are large.
constexpr int64_t kPlanesAhead = 16;

template <typename T>
CONVBP_TARGET void nchw_tasks(const Product& p, View<const T> source, const T* packed,
                              const Epilogue<T>& epilogue, View<T> result, int64_t begin,
                              int64_t end) {
  constexpr int64_t kPanel = kPixels<T>;
  const int64_t panel_size = p.in_channels * kPanel;
  const Scratch panel_block =
      Scratch::take<T>(ScratchName::kPatch, divide_up(p.pixel_block, kPanel) * panel_size);
  T* const panels = panel_block.template data<T>();
  std::vector<PixelRun> runs;
  const int64_t pixel_blocks = divide_up(p.pixels(), p.pixel_block);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % p.channel_split, pixel_task = task / p.channel_split;
    const int64_t g = pixel_task / pixel_blocks, first = pixel_task % pixel_blocks * p.pixel_block;
    const int64_t pixels = std::min(p.pixel_block, p.pixels() - first);
    find_runs(p, first, pixels, source.stride, result.stride, runs);
    // Calls body with the pieces of the runs that lie in one panel.
    const auto for_pieces = [&](int64_t begin, int64_t end, const auto& body) CONVBP_TARGET {
      for (const PixelRun& run : runs) {
        const int64_t i = std::max(run.first, begin), last = std::min(run.first + run.count, end);
        if (i < last) body(run, i, last - i);
      }
    };
    for (int64_t q = 0; q < p.in_channels; ++q) {
      const T* const from = source.data + (g * p.in_channels + q) * source.stride[1];
      for (int64_t j = 0; j < pixels; j += kPanel) {
        T* const to = panels + j * p.in_channels + q * kPanel;
        for_pieces(j, j + kPanel, [&](const PixelRun& run, int64_t i, int64_t count) CONVBP_TARGET {
          const T* const start = from + run.a + (i - run.first) * source.stride[3];
          if (count == kPanel && source.stride[3] == 1) {
            prefetch<0, 2>(start + kPlanesAhead * source.stride[1], kLine<T>,
                           divide_up(kPanel, kLine<T>));
            vector_at(to) = vector_at(start);
            vector_at(to + Simd<T>::kLanes) = vector_at(start + Simd<T>::kLanes);
          } else {
            copy_run(start, source.stride[3], count, to + i - j, 1);
          }
        });
        for (int64_t i = pixels - j; i < kPanel; ++i) to[i] = T(0);
      }
    }

    const int64_t first_block = split * p.blocks() / p.channel_split;
    const int64_t last_block = (split + 1) * p.blocks() / p.channel_split;
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t channel = block * p.block, rows = std::min(p.block, p.channels - channel);
      const int64_t channel0 = g * p.channels + channel;
      T bias[kRows] = {};
      if (epilogue.bias)
        for (int64_t i = 0; i < rows; ++i) bias[i] = epilogue.bias[channel0 + i];
      const T* const weight = packed + (g * p.blocks() + block) * p.packed_block_size();
      const auto tile = tile_function<ChannelsTile<T>>(rows);
      for (int64_t j = 0; j < pixels; j += kPanel) {
        T sums[kRows * kPanel];
        bool computed = false;  // a panel over several runs is computed once, then cut
        for_pieces(j, j + kPanel, [&](const PixelRun& run, int64_t i, int64_t count) CONVBP_TARGET {
          const T* const panel = panels + j * p.in_channels;
          const int64_t step = result.stride[3];
          T* const to = result.data + channel0 * result.stride[1] + run.b + (i - run.first) * step;
          if (count == kPanel && step == 1) {
            tile(panel, p.in_channels, weight, bias, to, result.stride[1]);
            return;
          }
          if (!computed) tile(panel, p.in_channels, weight, bias, sums, kPanel);
          computed = true;
          for (int64_t row = 0; row < rows; ++row)
            copy_run(sums + row * kPanel + i - j, 1, count, to + row * result.stride[1], step);
        });
      }
    }
    if (!epilogue.pre_activation && !epilogue.activation.functions) continue;
    for (int64_t c = first_block * p.block; c < std::min(last_block * p.block, p.channels); ++c)
      for (const PixelRun& run : runs) {
        const int64_t at = (g * p.channels + c) * result.stride[1] + run.b;
        if (epilogue.pre_activation)
          copy_run(result.data + at, result.stride[3], run.count, epilogue.pre_activation + at,
                   result.stride[3]);
        if (result.stride[3] == 1)
          epilogue.activation.apply(result.data + at, run.count);
        else
          for (int64_t i = 0; i < run.count; ++i)
            epilogue.activation.apply(result.data + at + i * result.stride[3], 1);
      }
  }
}

// Adds a panel of pixels to sums[row][lane], for kTileRows rows and the lanes of a block. Channels
// last, the rows are neighbours and the pixels `step` apart; in NCHW, the pixels are neighbours and
// the rows `step` apart.
template <int kTileRows, typename T, int kHalves, bool kNchw>
CONVBP_TARGET void outer_tile(const T* rows, int64_t step, const T* lane, int64_t lane_step,
                              int64_t count, T* sums, int64_t pitch) {
  using Row = TileRow<T, kHalves>;
  Row acc[kTileRows] = {};
  multiply<0, T>(acc, rows, kNchw ? step : 1, kNchw ? 1 : step, lane, lane_step, count);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    acc[i].add(Row::at(sums + i * pitch));
    acc[i].store(sums + i * pitch);
  }
}

template <typename T, int kHalves, bool kNchw>
struct OuterTile {
  template <int kTileRows>
  static constexpr auto kFunction = &outer_tile<kTileRows, T, kHalves, kNchw>;
};

// Fetches one tile's share of the panel after the one at `from`.
template <bool kNchw, typename T>
CONVBP_INLINE void fetch_share(const T* from, const int64_t* stride, int64_t channels,
                               int64_t pixels, int64_t tile, int64_t tiles) {
  const int64_t runs = kNchw ? channels : pixels, numbers = kNchw ? pixels : channels;
  const T* const next = from + pixels * stride[3];
  for (int64_t i = tile * runs / tiles; i < (tile + 1) * runs / tiles; ++i)
    prefetch<0, 2>(next + i * stride[kNchw ? 1 : 3], kLine<T>, divide_up(numbers, kLine<T>));
}

template <typename T, int kHalves, bool kNchw>
CONVBP_TARGET void outer_tasks(const Outer& p, View<const T> rows_view, View<const T> lanes_view,
                               bool with_bias, T* sums, int64_t begin, int64_t end) {
  using Row = TileRow<T, kHalves>;
  constexpr int64_t kPad = kLine<T>, kBlock = Row::kLanes, kTileRows = tile_rows(kHalves);
  const int64_t row_pitch = kNchw ? Outer::kPanel + kPad : p.row_range() + kPad;
  const Scratch row_block =
      Scratch::take<T>(ScratchName::kPatch, row_pitch * (kNchw ? p.row_range() : Outer::kPanel));
  const Scratch lane_block = Scratch::take<T>(ScratchName::kDelta, kBlock * Outer::kPanel);
  T* const row_panel = row_block.template data<T>();
  T* const lane_panel = lane_block.template data<T>();
  std::vector<PixelRun> runs;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.parts(), chunk = task / p.parts();
    const int64_t row0 = part % p.row_ranges() * Outer::kRange;
    const int64_t lane0 = part / p.row_ranges() % p.lane_ranges() * p.lane_range();
    const int64_t g = part / p.row_ranges() / p.lane_ranges();
    const int64_t rows = std::min(Outer::kRange, p.rows - row0);
    const int64_t lanes = std::min(p.lane_range(), p.lanes - lane0);
    const int64_t rows_at_once = balanced_tile(rows, kTileRows);
    T* const part_sums = sums + task * p.sums_per_part();
    T* const bias_sums = part_sums + p.row_range() * p.lane_range();
    fill_zero(part_sums, p.sums_per_part());
    const int64_t first_row = g * p.rows + row0;
    const T* const from_rows =
        rows_view.data + (kNchw ? first_row * rows_view.stride[1] : p.row_channels(first_row));
    const T* const from_lanes = lanes_view.data + (g * p.lanes + lane0) * lanes_view.stride[1];

    const int64_t last = (chunk + 1) * p.pixels() / p.chunks;
    for (int64_t first = chunk * p.pixels() / p.chunks; first < last; first += Outer::kPanel) {
      const int64_t pixels = std::min(Outer::kPanel, last - first);
      find_runs(p, first, pixels, rows_view.stride, lanes_view.stride, runs);
      const bool even = !kNchw && runs.size() == 1;
      const T* row = row_panel;
      int64_t row_step = row_pitch;
      if (even && p.row_channels.at.size() == 1 &&
          !is_crowded<T>(rows_view.stride[3], kPanelApart)) {
        row = from_rows + runs[0].a;
        row_step = rows_view.stride[3];
      } else {
        for (const PixelRun& run : runs)
          if constexpr (kNchw)
            for (int64_t i = 0; i < rows; ++i)
              copy_run(from_rows + run.a + i * rows_view.stride[1], rows_view.stride[3], run.count,
                       row_panel + i * row_pitch + run.first, 1);
          else
            for (int64_t i = 0; i < run.count; ++i)
              copy_channels(rows_view.data + run.a + i * rows_view.stride[3], p.row_channels,
                            first_row, rows, row_panel + (run.first + i) * row_pitch);
      }
      const bool lanes_in_place = even && !is_crowded<T>(lanes_view.stride[3], kPanelApart);
      // Every line of the next panel is fetched once: fetched by every tile, it took up to 1.4
      // times as long.
      const int64_t tiles = divide_up(rows, rows_at_once) * divide_up(lanes, kBlock);
      int64_t tile = 0;
      for (int64_t l = 0; l < lanes; l += kBlock) {
        const int64_t width = std::min(kBlock, lanes - l);
        const T* lane = lane_panel;
        int64_t lane_step = kBlock;
        if (lanes_in_place && width == kBlock) {
          lane = from_lanes + l + runs[0].b;
          lane_step = lanes_view.stride[3];
        } else {
          for (const PixelRun& run : runs)
            pack_row(from_lanes + l * lanes_view.stride[1] + run.b, lanes_view.stride[1],
                     lanes_view.stride[3], width, run.count, lane_panel + run.first * kBlock,
                     kBlock);
        }
        for (int64_t r = 0; r < rows; r += rows_at_once, ++tile) {
          if (runs.size() == 1) {
            fetch_share<kNchw>(from_rows + runs[0].a, rows_view.stride, rows, pixels, tile, tiles);
            fetch_share<kNchw>(from_lanes + runs[0].b, lanes_view.stride, lanes, pixels, tile,
                               tiles);
          }
          tile_function<OuterTile<T, kHalves, kNchw>, kTileRows>(std::min(rows_at_once, rows - r))(
              row + r * (kNchw ? row_step : 1), row_step, lane, lane_step, pixels,
              part_sums + r * p.lane_range() + l, p.lane_range());
        }
        if (with_bias && !p.rows_are_o && row0 == 0) {
          Row sum = Row::at(bias_sums + l);
          for (int64_t q = 0; q < pixels; ++q) sum.add(Row::at(lane + q * lane_step));
          sum.store(bias_sums + l);
        }
      }
      if (with_bias && p.rows_are_o && lane0 == 0)  // NCHW: the rows are copied
        for (int64_t r = 0; r < rows; ++r) {
          Vector<T> sum = {};
          int64_t q = 0;
          for (; q + Simd<T>::kLanes <= pixels; q += Simd<T>::kLanes)
            sum += vector_at(row + r * row_step + q);
          for (; q < pixels; ++q) sum[0] += row[r * row_step + q];
          for (int lane = 0; lane < Simd<T>::kLanes; ++lane) bias_sums[r] += sum[lane];
        }
    }
  }
}

template <typename T>
CONVBP_TARGET void finish(const Outer& p, T* sums, View<T> weight_grad, T* bias_grad, int64_t begin,
                          int64_t end) {
  for (int64_t part = begin; part < end; ++part) {
    T* const total = sums + part * p.sums_per_part();
    for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
      const T* const add = total + chunk * p.parts() * p.sums_per_part();
      for (int64_t i = 0; i < p.sums_per_part(); ++i) total[i] += add[i];
    }
    const int64_t row0 = part % p.row_ranges() * Outer::kRange;
    const int64_t lane0 = part / p.row_ranges() % p.lane_ranges() * p.lane_range();
    const int64_t g = part / p.row_ranges() / p.lane_ranges();
    const int64_t rows = std::min(Outer::kRange, p.rows - row0);
    const int64_t lanes = std::min(p.lane_range(), p.lanes - lane0);
    const int64_t o_first = g * (p.rows_are_o ? p.rows : p.lanes);
    const int64_t row_stride = weight_grad.stride[p.rows_are_o ? 0 : 1];
    const int64_t lane_stride = weight_grad.stride[p.rows_are_o ? 1 : 0];
    copy_row(total, 1, p.lane_range(), lanes, rows,
             weight_grad.data + o_first * weight_grad.stride[0] + row0 * row_stride +
                 lane0 * lane_stride,
             lane_stride, row_stride);
    if (bias_grad && (p.rows_are_o ? lane0 : row0) == 0)
      std::memcpy(bias_grad + o_first + (p.rows_are_o ? row0 : lane0),
                  total + p.row_range() * p.lane_range(),
                  (p.rows_are_o ? rows : lanes) * sizeof(T));
  }
}

template <typename T, int kHalves>
constexpr LaneKernels<T> lane_kernels() {
  return {tile_rows(kHalves),
          &channels_last_tasks<T, kHalves>,
          {&outer_tasks<T, kHalves, false>, &outer_tasks<T, kHalves, true>}};
}

template <typename T>
LaneKernels<T> kernels_of(int64_t halves) {
  if constexpr (CONVBP_VECTOR_BYTES == 64) {
    if (halves == 1) return lane_kernels<T, 1>();
    if (halves == 3) return lane_kernels<T, 3>();
    if (halves == 5) return lane_kernels<T, 5>();
  }
  return halves == 2 ? lane_kernels<T, 2>() : lane_kernels<T, 4>();
}

template <typename T>
KernelTable<T> kernels() {
  return {CONVBP_VECTOR_BYTES, kRows, &pack_weight<T>, &nchw_tasks<T>, &kernels_of<T>, &finish<T>};
}

template KernelTable<float> kernels();
template KernelTable<double> kernels();

}  // namespace convbp::pointwise::CONVBP_ISA
