// Counting along the depth of a convolution.
#pragma once

#include "grid.h"

namespace convbp::cuda::gemm {

// A number with three digits, of which the outermost has no limit: (row, column, unit) of a tap
// and a unit of its channels, or (sample, row, column) of a pixel.
struct Digits {
  int outer, middle, inner;

  __device__ static Digits of(int64_t number, int middles, int inners) {
    const int64_t rest = number / inners;
    return {static_cast<int>(rest / middles), static_cast<int>(rest % middles),
            static_cast<int>(number % inners)};
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
