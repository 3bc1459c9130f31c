// The Winograd algorithm: 3x3 filters with stride 1 or 2, 5x5 with stride 1, 7x7 with stride 2 (not
// its input gradient), dilated 3x3 (not its weight gradient); sums in float32.
#pragma once

#include "cpu/operators.h"

namespace convbp::winograd {

// Is the problem one it can take?
bool takes(const ConvProblem& problem, Operator op);

// Is it then faster than the direct algorithm? Asked of a problem that it takes.
bool pays(const ConvProblem& problem, Operator op);

CONVBP_DECLARE_OPERATORS

// The multiplications of an operator of a problem that it takes; those of its transforms are not
// counted.
double products(const ConvProblem& problem, Operator op);

}  // namespace convbp::winograd
