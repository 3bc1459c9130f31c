// The pooling kernels for any processor the compiler targets.
#define CONVBP_ISA baseline
#define CONVBP_TARGET
#define CONVBP_VECTOR_BYTES 16
#include "pool_kernel.h"
