// Convolutions whose filters neither overlap nor reach over an edge: 1x1, and, channels last,
// filters as large as their stride, to which a patch is a pixel of channels * height * width
// channels. Matrix products of pixels and channels, whose operands are read from where they lie, or
// copied once without being transposed.
#pragma once

#include "cpu/operators.h"

namespace convbp::pointwise {

// Can it compute the problem between tensors with these strides, and faster than the direct
// algorithm? Channels or pixels along the width must be neighbours in both.
bool is_profitable(const ConvProblem& problem, const int64_t* source_stride,
                   const int64_t* result_stride);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::pointwise
