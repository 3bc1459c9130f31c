// Marks what the CPU and the CUDA kernels both call, and loops there over what a GPU has in
// registers.
#pragma once

#if defined(__CUDACC__)
#define CONVBP_BOTH __host__ __device__
#define CONVBP_UNROLL _Pragma("unroll")
#else
#define CONVBP_BOTH
#define CONVBP_UNROLL
#endif
