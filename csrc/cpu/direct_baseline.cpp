// The direct kernels for any processor the compiler targets (SSE2 on x86-64, NEON on arm64).
#define CONVBP_ISA baseline
#define CONVBP_TARGET
#define CONVBP_VECTOR_BYTES 16
#include "direct_kernel.h"
