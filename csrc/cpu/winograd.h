// The Winograd algorithm: 3x3 filters, stride 1 or 2, dilation 1, sums in float32.
#pragma once

#include "algorithm.h"
#include "operators.h"

namespace convbp::winograd {

// Is the problem one it can take?
bool takes(const ConvProblem& problem);

// Is it then faster than the direct algorithm? Asked of a problem that it takes.
bool pays(const ConvProblem& problem, Operator op);

CONVBP_DECLARE_OPERATORS

// The multiplications of an operator of a problem that it takes; those of its transforms are not
// counted.
int64_t products(const ConvProblem& problem, Operator op);

}  // namespace convbp::winograd
