// The pointwise kernels for x86-64 processors with AVX-512.
#if defined(__x86_64__)
#include "isa_avx512.h"
#include "pointwise_kernel.h"
#endif
