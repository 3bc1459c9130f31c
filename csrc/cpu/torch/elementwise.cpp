// The element-wise operators on the CPU.
#include "cpu/elementwise/elementwise.h"
#include "cpu/torch/boundary.h"

#include "torch/elementwise.h"

CONVBP_REGISTER_ELEMENTWISE(CPU)
