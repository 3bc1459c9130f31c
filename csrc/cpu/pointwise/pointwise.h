// Convolutions whose filters neither overlap nor reach over an edge: 1x1 filters and, in
// channels_last, filters as large as their stride. To such a filter a patch is a pixel with the
// channels of all its positions. These are matrix products of pixels and channels, whose operands
// are read in place, or copied once without a transpose.
#pragma once

#include "cpu/operators.h"

namespace convbp::pointwise {

// True where the pointwise algorithm can compute the problem between tensors with these strides,
// and faster than the direct one. Channels or pixels along the width must be neighbours in both
// tensors.
bool is_profitable(const ConvProblem& problem, const int64_t* source_stride,
                   const int64_t* result_stride);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::pointwise
