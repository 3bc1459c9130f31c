// The pooling kernels for x86-64 processors with AVX2 and FMA.
#if defined(__x86_64__)
#define CONVBP_ISA avx2
#define CONVBP_TARGET __attribute__((target("avx2,fma")))
#define CONVBP_VECTOR_BYTES 32
#include "pool_kernel.h"
#endif
