// The pointwise kernels for x86-64 processors with AVX2 and FMA.
#if defined(__x86_64__)
#include "isa_avx2.h"
#include "pointwise_kernel.h"
#endif
