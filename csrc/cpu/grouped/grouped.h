// Convolutions of more than one group with few channels each: the direct sums, with the channels of
// several groups side by side in the lanes of a vector.
#pragma once

#include "cpu/operators.h"

namespace convbp::grouped {

// True where the grouped algorithm can compute the problem, and faster than the direct one, whose
// vectors end with a group.
bool is_profitable(const ConvProblem& problem, int64_t element_bytes);

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::grouped
