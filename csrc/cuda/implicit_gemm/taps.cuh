// Counting along the depth of a convolution.
#pragma once

#include "cuda/grid.h"

namespace convbp::cuda::gemm {

// A number with three digits, of which the outermost has no limit: (row, column, unit) of a tap
// and a unit of its channels, or (sample, row, column) of a pixel.
struct Digits {
  int outer, middle, inner;

  __device__ static Digits of(uint32_t number, const Divisor& middles, const Divisor& inners) {
    const uint32_t inner = inners.take(number), middle = middles.take(number);
    return {static_cast<int>(number), static_cast<int>(middle), static_cast<int>(inner)};
  }
  // The digits where the host does not know the number of middles, but few numbers reach so far.
  __device__ static Digits of(uint32_t number, uint32_t middles, const Divisor& inners) {
    const uint32_t inner = inners.take(number), outer = number < middles ? 0 : number / middles;
    return {static_cast<int>(outer), static_cast<int>(number - outer * middles),
            static_cast<int>(inner)};
  }
  __device__ void add(const Digits& step, int middles, int inners) {
    inner += step.inner;
    middle += step.middle;
    outer += step.outer;
    if (inner >= inners) inner -= inners, ++middle;
    if (middle >= middles) middle -= middles, ++outer;
  }
};

}  // namespace convbp::cuda::gemm
