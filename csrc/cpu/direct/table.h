// The functions of an instruction set for the direct algorithm: one table per element type.
// <instruction set>.cpp makes the tables, direct.cpp chooses.
#pragma once

#include <cstdint>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/direct/plan.h"
#include "cpu/epilogue.h"

namespace convbp::direct {

// Kernels for channel blocks of one width.
template <typename T, typename Acc>
struct LaneKernels {
  using GatherConvTasks = void (*)(const DirectConv&, View<const T> source, const void* packed,
                                   const Epilogue<T>&, View<T> result, int64_t begin, int64_t end);
  GatherConvTasks gather_conv;
  void (*weight_grad)(const DirectWeightGrad&, View<const T> input, View<const T> delta,
                      bool with_bias, Acc* sums, int64_t begin, int64_t end);
};

template <typename T, typename Acc>
struct KernelTable {
  int vector_bytes;
  int64_t lanes() const { return vector_bytes / static_cast<int64_t>(sizeof(Acc)); }
  // Packed weights are of type Acc, or pairs.
  using PackWeight = void (*)(const DirectConv&, const T* weight, const WeightStrides&,
                              void* packed, int64_t begin, int64_t end);
  using GatherConvTasks = typename LaneKernels<T, Acc>::GatherConvTasks;
  PackWeight pack_weight;
  // The gather convolution for channel blocks of four vectors, where sums are short. Null where
  // registers are too few.
  GatherConvTasks short_sums;
  // Kernels for channel blocks of this number of half vectors: 2 or 4, or, where vectors have 64
  // bytes, 1 to 5.
  LaneKernels<T, Acc> (*kernels)(int64_t halves);
  // Kernels for channel blocks of one vector, or of two.
  LaneKernels<T, Acc> depthwise[2];
  // The gather convolution with pixels in the lanes, for blocks of this number of result channels:
  // 1 to 4, or most_nchw_channels.
  GatherConvTasks (*nchw)(int64_t block);
  int64_t most_nchw_channels;
  // Functions for pairs, or null: [channel blocks of one vector, or of two]
  PackWeight pack_pairs;
  GatherConvTasks pairs[2];
};

CONVBP_IN_EACH_ISA(template <typename T, typename Acc> KernelTable<T, Acc> kernels();)
#if defined(__x86_64__)
namespace avx512_bf16 {
template <typename T, typename Acc>
KernelTable<T, Acc> kernels();
}
#endif

}  // namespace convbp::direct
