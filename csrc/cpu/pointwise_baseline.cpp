// The pointwise kernels for any processor the compiler targets (SSE2 on x86-64, NEON on arm64).
#include "isa_baseline.h"
#include "pointwise_kernel.h"
