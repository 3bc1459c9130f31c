// The pooling kernels for x86-64 processors with AVX2 and FMA.
#if defined(__x86_64__)
#include "cpu/simd/avx2.h"
#include "cpu/pool/kernel.h"
#endif
