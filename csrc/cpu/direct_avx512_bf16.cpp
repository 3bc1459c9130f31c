// The direct kernels of bfloat16 for x86-64 processors with AVX-512 and its products of pairs.
#if defined(__x86_64__)
#include "isa_avx512_bf16.h"
#include "direct_kernel.h"
#endif
