// The functions of an instruction set for the pointwise algorithm. <instruction set>.cpp makes the
// tables, pointwise.cpp chooses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/epilogue.h"
#include "cpu/gather_conv.h"

namespace convbp::pointwise {

// The places of a pixel's channels, all groups', in channels_last: pieces of `piece` neighbours
// begin at `at`. A pixel has one piece, a patch has one for each row of the filter.
struct Channels {
  int64_t piece;
  std::vector<int64_t> at;
  int64_t operator()(int64_t channel) const { return at[channel / piece] + channel % piece; }
};

// result[pixel, channel] = sum over `in_channels` of source[pixel, :] weight[channel, :]. A stride
// is in the strides of the views: height and width are those of the smaller tensor.
struct Product {
  int64_t batch, height, width;
  int64_t groups;
  int64_t in_channels;
  int64_t channels;
  Channels source;
  int64_t block;              // channels of a block of packed weights
  int64_t pixel_block = 1;    // pixels a task takes
  int64_t channel_split = 1;  // tasks that share these pixels, each with some channel blocks

  int64_t pixels() const { return batch * height * width; }
  int64_t blocks() const { return divide_up(channels, block); }
  int64_t packed_block_size() const { return in_channels * block; }
  int64_t pixel_tasks() const { return groups * divide_up(pixels(), pixel_block); }
  int64_t tasks() const { return pixel_tasks() * channel_split; }
};

// The weight gradient: sums[row, lane] = sum over pixels of the row operand's channel times the
// lane operand's. A task has a range of rows, a range of lanes and a chunk of the pixels.
struct Outer {
  // Rows or lanes of a task: its sums stay in the second-level cache.
  static constexpr int64_t kRange = 256;
  static constexpr int64_t kPanel = 128;  // pixels summed in registers

  int64_t batch, height, width;
  int64_t groups;
  int64_t rows, lanes;
  Channels row_channels;
  int64_t block;    // lanes computed together
  bool rows_are_o;  // rows are output channels and lanes are input channels, or the other way round
  int64_t chunks = 1;

  int64_t pixels() const { return batch * height * width; }
  int64_t row_range() const { return std::min(rows, kRange); }
  int64_t lane_range() const { return std::min(divide_up(lanes, block), kRange / block) * block; }
  int64_t row_ranges() const { return divide_up(rows, kRange); }
  int64_t lane_ranges() const { return divide_up(lanes, lane_range()); }
  int64_t parts() const { return groups * row_ranges() * lane_ranges(); }
  int64_t tasks() const { return chunks * parts(); }
  // Sums of a task: [row][lane], then the sums of delta.
  int64_t sums_per_part() const { return row_range() * lane_range() + kRange; }
};

// Kernels for blocks of one width in the lanes.
template <typename T>
struct LaneKernels {
  int rows;  // rows of the register tile
  void (*channels_last)(const Product&, View<const T> source, const T* packed, const Epilogue<T>&,
                        View<T> result, int64_t begin, int64_t end);
  void (*outer[2])(const Outer&, View<const T> rows, View<const T> lanes, bool with_bias, T* sums,
                   int64_t begin, int64_t end);  // [channels_last, NCHW]
};

template <typename T>
struct KernelTable {
  int vector_bytes;
  int rows;  // rows of the register tile, NCHW
  int64_t lanes() const { return vector_bytes / static_cast<int64_t>(sizeof(T)); }
  // Packs the weights: [group][channel block][in_channels][channel of the block]; task: a block.
  void (*pack_weight)(const Product&, const T* weight, const WeightStrides&, T* packed,
                      int64_t begin, int64_t end);
  void (*nchw)(const Product&, View<const T> source, const T* packed, const Epilogue<T>&,
               View<T> result, int64_t begin, int64_t end);
  // Kernels for blocks of this number of half vectors: 2 or 4, or, where vectors have 64 bytes, 1
  // to 5.
  LaneKernels<T> (*kernels)(int64_t halves);
  // The kernels for this block.
  LaneKernels<T> kernels_for(int64_t block) const { return kernels(2 * block / lanes()); }
  // Adds up the chunks, in their order, and stores them; task: a part.
  void (*finish)(const Outer&, T* sums, View<T> weight_grad, T* bias_grad, int64_t begin,
                 int64_t end);
};

CONVBP_IN_EACH_ISA(template <typename T> KernelTable<T> kernels();)

}  // namespace convbp::pointwise
