// The pooling operators on the CPU.
#include "cpu/pool/pool.h"
#include "cpu/torch/boundary.h"

#include "torch/pool2d.h"

CONVBP_REGISTER_POOLS(CPU)
