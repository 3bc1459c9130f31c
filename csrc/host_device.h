// Marks what the CPU and the CUDA kernels both call.
#pragma once

#if defined(__CUDACC__)
#define CONVBP_BOTH __host__ __device__
#else
#define CONVBP_BOTH
#endif
