// The direct kernels. Included once per instruction set, as register_tile.h.
//
// The equations are in cpu/reference/conv2d.h. A task packs the patch that it needs, then
//
//   register tile    kRows rows x 2 vectors of lanes (12 accumulators of 16 registers, 24 of 32);
//                    kRows / 2 x 4 where sums are short: fewer rows to find, whole pixels to write;
//                    half vectors more or less where they leave fewer lanes empty: 8 x 2.5 for 40
//   inner loop       one or two vector loads, kRows broadcasts, 2 * kRows fused multiply-adds
//   gather conv      rows are pixels, lanes are the computed channels, the sum runs over
//                    taps and channels: all in registers, stored once with bias and activation
//   weight gradient  rows are (tap, k), lanes are o, the sum runs over the pixels of a tile
//   depthwise        the same loops, with a row's own lanes in place of a broadcast
//   pairs            bfloat16 where the processor adds the products of two neighbouring channels at
//                    once: twice as many a cycle. A pair is one number to the loops
//
// nchw.h takes pixels for lanes where one side has few channels. Reached (Zen 4, 2 cores, 240
// GF/s): with stride 2 180 to 200 GF/s, weight gradient 150 to 170.

#if defined(CONVBP_BF16_PAIRS)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/types.h"
#include "cpu/direct/plan.h"
#include "cpu/direct/nchw.h"
#include "cpu/direct/table.h"
#include "cpu/scratch.h"
#include "cpu/simd/patch.h"
#include "cpu/simd/register_tile.h"
#include "cpu/simd/stream.h"

namespace convbp::direct::CONVBP_ISA {

using namespace convbp::CONVBP_ISA;

// Place of a pixel of the tile: where it starts in the patch, and where it is written.
struct Place {
  int64_t in_patch, in_result;
};

// Finds the places of a phase's pixels, counted from the tile's first result; `stride` is that of
// an image, a row and a column.
inline void locate_pixels(const DirectConv& conv, int64_t phase, const TileExtent& e,
                          const int64_t (&stride)[3], std::vector<Place>& places) {
  const GatherConv& c = conv.gather;
  const ConvAxis &h_phase = conv.h_phase(phase), &w_phase = conv.w_phase(phase);
  const int64_t patch_rows = c.h.patch_rows(e.rows), patch_columns = c.w.patch_rows(e.columns);
  const int64_t rows = Phases::positions(h_phase, e.h0, e.rows);
  const int64_t columns = Phases::positions(w_phase, e.w0, e.columns);
  places.clear();
  for (int64_t b = 0; b < e.images; ++b)
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t w = 0; w < columns; ++w)
        places.push_back(
            {((b * patch_rows + h * c.h.position_row()) * patch_columns + w * c.w.position_row()) *
                 c.in_channels,
             b * stride[0] + (h_phase.first + h * h_phase.spacing) * stride[1] +
                 (w_phase.first + w * w_phase.spacing) * stride[2]});
}

// Taps whose patch pixels follow each other without a gap, read as one run of numbers; depthwise,
// each tap is a run.
struct TapRun {
  int64_t start, length;
};

inline void find_runs(const DirectConv& conv, int64_t phase, int64_t patch_columns,
                      std::vector<TapRun>& runs) {
  const GatherConv& c = conv.gather;
  const auto patch_row = [](const ConvAxis& patch, int64_t offset) {
    const auto& all = patch.offset;
    return patch.tap_row(std::lower_bound(all.begin(), all.end(), offset) - all.begin());
  };
  runs.clear();
  for (const int64_t h : conv.h_phase(phase).offset)
    for (const int64_t w : conv.w_phase(phase).offset) {
      const int64_t start = (patch_row(c.h, h) * patch_columns + patch_row(c.w, w)) * c.in_channels;
      if (!c.depthwise && !runs.empty() && runs.back().start + runs.back().length == start)
        runs.back().length += c.depth();
      else
        runs.push_back({start, c.depth()});
    }
}

// Where the taps of a phase lie in memory, from the first tap of a channel.
inline std::vector<int64_t> tap_offsets(const DirectConv& conv, int64_t phase,
                                        const WeightStrides& stride) {
  std::vector<int64_t> offset;
  for (const int64_t r : conv.h_phase(phase).taps)
    for (const int64_t s : conv.w_phase(phase).taps) offset.push_back(r * stride.r + s * stride.s);
  return offset;
}

// Copies a channel's taps, for as many of `lanes` as fill vectors, to rows of lanes: by transposes in
// registers, since lanes lie lane_step apart. Reads a whole vector of each lane, and nothing behind
// the weights' last number. Returns the number of lanes copied.
CONVBP_INLINE int64_t transpose_taps(const float* from, const float* last, int64_t lane_step,
                                     int64_t lanes, const std::vector<int64_t>& offset, float* to,
                                     int64_t tap_step) {
  constexpr int kLanes = Simd<float>::kLanes;
  int64_t lane = 0;
  for (; lane + kLanes <= lanes; lane += kLanes) {
    if (from + (lane + kLanes - 1) * lane_step + kLanes - 1 > last) break;
    float rows[kLanes * kLanes];
    transpose_vectors(from + lane * lane_step, lane_step, rows, kLanes);
    for (size_t tap = 0; tap < offset.size(); ++tap)
      vector_at(to + tap * tap_step + lane) = vector_at(rows + offset[tap] * kLanes);
  }
  return lane;
}

// Packs the weights: [group][channel block][phase][tap][depth][lane of the block], zero in lanes
// that do not exist. A lane has the numbers of kPer neighbouring channels side by side.
template <int kPer, typename T, typename Packed>
CONVBP_TARGET void pack_weight(const DirectConv& conv, const T* weight, const WeightStrides& stride,
                               void* packed, int64_t begin, int64_t end) {
  const GatherConv& c = conv.gather;
  const int64_t depth = c.depth() * kPer, channels = c.depthwise ? 1 : conv.channels;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / c.blocks(), o0 = task % c.blocks() * c.oc_block;
    const int64_t lanes = std::min(c.oc_block, c.result_channels(g) - o0);
    const T* const block = weight + g * stride.group + o0 * stride.out_channel;
    Packed* to = static_cast<Packed*>(packed) + task * conv.packed_block_size() * kPer;
    for (int64_t phase = 0; phase < conv.phases(); ++phase) {
      const std::vector<int64_t> offset = tap_offsets(conv, phase, stride);
      const int64_t taps = static_cast<int64_t>(offset.size());
      const int64_t farthest = taps ? *std::max_element(offset.begin(), offset.end()) : 0;
      const T* const last = weight + (c.groups - 1) * stride.group +
                            (c.out_channels - 1) * stride.out_channel +
                            (channels - 1) * stride.in_channel + farthest;
      // Few taps of a vector are not worth a transpose, and one cannot reach taps that lie far apart.
      const bool transposed = kPer == 1 && !c.depthwise && farthest < Simd<float>::kLanes &&
                              taps >= Simd<float>::kLanes / 4;
      // A channel at a time, whose taps lie side by side in memory: lines are read once.
      for (int64_t k = 0; k < depth; ++k) {
        const T* const from = block + k * stride.in_channel;
        Packed* const at = to + (conv.nchw ? k * taps : k / kPer) * c.oc_block * kPer + k % kPer;
        const int64_t tap_step = (conv.nchw ? 1 : c.depth()) * c.oc_block * kPer;
        const int64_t filled = k < channels ? lanes : 0;
        int64_t lane = 0;
        if constexpr (std::is_same_v<T, float> && std::is_same_v<Packed, float>)
          if (transposed)
            lane = transpose_taps(from, last, stride.out_channel, filled, offset, at, tap_step);
        for (int64_t tap = 0; tap < taps; ++tap) {
          Packed* const row = at + tap * tap_step;
          const T* const lane_from = from + offset[tap];
          for (int64_t l = lane; l < filled; ++l)
            row[l * kPer] = load<Packed>(lane_from[l * stride.out_channel]);
          for (int64_t l = filled; l < c.oc_block; ++l) row[l * kPer] = Packed(0);
        }
      }
      to += conv.packed_phase_size(phase) * kPer;
    }
  }
}

template <int kHalves, typename T, typename Acc>
CONVBP_INLINE void store_lanes(const Acc* sums, int64_t lanes, T* to) {
  if constexpr (std::is_same_v<T, Acc>)
    if (lanes == TileRow<Acc, kHalves>::kLanes) {
      TileRow<Acc, kHalves>::at(sums).store(to);
      return;
    }
  for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = store<T>(sums[lane]);
}

#if defined(CONVBP_BF16_PAIRS)
// accumulate() for numbers that are pairs of bfloat16.
template <int kTileRows, int kHalves>
CONVBP_INLINE void accumulate_pairs(TileRow<float, kHalves> (&acc)[kTileRows], const float* rows,
                                    const int64_t (&offset)[kTileRows], const float* lane,
                                    int64_t count) {
  static_assert(kHalves % 2 == 0);
  constexpr int kVectors = kHalves / 2;
  typedef int Bits __attribute__((may_alias));
  for (int64_t q = 0; q < count; ++q, lane += kVectors * Simd<float>::kLanes) {
    __m512bh x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      x[v] = (__m512bh)_mm512_loadu_si512(lane + v * Simd<float>::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const auto pair =
          (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const Bits*>(rows + offset[i] + q));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        acc[i].whole[v] =
            (Simd<float>::Vector)_mm512_dpbf16_ps((__m512)acc[i].whole[v], x[v], pair);
    }
  }
}
#endif

// The factors of a gather convolution: a source number and a lane's number; numbers of the same
// channel; or pairs.
enum class Product { kNumbers, kDepthwise, kPairs };

// The sums of kTileRows pixels over all taps, with bias: one register tile.
template <int kTileRows, Product kProduct, typename Acc, int kHalves>
CONVBP_TARGET void sum_pixels(const std::vector<TapRun>& runs, const Acc* patch,
                              const Place* places, const Acc* weight, const Acc* bias,
                              Acc* const* sums) {
  TileRow<Acc, kHalves> acc[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i] = TileRow<Acc, kHalves>::at(bias);
  int64_t offset[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) offset[i] = places[i].in_patch - places[0].in_patch;
  patch += places[0].in_patch;
  constexpr int64_t kLanes = TileRow<Acc, kHalves>::kLanes;
  for (const TapRun& run : runs) {
#if defined(CONVBP_BF16_PAIRS)
    if constexpr (kProduct == Product::kPairs)
      accumulate_pairs(acc, patch + run.start, offset, weight, run.length);
    else
#endif
      accumulate<kProduct == Product::kDepthwise>(acc, patch + run.start, offset, 1, weight, kLanes,
                                                  run.length);
    weight += run.length * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) acc[i].store(sums[i]);
}

template <Product kProduct, typename Acc, int kHalves>
struct SumPixels {
  template <int kTileRows>
  static constexpr auto kFunction = &sum_pixels<kTileRows, kProduct, Acc, kHalves>;
};

constexpr int64_t kNearWeights = 16 * 1024;

// The pixels of a tile and their runs, phase by phase, while tiles have the same shape.
struct LocatedTile {
  std::vector<std::vector<Place>> places;
  std::vector<std::vector<TapRun>> runs;
  std::array<int64_t, 5> shape{};

  explicit LocatedTile(const DirectConv& conv) : places(conv.phases()), runs(conv.phases()) {}

  void locate(const DirectConv& conv, const TileExtent& e, int64_t rows, int64_t columns,
              const int64_t (&stride)[3]) {
    const std::array<int64_t, 5> now{e.images, e.rows, e.columns, rows, columns};
    if (now == shape) return;
    for (int64_t phase = 0; phase < conv.phases(); ++phase) {
      locate_pixels(conv, phase, e, stride, places[phase]);
      find_runs(conv, phase, conv.gather.w.patch_rows(e.columns), runs[phase]);
    }
    shape = now;
  }
};

// Writes a tile's finished rows of pixels, [image][row][column][lane], as channels from `to` on.
template <int kBlock, typename T, typename Acc>
CONVBP_TARGET void store_rows(const Acc* sums, int64_t images, int64_t rows, int64_t columns,
                              int64_t lanes, const View<T>& result, T* to) {
  for (int64_t b = 0; b < images; ++b)
    for (int64_t row = 0; row < rows; ++row)
      unpack_row(sums + (b * rows + row) * columns * kBlock, int64_t{kBlock}, lanes, columns,
                 to + b * result.stride[0] + row * result.stride[2], result.stride[1],
                 result.stride[3]);
}

template <typename T, typename Acc, int kHalves, Product kProduct>
CONVBP_TARGET void gather_conv_tasks(const DirectConv& conv, View<const T> source,
                                     const void* packed, const Epilogue<T>& epilogue,
                                     View<T> result, int64_t begin, int64_t end) {
  constexpr int kBlock = TileRow<Acc, kHalves>::kLanes, kTileRows = tile_rows(kHalves);
  const GatherConv& c = conv.gather;
  const int64_t blocks_per_task = divide_up(c.blocks(), c.oc_split);
  const Scratch patch_block = Scratch::take<Acc>(
      ScratchName::kPatch, patch_size(c, c.batch_tile, c.h.tile, c.w.tile, c.in_channels));
  Acc* const patch = patch_block.template data<Acc>();
  // Finished results wait for whole rows of pixels where lanes are not neighbours in memory.
  const bool by_rows = result.stride[1] != 1;
  const Scratch waiting_block = Scratch::take<Acc>(
      ScratchName::kPixels,
      by_rows ? c.batch_tile * c.h.tile * conv.h.spacing() * c.w.tile * conv.w.spacing() * kBlock
              : 0);
  Acc* const waiting = waiting_block.template data<Acc>();
  const bool in_place = !by_rows && !epilogue.pre_activation && !epilogue.activation.functions;
  // Several blocks are computed pixel by pixel where their weights stay in the cache, so that whole
  // pixels are written at once.
  const int64_t block_size = conv.packed_block_size();
  const int64_t blocks_at_once =
      by_rows ? 1 : std::max<int64_t>(1, kNearWeights / std::max<int64_t>(1, block_size));
  std::vector<Acc> bias(c.blocks() * kBlock);
  LocatedTile located(conv);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t split = task % c.oc_split, pixel_task = task / c.oc_split;
    const int64_t spatial = pixel_task % c.spatial_tiles();
    const int64_t g = pixel_task / c.spatial_tiles() % c.groups;
    const TileExtent e = tile_extent(c, pixel_task / c.spatial_tiles() / c.groups, spatial);
    const int64_t rows = conv.h.results(e.h0, e.rows), columns = conv.w.results(e.w0, e.columns);
    if constexpr (kProduct == Product::kPairs)
      pack_patch(c, e, source, g * conv.channels, conv.channels, reinterpret_cast<T*>(patch),
                 2 * c.in_channels);
    else
      pack_patch(c, e, source, g * c.in_channels, c.source_channels(g), patch, c.in_channels);
    if (by_rows)
      located.locate(conv, e, rows, columns, {rows * columns * kBlock, columns * kBlock, kBlock});
    else
      located.locate(conv, e, rows, columns,
                     {result.stride[0], result.stride[2], result.stride[3]});

    if (epilogue.bias)
      for (int64_t lane = 0; lane < c.result_channels(g); ++lane)
        bias[lane] = load<Acc>(epilogue.bias[g * c.out_channels + lane]);
    const int64_t result_at = e.b0 * result.stride[0] + g * c.out_channels * result.stride[1] +
                              e.h0 * conv.h.spacing() * result.stride[2] +
                              e.w0 * conv.w.spacing() * result.stride[3];

    const auto tile = [&](int64_t block, int64_t phase, const Acc* weight, const Place* pixels,
                          int64_t count) CONVBP_TARGET {
      const int64_t lanes = std::min<int64_t>(kBlock, c.result_channels(g) - block * kBlock);
      const int64_t to = result_at + block * kBlock * result.stride[1];
      Acc sums[kTileRows][kBlock];
      Acc* at[kTileRows];
      for (int64_t i = 0; i < count; ++i) {
        at[i] = by_rows ? waiting + pixels[i].in_result : sums[i];
        if constexpr (std::is_same_v<T, Acc>)
          if (in_place && lanes == kBlock) at[i] = result.data + to + pixels[i].in_result;
      }
      tile_function<SumPixels<kProduct, Acc, kHalves>, kTileRows>(count)(
          located.runs[phase], patch, pixels, weight, &bias[block * kBlock], at);
      if (at[0] != sums[0]) return;
      const auto store_to = [&](T* data) CONVBP_TARGET {
        for (int64_t i = 0; i < count; ++i)
          store_lanes<kHalves>(sums[i], lanes, data + to + pixels[i].in_result);
      };
      if (epilogue.pre_activation) store_to(epilogue.pre_activation);
      epilogue.activation.apply(&sums[0][0], count * kBlock);
      if constexpr (std::is_same_v<T, float>)
        if (conv.streamed && lanes == kBlock) {
          for (int64_t i = 0; i < count; ++i)
            for (int v = 0; v < kBlock; v += Simd<float>::kLanes)
              stream(vector_at(sums[i] + v), result.data + to + pixels[i].in_result + v);
          return;
        }
      store_to(result.data);
    };
    const int64_t last_block = std::min(c.blocks(), (split + 1) * blocks_per_task);
    for (int64_t block0 = split * blocks_per_task; block0 < last_block; block0 += blocks_at_once) {
      const int64_t block1 = std::min(block0 + blocks_at_once, last_block);
      const Acc* weight = static_cast<const Acc*>(packed) + g * c.blocks() * block_size;
      for (int64_t phase = 0; phase < conv.phases(); ++phase) {
        const std::vector<Place>& places = located.places[phase];
        const int64_t count = static_cast<int64_t>(places.size());
        for (int64_t p = 0; p < count; p += kTileRows)
          for (int64_t block = block0; block < block1; ++block)
            tile(block, phase, weight + block * block_size, &places[p],
                 std::min<int64_t>(kTileRows, count - p));
        weight += conv.packed_phase_size(phase);
      }
      if (by_rows) {
        const int64_t lanes = std::min<int64_t>(kBlock, c.result_channels(g) - block0 * kBlock);
        const int64_t to = result_at + block0 * kBlock * result.stride[1];
        if (epilogue.pre_activation)
          store_rows<kBlock>(waiting, e.images, rows, columns, lanes, result,
                             epilogue.pre_activation + to);
        epilogue.activation.apply(waiting, e.images * rows * columns * kBlock);
        store_rows<kBlock>(waiting, e.images, rows, columns, lanes, result, result.data + to);
      }
    }
  }
  if (conv.streamed) stream_fence();
}

constexpr int64_t kNearPixels = 128;

// Pixels of a tile: the first one, and how far apart they are.
template <typename Acc>
struct Pixels {
  const Acc* start;
  int64_t image, row, column;
};

// Adds lines of pixels [first, last) of a tile to kTileRows rows of a channel block of the weight
// gradient. Lines are counted through all images of the tile, `rows` each.
template <int kTileRows, bool kDepthwise, typename Acc, int kHalves>
CONVBP_TARGET void add_to_rows(int64_t first, int64_t last, int64_t rows, int64_t columns,
                               const Pixels<Acc>& patch, const int64_t* row_offset,
                               const Pixels<Acc>& delta, Acc* sums, int64_t sums_per_row) {
  int64_t offset[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) offset[i] = row_offset[i];
  TileRow<Acc, kHalves> acc[kTileRows] = {};
  for (int64_t line = first; line < last; ++line) {
    const int64_t b = line / rows, h = line % rows;
    accumulate<kDepthwise>(acc, patch.start + b * patch.image + h * patch.row, offset, patch.column,
                           delta.start + b * delta.image + h * delta.row, delta.column, columns);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    acc[i].add(TileRow<Acc, kHalves>::at(sums + i * sums_per_row));
    acc[i].store(sums + i * sums_per_row);
  }
}

template <bool kDepthwise, typename Acc, int kHalves>
struct AddToRows {
  template <int kTileRows>
  static constexpr auto kFunction = &add_to_rows<kTileRows, kDepthwise, Acc, kHalves>;
};

// Delta of a tile, a channel block at a time.
template <typename Acc>
struct DeltaBlocks {
  Pixels<Acc> first;
  int64_t lane;  // distance of lanes: block `lane` starts there

  CONVBP_INLINE Pixels<Acc> at(int64_t l) const {
    Pixels<Acc> block = first;
    block.start += l * lane;
    return block;
  }
};

// Delta of a tile, from channel o0 on: in place in its tensor where `lanes` whole blocks are
// neighbours there, else packed as [channel block][pixel][lane of the block].
template <typename T, typename Acc, int kBlock>
CONVBP_TARGET DeltaBlocks<Acc> delta_of_tile(const TileExtent& e, View<const T> delta, int64_t o0,
                                             int64_t lanes, Acc* packed) {
  if constexpr (std::is_same_v<T, Acc>)
    if (delta.stride[1] == 1 && lanes % kBlock == 0)
      return {{&delta.at(e.b0, o0, e.h0, e.w0), delta.stride[0], delta.stride[2], delta.stride[3]},
              1};
  for (int64_t lane = 0; lane < lanes; lane += kBlock) {
    Acc* to = packed + lane * e.pixels();
    const int64_t width = std::min<int64_t>(kBlock, lanes - lane);
    for (int64_t b = 0; b < e.images; ++b)
      for (int64_t h = 0; h < e.rows; ++h, to += e.columns * kBlock)
        pack_row(&delta.at(e.b0 + b, o0 + lane, e.h0 + h, e.w0), delta.stride[1], delta.stride[3],
                 width, e.columns, to, int64_t{kBlock});
  }
  return {{packed, e.rows * e.columns * kBlock, e.columns * kBlock, kBlock}, e.pixels()};
}

// Where in the patch each row of the weight gradient, a tap and a channel, reads its first pixel.
template <bool kDepthwise>
void locate_rows(const DirectWeightGrad& p, int64_t patch_columns, int64_t panel_size,
                 int64_t channels, std::vector<int64_t>& row_offset) {
  const GatherConv& c = p.gather;
  for (int64_t tap = 0, row = 0; tap < c.taps(); ++tap) {
    const int64_t place =
        c.h.tap_row(tap / c.w.tap_count()) * patch_columns + c.w.tap_row(tap % c.w.tap_count());
    for (int64_t k = 0; k < (kDepthwise ? 1 : channels); ++k, ++row)
      row_offset[row] = place * p.panel() + k / p.panel() * panel_size + k % p.panel();
  }
}

// Adds a tile to the sums of `rows` rows. Few pixels are taken at a time: each row reads them
// again, from the first-level cache.
template <typename Acc, int kHalves, bool kDepthwise>
CONVBP_TARGET void add_tile(const TileExtent& e, const Pixels<Acc>& patch,
                            const int64_t* row_offset, int64_t rows, const DeltaBlocks<Acc>& delta,
                            int64_t lanes, Acc* sums, int64_t sums_per_row) {
  constexpr int kBlock = TileRow<Acc, kHalves>::kLanes, kTileRows = tile_rows(kHalves);
  const int64_t lines = e.images * e.rows, step = divide_up(kNearPixels, e.columns);
  const int64_t rows_at_once = balanced_tile(rows, kTileRows);
  for (int64_t line = 0; line < lines; line += step)
    for (int64_t row0 = 0; row0 < rows; row0 += rows_at_once) {
      const auto add = tile_function<AddToRows<kDepthwise, Acc, kHalves>, kTileRows>(
          std::min(rows_at_once, rows - row0));
      for (int64_t lane = 0; lane < lanes; lane += kBlock)
        add(line, std::min(line + step, lines), e.rows, e.columns, patch, row_offset + row0,
            delta.at(lane), sums + row0 * sums_per_row + lane, sums_per_row);
    }
}

// Adds a tile to the sums of the bias gradient.
template <typename Acc, int kHalves>
CONVBP_TARGET void add_tile_to_bias(const TileExtent& e, const DeltaBlocks<Acc>& delta,
                                    int64_t lanes, Acc* sums) {
  using Row = TileRow<Acc, kHalves>;
  for (int64_t lane = 0; lane < lanes; lane += Row::kLanes) {
    const Pixels<Acc> block = delta.at(lane);
    Row sum = {};
    for (int64_t line = 0; line < e.images * e.rows; ++line)
      for (int64_t w = 0; w < e.columns; ++w)
        sum.add(Row::at(block.start + line / e.rows * block.image + line % e.rows * block.row +
                        w * block.column));
    sum.add(Row::at(sums + lane));
    sum.store(sums + lane);
  }
}

// A chunk's share of some channels and lanes of the weight gradient. Its sums, [row][lane], are
// added up tile by tile; the last row is the bias gradient's.
template <typename T, typename Acc, int kHalves, bool kDepthwise>
CONVBP_TARGET void weight_grad_tasks(const DirectWeightGrad& p, View<const T> input,
                                     View<const T> delta, bool with_bias, Acc* sums, int64_t begin,
                                     int64_t end) {
  constexpr int kBlock = TileRow<Acc, kHalves>::kLanes;
  const GatherConv& c = p.gather;
  const int64_t most_pixels = c.batch_tile * c.h.tile * c.w.tile;
  const int64_t most_patch = patch_size(c, c.batch_tile, c.h.tile, c.w.tile, p.panel());
  const Scratch patch_block =
      Scratch::take<Acc>(ScratchName::kPatch, p.panels(p.ic_per_task) * most_patch);
  const Scratch delta_block =
      Scratch::take<Acc>(ScratchName::kDelta, most_pixels * (p.oc_per_task + kBlock));
  Acc* const patch = patch_block.template data<Acc>();
  Acc* const packed_delta = delta_block.template data<Acc>();
  std::vector<int64_t> row_offset(p.rows(p.ic_per_task));
  std::array<int64_t, 3> located{};

  for (int64_t task = begin; task < end; ++task) {
    const int64_t oc_task = task % p.oc_tasks();
    const int64_t ic_task = task / p.oc_tasks() % p.ic_tasks();
    const int64_t g = task / p.oc_tasks() / p.ic_tasks() % c.groups;
    const int64_t chunk = task / p.parts();
    const int64_t o0 = oc_task * p.oc_per_task, k0 = ic_task * p.ic_per_task;
    const int64_t lanes = std::min(p.oc_per_task, c.result_channels(g) - o0);
    const int64_t channels = std::min(p.ic_per_task, c.source_channels(g) - k0);
    const int64_t rows = p.rows(channels);
    Acc* const task_sums = sums + task * p.sums_per_task();
    fill_zero(task_sums, (rows + 1) * p.sums_per_row());

    const int64_t last_tile = (chunk + 1) * p.tiles() / p.chunks;
    for (int64_t tile = chunk * p.tiles() / p.chunks; tile < last_tile; ++tile) {
      const TileExtent e = tile_extent(c, tile / c.spatial_tiles(), tile % c.spatial_tiles());
      const int64_t patch_columns = c.w.patch_rows(e.columns);
      const int64_t panel_size = patch_size(c, e.images, e.rows, e.columns, p.panel());
      pack_patch(c, e, input, g * c.in_channels + k0, channels, patch, p.panel(), panel_size);
      const std::array<int64_t, 3> shape{patch_columns, panel_size, channels};
      if (shape != located)
        locate_rows<kDepthwise>(p, patch_columns, panel_size, channels, row_offset);
      located = shape;

      const Pixels<Acc> pixels{patch, panel_size / e.images,
                               c.h.position_row() * patch_columns * p.panel(),
                               c.w.position_row() * p.panel()};
      const DeltaBlocks<Acc> blocks =
          delta_of_tile<T, Acc, kBlock>(e, delta, g * c.out_channels + o0, lanes, packed_delta);
      add_tile<Acc, kHalves, kDepthwise>(e, pixels, row_offset.data(), rows, blocks, lanes,
                                         task_sums, p.sums_per_row());
      if (with_bias && ic_task == 0)
        add_tile_to_bias<Acc, kHalves>(e, blocks, lanes, task_sums + rows * p.sums_per_row());
    }
  }
}

template <typename T, typename Acc, int kHalves>
constexpr LaneKernels<T, Acc> lane_kernels() {
  return {&gather_conv_tasks<T, Acc, kHalves, Product::kNumbers>,
          &weight_grad_tasks<T, Acc, kHalves, false>};
}

// Half vectors are compiled where they cost half as much.
template <typename T, typename Acc>
LaneKernels<T, Acc> kernels_of(int64_t halves) {
  if constexpr (CONVBP_VECTOR_BYTES == 64) {
    if (halves == 1) return lane_kernels<T, Acc, 1>();
    if (halves == 3) return lane_kernels<T, Acc, 3>();
    if (halves == 5) return lane_kernels<T, Acc, 5>();
  }
  return halves == 2 ? lane_kernels<T, Acc, 2>() : lane_kernels<T, Acc, 4>();
}

template <typename T, typename Acc>
KernelTable<T, Acc> kernels() {
  constexpr auto kNumbers = Product::kNumbers, kDepthwise = Product::kDepthwise;
  KernelTable<T, Acc> table = {
      CONVBP_VECTOR_BYTES,
      &pack_weight<1, T, Acc>,
      CONVBP_VECTOR_BYTES == 64 ? &gather_conv_tasks<T, Acc, 8, kNumbers> : nullptr,
      &kernels_of<T, Acc>,
      {{&gather_conv_tasks<T, Acc, 2, kDepthwise>, &weight_grad_tasks<T, Acc, 2, true>},
       {&gather_conv_tasks<T, Acc, 4, kDepthwise>, &weight_grad_tasks<T, Acc, 4, true>}},
      &nchw_tasks_of<T, Acc>,
      kMostNchwChannels,
      nullptr,
      {}};
#if defined(CONVBP_BF16_PAIRS)
  table.pack_pairs = &pack_weight<2, T, T>;
  table.pairs[0] = &gather_conv_tasks<T, Acc, 2, Product::kPairs>;
  table.pairs[1] = &gather_conv_tasks<T, Acc, 4, Product::kPairs>;
#endif
  return table;
}

// The element types every instruction set is compiled for.
template KernelTable<BFloat16, float> kernels();
#if !defined(CONVBP_BF16_PAIRS)
template KernelTable<float, float> kernels();
template KernelTable<double, double> kernels();
template KernelTable<Half, float> kernels();
#endif

}  // namespace convbp::direct::CONVBP_ISA
