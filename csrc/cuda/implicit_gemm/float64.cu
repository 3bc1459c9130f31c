#include "cuda/implicit_gemm/launch.cuh"

namespace convbp::cuda::gemm {

CONVBP_INSTANTIATE_IMPLICIT_GEMM(double)

}  // namespace convbp::cuda::gemm
