// The parts of the GPU that the kernels use beyond plain C++: indices, shared memory, the barrier,
// and the few PTX instructions that CUDA C++ has no words for. All of it is in this file, so that
// the same kernels also run without a GPU: a C++ compiler then compiles them with
// tests/native/cuda/shim.h in its place.
#pragma once

#if !defined(__CUDACC__)
#include "shim.h"  // tests/native/cuda
#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/context.h"

namespace convbp::cuda {

// The kernel's dynamic shared memory, at a multiple of 16 bytes. There is no other shared memory.
template <typename T>
__device__ T* shared_memory() {
  extern __shared__ uint4 convbp_shared[];
  return reinterpret_cast<T*>(convbp_shared);
}

// Waits for all threads of the block: what they wrote before is seen after it.
__device__ inline void barrier() {
  __syncthreads();
}

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes take part.
template <typename T>
__device__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Copies 16 bytes into shared memory without waiting, or writes zeros where there is nothing to
// copy (`valid` is 0): then what `global` points to is not read. Both addresses are multiples of
// 16.
__device__ inline void copy_16_async(void* shared, const void* global, uint32_t valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n.reg .pred nothing;\nsetp.eq.u32 nothing, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, nothing;\n}\n" ::"r"(to),
      "l"(global), "r"(valid));
}

// Makes one group of the copies that this thread has begun since the last such call.
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;\n");
}

// Waits until all of this thread's groups but the last `pending` are done. Other threads' copies
// are seen after a barrier.
template <int pending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending));
}

// Loads four 8x8 matrices of 16-bit elements. Lane 8 i + j gives the address of row j of matrix i;
// lane l gets of each matrix the two elements (l / 4, 2 (l % 4)), (l / 4, 2 (l % 4) + 1), packed.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* shared_row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
}

// Loads the same matrices, transposed.
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], const void* shared_row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
}

// sum (16x8) += a (16x16) * b (16x8), of bfloat16 or float16; fragments as PTX's mma.m16n8k16.
enum class Half16 { kBFloat16, kFloat16 };
template <Half16 type>
__device__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (type == Half16::kBFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to the nearest number with a mantissa of 10 bits, as a tensor core takes it; the core does
// not look at the low bits. Of two equally near numbers it is the even one or, before compute
// capability 9.0, which has no instruction for it, the larger one.
__device__ inline uint32_t to_tf32(float value) {
#if __CUDA_ARCH__ >= 900
  uint32_t rounded;
  asm("cvt.rn.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(value));
  return rounded;
#else
  return __float_as_uint(value) + (isfinite(value) ? 0x1000u : 0u);
#endif
}

// sum (16x8) += a (16x8) * b (8x8), of TF32; fragments as PTX's mma.m16n8k8.
__device__ inline void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " +
                             cudaGetErrorString(error));
}

// Starts a kernel on the context's stream, and does not wait for it.
template <typename... Parameters, typename... Arguments>
void launch(const Context& context, const char* name, void (*kernel)(Parameters...), dim3 blocks,
            dim3 threads, int64_t shared_bytes, const Arguments&... arguments) {
  constexpr int64_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  kernel<<<blocks, threads, shared_bytes, context.stream>>>(arguments...);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace convbp::cuda

#endif
