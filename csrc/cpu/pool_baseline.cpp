// The pooling kernels for any processor the compiler targets.
#define CONVBP_ISA baseline
#define CONVBP_TARGET
#include "pool_kernel.h"
