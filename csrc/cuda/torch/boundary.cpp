#include "cuda/torch/boundary.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include "cuda/algorithm.h"

namespace convbp {

const torch::headeronly::DeviceType kDevice = torch::headeronly::DeviceType::CUDA;

void prepare_memory(void*, int64_t) {}

TorchContext::TorchContext() : device_(torch::stable::accelerator::getCurrentDeviceIndex()) {
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &current));
  stream = static_cast<CUstream_st*>(current);
  const cudaError_t error =
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device_);
  check(error == cudaSuccess, "CUDA error: ", cudaGetErrorString(error));
}

void* TorchContext::scratch(int64_t bytes) {
  const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, device_);
  held_.push_back(torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, device));
  return held_.back().mutable_data_ptr();
}

}  // namespace convbp

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CompositeExplicitAutograd, m) {
  m.impl("_cuda_conv_algorithm", TORCH_BOX(&convbp::cuda::algorithm_setting));
  m.impl("_set_cuda_conv_algorithm", TORCH_BOX(&convbp::cuda::set_algorithm));
}
