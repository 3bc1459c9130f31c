// The CPU kernels' ties to torch: threads from torch for the kernels, settings of the kernels for
// torch.
#include "cpu/torch/boundary.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/algorithm.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace convbp {

const torch::headeronly::DeviceType kDevice = torch::headeronly::DeviceType::CPU;

// Asks for large pages in large tensors: a fresh page costs more than the kernel spends on the data
// in it. Nothing changes where memory is not fresh, or where the system has no large pages.
void prepare_memory(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void parallel_tasks(int64_t tasks, TaskRange body, void* context) {
  torch::stable::parallel_for(0, tasks, 1,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t thread_count() {
  return torch::stable::get_num_threads();
}

namespace {

std::string activations() {
  return activation::names();
}

std::string cpu_capability() {
  return capability_name();
}

std::string cpu_conv_algorithm() {
  return algorithm_setting();
}

void set_cpu_conv_algorithm(const std::string& name) {
  set_algorithm(name);
}

}  // namespace
}  // namespace convbp

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CompositeExplicitAutograd, m) {
  m.impl("_activations", TORCH_BOX(&convbp::activations));
  m.impl("_cpu_capability", TORCH_BOX(&convbp::cpu_capability));
  m.impl("_cpu_conv_algorithm", TORCH_BOX(&convbp::cpu_conv_algorithm));
  m.impl("_set_cpu_conv_algorithm", TORCH_BOX(&convbp::set_cpu_conv_algorithm));
}
