// Depthwise convolutions (one input and one output channel a group). They are bound by memory, not
// by arithmetic: in channels_last tensors are read where they lie, NCHW is copied a band at a time.
#pragma once

#include "cpu/operators.h"

namespace convbp::depthwise {

// True where the depthwise algorithm can compute the problem between tensors with these strides
// (for the weight gradient, input and delta). Either channels are neighbours in both and fill a
// vector, or pixels along the width are neighbours in both.
bool can_implement(const ConvProblem& problem, const int64_t* source_stride,
                   const int64_t* other_stride);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::depthwise
