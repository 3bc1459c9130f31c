#include "implicit_gemm.cuh"

namespace convbp::cuda::gemm {

CONVBP_INSTANTIATE_IMPLICIT_GEMM(double)

}  // namespace convbp::cuda::gemm
