// The pointwise kernels for x86-64 processors with AVX-512.
#if defined(__x86_64__)
#include "cpu/simd/avx512.h"
#include "cpu/pointwise/kernel.h"
#endif
