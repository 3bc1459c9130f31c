// What a kernel header needs to be compiled for x86-64 processors with AVX-512 (F, BW, DQ, VL).
#define CONVBP_ISA avx512
#define CONVBP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define CONVBP_VECTOR_BYTES 64
