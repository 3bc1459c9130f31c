// Depthwise convolutions (one input and one output channel a group), read from where they lie: no
// patch, no packed result. They are bound by memory, not by arithmetic.
#pragma once

#include "cpu/operators.h"

namespace convbp::depthwise {

// Can it compute the problem between tensors with these strides (for the weight gradient, input and
// delta)? Channels or pixels along the width must be neighbours in both, and one row of them fill a
// vector.
bool can_implement(const ConvProblem& problem, const int64_t* source_stride,
                   const int64_t* other_stride);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::depthwise
