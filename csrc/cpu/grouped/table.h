// The functions of an instruction set for the grouped algorithm. <instruction set>.cpp makes the
// tables, grouped.cpp chooses.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/epilogue.h"
#include "cpu/gather_conv.h"

namespace convbp::grouped {

// The most channels a group: with more, the direct algorithm fills its vectors.
constexpr int64_t kMostChannels = 16;

// The gather convolution, and how its groups lie in vectors. A *group block* is as many whole
// groups as one vector holds, or one group that takes one vector or more. A task is a group block
// of a tile; for the weight gradient, some group blocks of a chunk of tiles, which has its own
// sums.
struct Grouped {
  GatherConv gather;  // its oc_block is a vector, its batch_tile one image
  int64_t groups_per_block = 1;
  int64_t group_blocks_per_task = 1;
  int64_t chunks = 1;

  int64_t group_blocks() const { return divide_up(gather.groups, groups_per_block); }
  int64_t group_block_tasks() const { return divide_up(group_blocks(), group_blocks_per_task); }
  int64_t groups_of(int64_t group_block) const {
    return std::min(groups_per_block, gather.groups - group_block * groups_per_block);
  }
  // Vectors of a group block's results, and numbers a pixel of its source takes.
  int64_t vectors() const {
    return divide_up(groups_per_block * gather.out_channels, gather.oc_block);
  }
  int64_t pitch() const { return groups_per_block > 1 ? gather.oc_block : kMostChannels; }
  int64_t lanes_of(int64_t group_block, int64_t vector) const {
    return std::min(gather.oc_block,
                    groups_of(group_block) * gather.out_channels - vector * gather.oc_block);
  }
  int64_t tiles() const { return gather.batch * gather.spatial_tiles(); }
  // The offset of pixel (h, w) of a vector of image b's results, in a tensor with these strides.
  int64_t result_place(int64_t b, int64_t h, int64_t w, int64_t group_block, int64_t vector,
                       const int64_t* stride) const {
    return b * stride[0] +
           (group_block * groups_per_block * gather.out_channels + vector * gather.oc_block) *
               stride[1] +
           (gather.h.first + h * gather.h.spacing) * stride[2] +
           (gather.w.first + w * gather.w.spacing) * stride[3];
  }
  // Filters of a vector of lanes, [tap][channel of the sum][lane]. In their gradient the sums of
  // the bias gradient come after them.
  int64_t filters_size() const { return gather.taps() * gather.in_channels * gather.oc_block; }
  int64_t sums_per_vector() const { return filters_size() + gather.oc_block; }
  int64_t sums_per_chunk() const { return group_blocks() * vectors() * sums_per_vector(); }
};

template <typename T>
struct KernelTable {
  int vector_bytes;
  bool permutes;  // an instruction permutes the lanes of a vector
  // Filters: [group_block][vector][Grouped's].
  void (*gather_conv)(const Grouped&, View<const T> source, const T* filters, const Epilogue<T>&,
                      View<T> result, int64_t begin, int64_t end);
  // Sums: [chunk][group_block][vector][Grouped's].
  void (*weight_grad)(const Grouped&, View<const T> input, View<const T> delta, T* sums,
                      int64_t begin, int64_t end);
};

CONVBP_IN_EACH_ISA(template <typename T> KernelTable<T> kernels();)

}  // namespace convbp::grouped
