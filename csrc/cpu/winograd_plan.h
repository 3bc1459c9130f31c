// The Winograd algorithm in numbers. A tile is kTile x kTile source positions and kOut x kOut
// results; a task takes the tiles of an extent of its tap convolution.
#pragma once

#include <cstdint>

#include "tap_conv.h"

namespace convbp::winograd {

// Streams a power of two apart meet in the same cache set: one line more keeps them apart.
constexpr int64_t kApart = 16;
// Channels whose share of the weight gradient is written together.
constexpr int64_t kTotalChannels = 16;

struct Winograd {
  TapConv tap;
  int64_t out = 4;   // results a tile and axis
  int64_t lanes = 1; // of a vector
  int64_t most_tiles = 1;  // of a task
  // Source channels a task takes: all of a group, but for the weight gradient, whose sums of a task
  // should stay in the cache. Its chunks and lanes are as in direct::WeightGrad.
  int64_t channels_a_task = 1;
  int64_t lanes_a_task = 1;
  int64_t chunks = 1;

  int64_t positions() const { return (out + 2) * (out + 2); }
  static int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
  // Channels of a transformed source pixel, whole vectors.
  int64_t pitch() const { return round_up(channels_a_task, lanes); }
  int64_t source_stream() const { return most_tiles * pitch() + kApart; }
  int64_t product_stream() const { return most_tiles * tap.block + kApart; }
  // Transformed filters of a lane block: [position][channel][lane of the block].
  int64_t filter_stream() const { return tap.reduce * tap.block + kApart; }
  int64_t filter_block() const { return positions() * filter_stream(); }
  // An extent's rows and columns up to whole tiles.
  int64_t whole(int64_t count) const { return round_up(count, out); }

  // Of the weight gradient: transformed delta of a lane block, [position][tile][lane].
  int64_t lane_tasks() const { return divide_up(tap.lanes, lanes_a_task); }
  int64_t channel_tasks() const { return divide_up(tap.reduce, channels_a_task); }
  int64_t extents() const { return tap.batch_tiles() * tap.spatial_tiles(); }
  int64_t tasks_a_chunk() const { return tap.groups * channel_tasks() * lane_tasks(); }
  int64_t tasks() const { return chunks * tasks_a_chunk(); }
  // What is written of a task's share of the weight gradient, kTotalChannels at a time.
  int64_t parts_a_task() const { return divide_up(channels_a_task, kTotalChannels); }
  // Sums of a task: [position][channel][lane], then the bias gradient's lanes.
  int64_t sums_a_task() const {
    return (positions() * channels_a_task + 1) * lanes_a_task;
  }
};

}  // namespace convbp::winograd
