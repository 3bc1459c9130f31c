// The Winograd algorithm: 3x3 filters with stride 1 or 2, 5x5 with stride 1, 7x7 with stride 2 (not
// its input gradient), dilated 3x3 (not its weight gradient); sums in float32.
#pragma once

#include "cpu/operators.h"

namespace convbp::winograd {

// Can it compute the problem?
bool can_implement(const ConvProblem& problem, Operator op);

// Is it then faster than the direct algorithm? Asked of a problem that it can compute.
bool is_profitable(const ConvProblem& problem, Operator op);

CONVBP_DECLARE_OPERATORS

// The multiplications of an operator of a problem that it can compute; those of its transforms are
// not counted.
double products(const ConvProblem& problem, Operator op);

}  // namespace convbp::winograd
