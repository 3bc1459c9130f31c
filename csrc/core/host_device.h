// Marks what the CPU's and the CUDA kernels both call, and in it the loops that a GPU needs
// unrolled, since it has what they go over in registers.
#pragma once

#if defined(__CUDACC__)
#define CONVBP_BOTH __host__ __device__
#define CONVBP_UNROLL _Pragma("unroll")
#else
#define CONVBP_BOTH
#define CONVBP_UNROLL
#endif
