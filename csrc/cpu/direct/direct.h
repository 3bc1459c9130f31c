// The direct algorithm: every convolution, in every layout, for every supported type.
#pragma once

#include "cpu/operators.h"

namespace convbp::direct {

CONVBP_DECLARE_OPERATORS

}  // namespace convbp::direct
