// The direct algorithm's weight gradient in numbers.
#pragma once

#include <cstdint>

#include "tap_conv.h"

namespace convbp::direct {

// The weight gradient: row j = (tap, k) of the gradient against lane o, summed over the
// pixels of a chunk of tiles, then over the chunks. Chunks depend on the problem alone, so
// the order of every sum does too.
struct WeightGrad {
  TapConv tap;              // the forward tap convolution: its reduce is K, its lanes O
  int64_t chunks = 1;
  int64_t lanes_a_task = 64;

  // Room of a pixel in the patch. Channels a power of two apart meet in the same cache sets.
  int64_t pitch() const { return tap.reduce % 128 ? tap.reduce : tap.reduce + 16; }
  int64_t lanes_padded() const { return tap.blocks() * tap.block; }
  int64_t rows() const { return tap.taps() * tap.depth(); }
  int64_t lane_tasks() const { return divide_up(tap.lanes, lanes_a_task); }
  int64_t tiles() const { return tap.batch_tiles() * tap.spatial_tiles(); }
  int64_t tasks() const { return chunks * tap.groups * lane_tasks(); }
  // Sums of one chunk: per group, rows() rows of lanes_padded() sums, then the bias row.
  int64_t sums_a_group() const { return (rows() + 1) * lanes_padded(); }
  int64_t sums_a_chunk() const { return tap.groups * sums_a_group(); }
};

}  // namespace convbp::direct
