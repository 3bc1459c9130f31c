// What an instruction set offers to the grouped algorithm. grouped_<instruction set>.cpp makes the
// tables, grouped.cpp chooses.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../conv_problem.h"
#include "capability.h"
#include "epilogue.h"
#include "tap_conv.h"

namespace convbp::grouped {

// The tap convolution, and how its groups lie in vectors. A *bundle* is as many whole groups as one
// vector holds, or one group that takes one vector or more.
struct Grouped {
  TapConv tap;           // its block is a vector, its batch_tile one image
  int64_t together = 1;  // groups a bundle

  int64_t bundles() const { return divide_up(tap.groups, together); }
  int64_t groups_of(int64_t bundle) const {
    return std::min(together, tap.groups - bundle * together);
  }
  // Vectors of a bundle's results, and numbers a pixel of its source takes.
  int64_t vectors() const { return divide_up(together * tap.lanes, tap.block); }
  int64_t pitch() const { return together > 1 ? tap.block : tap.reduce; }
  int64_t lanes_of(int64_t bundle, int64_t vector) const {
    return std::min(tap.block, groups_of(bundle) * tap.lanes - vector * tap.block);
  }
  // Weights, or their gradient, of a vector of lanes: [tap][channel of the sum][lane].
  int64_t filters_size() const { return tap.taps() * tap.reduce * tap.block; }
  int64_t tiles() const { return tap.batch * tap.spatial_tiles(); }
};

// The weight gradient is cut into chunks of tiles, which have their own sums, and bundles. Sums of a
// vector of lanes: those of its filters, and of the bias.
struct WeightGrad {
  Grouped grouped;
  int64_t chunks = 1, bundles_a_task = 1;

  int64_t sums_a_vector() const { return grouped.filters_size() + grouped.tap.block; }
  int64_t sums_a_chunk() const {
    return grouped.bundles() * grouped.vectors() * sums_a_vector();
  }
  int64_t bundle_tasks() const { return divide_up(grouped.bundles(), bundles_a_task); }
  int64_t tasks() const { return chunks * bundle_tasks(); }
};

template <typename T>
struct Table {
  int vector_bytes;
  bool permutes;  // has it an instruction that permutes the lanes of a vector?
  // Task: a bundle of a tile. Filters: [bundle][vector] of Grouped's.
  void (*tap_conv)(const Grouped&, View<const T> source, const Accumulator<T>* filters,
                   const Epilogue<T>&, View<T> result, int64_t begin, int64_t end);
  // Task: some bundles of a chunk.
  void (*weight_grad)(const WeightGrad&, View<const T> input, View<const T> delta,
                      Accumulator<T>* sums, int64_t begin, int64_t end);
};

#define CONVBP_DECLARE_TABLE(isa)           \
  namespace isa {                           \
  template <typename T>                     \
  Table<T> make_table();                    \
  }
CONVBP_FOR_EACH_ISA(CONVBP_DECLARE_TABLE)
#undef CONVBP_DECLARE_TABLE

}  // namespace convbp::grouped
