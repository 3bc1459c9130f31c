// Macros that compile a kernel header for x86-64 processors with AVX-512 that also multiply pairs
// of bfloat16.
#define CONVBP_ISA avx512_bf16
#define CONVBP_TARGET \
  __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define CONVBP_VECTOR_BYTES 64
#define CONVBP_BF16_PAIRS
