// The element-wise operators on the CPU.
#include "boundary.h"
#include "error_signal.h"

#include "torch/elementwise.h"

CONVBP_REGISTER_ELEMENTWISE(CPU)
