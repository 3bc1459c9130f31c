// What a kernel header needs to be compiled for x86-64 processors with AVX-512 (F, BW, DQ, VL).
// With CONVBP_EMULATE_AVX512 the compiler makes each of its vectors of two of AVX2's, so that a test
// runs the same kernel text on a processor that has no longer ones; nothing is fast then.
#define CONVBP_ISA avx512
#if defined(CONVBP_EMULATE_AVX512)
#define CONVBP_TARGET __attribute__((target("avx2,fma")))
#else
#define CONVBP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif
#define CONVBP_VECTOR_BYTES 64
