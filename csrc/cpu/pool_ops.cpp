// The pooling operators on the CPU.
#include "boundary.h"
#include "pool.h"

#include "../pool_ops.h"

CONVBP_REGISTER_POOLS(CPU)
