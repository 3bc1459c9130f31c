// The Winograd algorithm: 3x3 filters with stride 1 or 2, 5x5 with stride 1, 7x7 with stride 2 (not
// its input gradient), dilated 3x3 (not its weight gradient); sums in float32.
#pragma once

#include "cpu/operators.h"

namespace convbp::winograd {

// True where the Winograd algorithm can compute the problem.
bool can_implement(const ConvProblem& problem, Operator op);

// True where it is also faster than the direct algorithm. Only for problems that it can compute.
bool is_profitable(const ConvProblem& problem, Operator op);

CONVBP_DECLARE_OPERATORS

// The multiplications of an operator, those of the transforms not counted. Only for problems that
// the Winograd algorithm can compute.
double products(const ConvProblem& problem, Operator op);

}  // namespace convbp::winograd
