// The Winograd algorithm in numbers. A tile makes out x out results of each of its result phases; a
// task takes the tiles of an extent of its gather convolution.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/gather_conv.h"

namespace convbp::winograd {

// The gap between streams. Streams a power of two apart meet in the same cache set: one line more
// keeps them apart. A vector that reaches past the end of its stream ends in the gap.
constexpr int64_t kStreamPad = 16;
// Channels whose share of the weight gradient is written together.
constexpr int64_t kTotalChannels = 16;

// The case that kernels are compiled for. With stride 2 each axis has two phases (transform.h), of
// the source or of the result.
struct Form {
  int64_t out = 4;   // results of a tile, axis and phase
  int64_t taps = 3;  // taps of an axis' first phase
  int64_t source_phases = 1, result_phases = 1;

  int64_t phases() const { return source_phases * result_phases; }
  // Points of a tile's axis; an axis with two phases has those of both, the second one less.
  int64_t tile() const { return out + taps - 1; }
  int64_t points(int64_t axis_phases) const { return axis_phases == 2 ? 2 * tile() - 1 : tile(); }
  // Products of a tile, a channel and a filter.
  int64_t products() const { return points(phases()) * points(phases()); }
  // Slots of a point of the tile: there the products of all source phases are one sum.
  int64_t slots() const { return source_phases * source_phases; }
  // Points of a tile: of its transformed source; of its filters and its sums.
  int64_t source_points() const { return tile() * tile(); }
  int64_t result_points() const { return points(result_phases) * points(result_phases); }
};

// The positions that a tile reads and writes along an axis.
struct TileAxis {
  struct Phase {
    std::array<int64_t, 5> taps;     // the filter's index of each tap
    int64_t source = 0, result = 0;  // the first position and the first result
  };
  std::array<Phase, 2> phases;
  int64_t source_step = 1, result_step = 1;  // from one position, one result to the next
  int64_t results = 0;                       // results of the whole axis
};

struct Winograd {
  GatherConv gather;
  Form form;
  TileAxis h, w;
  int64_t lanes = 1;       // lanes of a vector
  bool streamed = false;   // the result is stored past the caches
  int64_t most_tiles = 1;  // most tiles of a task
  // Source channels a task takes: all of a group, but for the weight gradient, whose sums of a task
  // should stay in the cache. Its chunks and channels are as in direct::DirectWeightGrad.
  int64_t ic_per_task = 1;
  int64_t oc_per_task = 1;
  int64_t chunks = 1;

  static int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
  // Numbers of a transformed tile at a point: [slot][channel].
  int64_t pitch() const { return form.slots() * ic_per_task; }
  int64_t source_stream() const { return most_tiles * pitch() + kStreamPad; }
  int64_t product_stream() const { return most_tiles * gather.oc_block + kStreamPad; }
  // Transformed filters of a channel block: [point][slot][channel][lane of the block].
  int64_t filter_stream() const {
    return form.slots() * gather.in_channels * gather.oc_block + kStreamPad;
  }
  int64_t filter_block() const { return form.result_points() * filter_stream(); }
  // An extent's rows or columns, enlarged to whole tiles.
  int64_t whole(int64_t count) const { return round_up(count, form.out); }

  int64_t oc_tasks() const { return divide_up(gather.out_channels, oc_per_task); }
  int64_t ic_tasks() const { return divide_up(gather.in_channels, ic_per_task); }
  int64_t extents() const { return gather.batch_tiles() * gather.spatial_tiles(); }
  int64_t tasks_per_chunk() const { return gather.groups * ic_tasks() * oc_tasks(); }
  int64_t tasks() const { return chunks * tasks_per_chunk(); }
  // The parts in which a task's share of the weight gradient is written, kTotalChannels each.
  int64_t parts_per_task() const { return divide_up(ic_per_task, kTotalChannels); }
  // Sums of a task: [point][slot][channel][lane], then the bias gradient's lanes.
  int64_t bias_sums() const { return form.result_points() * pitch() * oc_per_task; }
  int64_t sums_per_task() const { return bias_sums() + oc_per_task; }
};

}  // namespace convbp::winograd
