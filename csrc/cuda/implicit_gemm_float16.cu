#include "implicit_gemm.cuh"

namespace convbp::cuda::gemm {

CONVBP_INSTANTIATE_IMPLICIT_GEMM(Half)

}  // namespace convbp::cuda::gemm
