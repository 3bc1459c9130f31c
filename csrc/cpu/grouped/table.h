// What an instruction set offers to the grouped algorithm. <instruction set>.cpp makes the
// tables, grouped.cpp chooses.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/epilogue.h"
#include "cpu/gather_conv.h"

namespace convbp::grouped {

// More channels a group, and the direct algorithm fills its vectors.
constexpr int64_t kMostChannels = 16;

// The gather convolution, and how its groups lie in vectors. A *bundle* is as many whole groups as
// one vector holds, or one group that takes one vector or more. A task is a bundle of a tile; for
// the weight gradient, some bundles of a chunk of tiles, which has its own sums.
struct Grouped {
  GatherConv tap;        // its block is a vector, its batch_tile one image
  int64_t together = 1;  // groups a bundle
  int64_t bundles_per_task = 1;
  int64_t chunks = 1;

  int64_t bundles() const { return divide_up(tap.groups, together); }
  int64_t bundle_tasks() const { return divide_up(bundles(), bundles_per_task); }
  int64_t groups_of(int64_t bundle) const {
    return std::min(together, tap.groups - bundle * together);
  }
  // Vectors of a bundle's results, and numbers a pixel of its source takes.
  int64_t vectors() const { return divide_up(together * tap.lanes, tap.block); }
  int64_t pitch() const { return together > 1 ? tap.block : kMostChannels; }
  int64_t lanes_of(int64_t bundle, int64_t vector) const {
    return std::min(tap.block, groups_of(bundle) * tap.lanes - vector * tap.block);
  }
  int64_t tiles() const { return tap.batch * tap.spatial_tiles(); }
  // Where a tensor with these strides has pixel (h, w) of a vector of image b's results.
  int64_t result_place(int64_t b, int64_t h, int64_t w, int64_t bundle, int64_t vector,
                       const int64_t* stride) const {
    return b * stride[0] + (bundle * together * tap.lanes + vector * tap.block) * stride[1] +
           (tap.h.first + h * tap.h.spacing) * stride[2] +
           (tap.w.first + w * tap.w.spacing) * stride[3];
  }
  // Filters of a vector of lanes, [tap][channel of the sum][lane]. Their gradient has the sums of
  // the bias gradient behind it.
  int64_t filters_size() const { return tap.taps() * tap.reduce * tap.block; }
  int64_t sums_per_vector() const { return filters_size() + tap.block; }
  int64_t sums_per_chunk() const { return bundles() * vectors() * sums_per_vector(); }
};

template <typename T>
struct KernelTable {
  int vector_bytes;
  bool permutes;  // has it an instruction that permutes the lanes of a vector?
  // Filters: [bundle][vector][Grouped's].
  void (*gather_conv)(const Grouped&, View<const T> source, const T* filters, const Epilogue<T>&,
                      View<T> result, int64_t begin, int64_t end);
  // Sums: [chunk][bundle][vector][Grouped's].
  void (*weight_grad)(const Grouped&, View<const T> input, View<const T> delta, T* sums,
                      int64_t begin, int64_t end);
};

CONVBP_IN_EACH_ISA(template <typename T> KernelTable<T> kernels();)

}  // namespace convbp::grouped
