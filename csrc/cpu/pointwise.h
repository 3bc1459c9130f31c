// 1x1 convolutions without padding: matrix products of pixels and channels, whose operands are read
// from where they lie, or copied once without being transposed.
#pragma once

#include "operators.h"

namespace convbp::pointwise {

// Can it compute the problem between tensors with these strides, and faster than the direct
// algorithm? Channels or pixels along the width must be neighbours in both.
bool takes(const ConvProblem& problem, const int64_t* source_stride, const int64_t* result_stride);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::pointwise
