// The pooling operators on the CPU.
#include "boundary.h"
#include "pool.h"

#include "torch/pool2d.h"

CONVBP_REGISTER_POOLS(CPU)
