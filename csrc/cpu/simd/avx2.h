// Macros that compile a kernel header for x86-64 processors with AVX2 and FMA.
#define CONVBP_ISA avx2
#define CONVBP_TARGET __attribute__((target("avx2,fma")))
#define CONVBP_VECTOR_BYTES 32
