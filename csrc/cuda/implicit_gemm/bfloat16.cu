#include "cuda/implicit_gemm/launch.cuh"

namespace convbp::cuda::gemm {

CONVBP_INSTANTIATE_IMPLICIT_GEMM(BFloat16)

}  // namespace convbp::cuda::gemm
