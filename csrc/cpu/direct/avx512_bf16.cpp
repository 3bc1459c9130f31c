// The direct kernels of bfloat16 for x86-64 processors with AVX-512 and its products of pairs.
#if defined(__x86_64__)
#include "cpu/simd/avx512_bf16.h"
#include "cpu/direct/kernel.h"
#endif
