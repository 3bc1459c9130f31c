// The direct algorithm's work in numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/gather_conv.h"

namespace convbp::direct {

// The phases of an axis: the forward convolution has one, the input gradient one for each remainder
// modulo the stride. A task computes them all from one patch.
struct Phases {
  std::vector<ConvAxis> axes;
  int64_t spacing() const { return axes.front().spacing; }
  // The results of `positions` positions from t on: of all phases, and of one.
  int64_t results(int64_t t, int64_t positions) const {
    int64_t size = 0;
    for (const ConvAxis& phase : axes) size += phase.count;
    return std::min((t + positions) * spacing(), size) - t * spacing();
  }
  static int64_t positions(const ConvAxis& phase, int64_t t, int64_t positions) {
    return std::max<int64_t>(0, std::min(t + positions, phase.count) - t);
  }
};

// A direct convolution. `gather` has the patch's axes: their offsets are those of any phase.
struct DirectConv {
  GatherConv gather;
  Phases h, w;
  int64_t channels = 0;  // source channels of a group
  // True where two channels are one number, a pair of bfloat16 whose products the processor adds at
  // once: the gather convolution's channels are pairs.
  bool pairs = false;
  // True where the patch is NCHW and pixels lie in the vector lanes: for few channels, which would
  // leave lanes empty. A block then has as many result channels as the register tile has rows.
  bool nchw = false;
  bool streamed = false;  // results go past the caches

  int64_t phases() const { return static_cast<int64_t>(h.axes.size() * w.axes.size()); }
  const ConvAxis& h_phase(int64_t phase) const { return h.axes[phase / w.axes.size()]; }
  const ConvAxis& w_phase(int64_t phase) const { return w.axes[phase % w.axes.size()]; }
  // Packed weights of a channel block: [phase][tap][depth][lane of the block], with `nchw`
  // [phase][depth][tap][lane of the block].
  int64_t packed_phase_size(int64_t phase) const {
    return h_phase(phase).tap_count() * w_phase(phase).tap_count() * gather.depth() *
           gather.oc_block;
  }
  int64_t packed_block_size() const {
    int64_t size = 0;
    for (int64_t phase = 0; phase < phases(); ++phase) size += packed_phase_size(phase);
    return size;
  }
};

// The weight gradient: row j = (tap, k) of the gradient against filter o, summed over the pixels of
// a chunk of tiles, then over the chunks. A task takes some channels of the input (ic) against some
// of the output (oc), so that its sums stay in the second-level cache. Chunks depend on the problem
// alone, so the order of every sum does too.
struct DirectWeightGrad {
  GatherConv gather;  // the forward gather convolution: its in_channels are K, its out_channels O
  int64_t chunks = 1;
  int64_t ic_per_task = 1;
  int64_t oc_per_task = 1;

  // Channels of a panel of the patch. Panels keep the pixels that a row of the register tile reads
  // near each other, and never a power of two of cache lines apart.
  static constexpr int64_t kPanel = 16;
  int64_t panel() const {
    return gather.depthwise ? gather.in_channels : std::min(gather.in_channels, kPanel);
  }
  int64_t panels(int64_t channels) const {
    return gather.depthwise ? 1 : divide_up(channels, kPanel);
  }
  int64_t rows(int64_t channels) const { return gather.taps() * (gather.depthwise ? 1 : channels); }
  int64_t ic_tasks() const {
    return std::max<int64_t>(1, divide_up(gather.in_channels, ic_per_task));
  }
  int64_t oc_tasks() const { return divide_up(gather.out_channels, oc_per_task); }
  int64_t tiles() const { return gather.batch_tiles() * gather.spatial_tiles(); }
  // Tasks of one chunk, and of all chunks: [chunk][group][channels][lanes].
  int64_t parts() const { return gather.groups * ic_tasks() * oc_tasks(); }
  int64_t tasks() const { return chunks * parts(); }
  // Sums of one task: a row of lanes for each (tap, k), then the bias row.
  int64_t sums_per_row() const { return std::min(oc_per_task, gather.blocks() * gather.oc_block); }
  int64_t sums_per_task() const { return (rows(ic_per_task) + 1) * sums_per_row(); }
};

}  // namespace convbp::direct
