// The element-wise operators on the CPU.
#include "boundary.h"
#include "error_signal.h"

#include "../elementwise_ops.h"

CONVBP_REGISTER_ELEMENTWISE(CPU)
