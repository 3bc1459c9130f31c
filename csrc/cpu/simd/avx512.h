// Macros that compile a kernel header for x86-64 processors with AVX-512 (F, BW, DQ, VL). With
// CONVBP_EMULATE_AVX512 each of its vectors is two of AVX2's, so that a test runs the same kernel
// text on a processor without AVX-512; nothing is fast then.
#define CONVBP_ISA avx512
#if defined(CONVBP_EMULATE_AVX512)
#define CONVBP_TARGET __attribute__((target("avx2,fma")))
#else
#define CONVBP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif
#define CONVBP_VECTOR_BYTES 64
