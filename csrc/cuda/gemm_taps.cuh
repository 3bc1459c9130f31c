// Counting along the depth of a convolution.
#pragma once

#include "grid.h"

namespace convbp::cuda::gemm {

// A number with three digits, of which the outermost has no limit: (row, column, unit) of a tap
// and a unit of its channels, or (sample, row, column) of a pixel.
struct Digits {
  int outer, middle, inner;

  // Divisions of a pixel's number by what the host knows are none; those of small numbers without
  // signs are short.
  __device__ static Digits of(uint32_t number, const Divisor& middles, const Divisor& inners) {
    const uint32_t rest = inners.quotient(number), outer = middles.quotient(rest);
    return {static_cast<int>(outer), static_cast<int>(rest - outer * middles.divisor),
            static_cast<int>(number - rest * inners.divisor)};
  }
  __device__ static Digits of(uint32_t number, uint32_t middles, uint32_t inners) {
    const uint32_t rest = number / inners, outer = rest / middles;
    return {static_cast<int>(outer), static_cast<int>(rest - outer * middles),
            static_cast<int>(number - rest * inners)};
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
