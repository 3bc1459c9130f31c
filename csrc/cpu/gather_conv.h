// A convolution as the vector kernels see it.
//
// Forward (L1) and input gradient (L6) are one computation, a *gather convolution*: output
// position t on an axis gathers, tap by tap, from source position t * step + offset[tap].
//   - forward: step is the stride, offset[r] = r * dilation - pad, source the input;
//   - input gradient: input rows i that leave the same remainder modulo the stride form a
//     phase and use the same taps; within a phase, step is 1 and source is delta. Stride 1
//     has one phase: the full convolution with the flipped filter of L6.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/conv_problem.h"
#include "core/integers.h"

namespace convbp {

// One axis of a gather convolution. A run of output positions reads some of the source rows, and
// the packed patch holds exactly those rows. Neighbouring taps mostly share rows (`dense`: the
// patch is a window of the source). With a dilation or stride larger than the filter they do not,
// and the patch holds for each position the rows of its own taps. Either way a patch has at most
// positions * taps rows, however far the taps reach.
struct ConvAxis {
  int64_t count = 0;  // output positions
  int64_t first = 0;  // position t is written at first + t * spacing
  int64_t spacing = 1;
  int64_t source_size = 0;
  int64_t step = 1;
  std::vector<int64_t> taps;    // the filter's own index of each tap
  std::vector<int64_t> offset;  // one per tap
  int64_t tile = 1;             // positions a task takes on this axis
  bool dense = true;

  int64_t tap_count() const { return static_cast<int64_t>(taps.size()); }

  int64_t min_offset() const {
    return offset.empty() ? 0 : *std::min_element(offset.begin(), offset.end());
  }

  int64_t dense_rows(int64_t positions) const {
    if (offset.empty()) return 0;
    const int64_t reach = *std::max_element(offset.begin(), offset.end()) - min_offset();
    return (positions - 1) * step + reach + 1;
  }

  // Rows of the patch for a run of positions, in the cheaper of the two forms.
  int64_t cheapest_rows(int64_t positions) const {
    return std::min(dense_rows(positions), positions * tap_count());
  }

  void set_tile(int64_t positions) {
    tile = positions;
    dense = dense_rows(tile) <= tile * tap_count();
  }

  int64_t patch_rows(int64_t positions) const {
    return dense ? dense_rows(positions) : positions * tap_count();
  }
  // Patch row of (position t, tap q) is position_row() * t + tap_row(q).
  int64_t position_row() const { return dense ? step : tap_count(); }
  int64_t tap_row(int64_t q) const { return dense ? offset[q] - min_offset() : q; }
  // Source position that patch row `row` holds, for a run that starts at position t0.
  int64_t source_position(int64_t row, int64_t t0) const {
    if (dense) return t0 * step + min_offset() + row;
    return (t0 + row / tap_count()) * step + offset[row % tap_count()];
  }
};

struct GatherConv {
  int64_t batch = 0;
  int64_t groups = 1;
  int64_t in_channels = 0;   // channels summed over, per group
  int64_t out_channels = 0;  // channels computed, per group: they lie in the vector lanes
  int64_t oc_block = 1;      // of the out_channels, computed together
  // A depthwise convolution has one channel a group to compute, and only taps to sum over. It is
  // computed a block of groups at a time: `groups` counts blocks, `in_channels` and `out_channels`
  // are the block's size. Channel l of the result is made of channel l of the source alone, and the
  // last block ends with channel number `channels`.
  bool depthwise = false;
  int64_t channels = 0;  // channels of the result, all groups together
  ConvAxis h, w;
  int64_t batch_tile = 1;  // images a task takes
  int64_t oc_split = 1;    // tasks that share a tile, each with some of the blocks of channels

  int64_t blocks() const { return divide_up(out_channels, oc_block); }
  int64_t taps() const { return h.tap_count() * w.tap_count(); }
  // Products that a tap contributes to a sum.
  int64_t depth() const { return depthwise ? 1 : in_channels; }
  // Channels of the source and of the result that group g really has.
  int64_t result_channels(int64_t g) const {
    return std::min(out_channels, channels - g * out_channels);
  }
  int64_t source_channels(int64_t g) const { return depthwise ? result_channels(g) : in_channels; }
  // Packed weights of a block of channels: [tap][depth][channel of the block].
  int64_t packed_block_size() const { return taps() * depth() * oc_block; }
  int64_t batch_tiles() const { return divide_up(batch, batch_tile); }
  int64_t spatial_tiles() const { return divide_up(h.count, h.tile) * divide_up(w.count, w.tile); }
  int64_t pixel_tasks() const { return batch_tiles() * groups * spatial_tiles(); }
  int64_t tasks() const { return pixel_tasks() * oc_split; }
};

// Strides of the weight as the gather convolution sees it, in elements. Depthwise, a computed
// channel is a group of the convolution.
struct WeightStrides {
  int64_t group, out_channel, in_channel, r, s;
};

// The axes of the forward convolution, of a phase of the input gradient and of all its phases.
ConvAxis forward_axis(const ConvProblem& problem, Spatial axis);
ConvAxis input_grad_axis(const ConvProblem& problem, Spatial axis, int64_t phase);
std::vector<ConvAxis> input_grad_axes(const ConvProblem& problem, Spatial axis);

// Channels computed together: two vectors, or one where one holds them all.
inline int64_t channel_block(int64_t channels, int64_t vector) {
  return channels <= vector ? vector : 2 * vector;
}

// The block that leaves the fewest lanes empty; of such blocks the largest, up to two and a half
// vectors. Half vectors count where they cost half as much: where vectors have 64 bytes.
inline int64_t fitting_channel_block(int64_t channels, int64_t vector, int64_t vector_bytes) {
  if (vector_bytes < 64) return channel_block(channels, vector);
  const int64_t half = vector / 2;
  int64_t best = 5 * half;
  for (int64_t block = best - half; block > 0; block -= half)
    if (divide_up(channels, block) * block < divide_up(channels, best) * best) best = block;
  return best;
}

// The gather convolution of the problem with these axes and channels a group, on vectors of that
// many lanes; its tiles are yet to be chosen.
GatherConv make_gather_conv(const ConvProblem& problem, ConvAxis h, ConvAxis w, int64_t in_channels,
                            int64_t out_channels, int64_t vector);

WeightStrides weight_strides(const ConvProblem& problem, const GatherConv& c, const int64_t* stride,
                             int out_channel, int in_channel);

// The tile size that makes as many tiles as `tile` does, but nearly equal ones.
int64_t balanced_tile(int64_t count, int64_t tile);

// Cuts tiles, down to `unit` rows and about `least_pixels`, until there are tasks for every thread.
void spread_over_threads(GatherConv& c, int64_t unit, int64_t least_pixels);

}  // namespace convbp
