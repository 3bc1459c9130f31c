// CONVBP_BOTH marks functions that the CPU's and the CUDA kernels both call. CONVBP_UNROLL marks
// their loops that a GPU needs unrolled, because the arrays they go over are in registers there.
#pragma once

#if defined(__CUDACC__)
#define CONVBP_BOTH __host__ __device__
#define CONVBP_UNROLL _Pragma("unroll")
#else
#define CONVBP_BOTH
#define CONVBP_UNROLL
#endif
