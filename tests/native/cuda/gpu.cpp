// kernels.cpp on a GPU, with the kernels as nvcc compiles them: its tensors and the scratch memory
// lie where the host and the GPU both reach them, each by itself, so that compute-sanitizer sees an
// address beside one. Launches wait until the kernel is done.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

struct Gpu {
  Gpu() {
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count) return;
    std::fprintf(stderr, "there is no GPU: %s\n", cudaGetErrorString(error));
    std::_Exit(2);
  }
} const gpu;

}  // namespace

void* operator new[](size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, bytes ? bytes : 1) != cudaSuccess) throw std::bad_alloc();
  return memory;
}

void operator delete[](void* memory) noexcept {
  cudaFree(memory);
}

void operator delete[](void* memory, size_t) noexcept {
  cudaFree(memory);
}
