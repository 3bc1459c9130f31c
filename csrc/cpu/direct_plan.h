// What the direct algorithm computes, in numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tap_conv.h"

namespace convbp::direct {

// The phases of an axis: one of the forward convolution, of the input gradient one for each remainder
// modulo the stride. A task computes them all from one patch.
struct Phases {
  std::vector<Axis> axes;
  int64_t spacing() const { return axes.front().spacing; }
  // Results of `positions` positions from t: of all phases, and of one.
  int64_t results(int64_t t, int64_t positions) const {
    int64_t size = 0;
    for (const Axis& phase : axes) size += phase.count;
    return std::min((t + positions) * spacing(), size) - t * spacing();
  }
  static int64_t positions(const Axis& phase, int64_t t, int64_t positions) {
    return std::max<int64_t>(0, std::min(t + positions, phase.count) - t);
  }
};

// The axes of `tap` are those of the patch: their offsets are the ones of any phase.
struct DirectConv {
  TapConv tap;
  Phases h, w;

  int64_t phases() const { return static_cast<int64_t>(h.axes.size() * w.axes.size()); }
  const Axis& h_phase(int64_t phase) const { return h.axes[phase / w.axes.size()]; }
  const Axis& w_phase(int64_t phase) const { return w.axes[phase % w.axes.size()]; }
  // Packed weights of a lane block: [phase][tap][depth][lane of the block].
  int64_t packed_phase_size(int64_t phase) const {
    return h_phase(phase).tap_count() * w_phase(phase).tap_count() * tap.depth() * tap.block;
  }
  int64_t packed_block_size() const {
    int64_t size = 0;
    for (int64_t phase = 0; phase < phases(); ++phase) size += packed_phase_size(phase);
    return size;
  }
};

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
