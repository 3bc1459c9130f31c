// Checks at the boundary. Each message names the argument, what was expected and what came, in
// torch's own words where torch has words for it. torch_convbp/ops/checks.py says the same of fake
// tensors; tests/operators/test_errors.py holds the two together.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/conv_problem.h"
#include "core/pool_problem.h"

namespace convbp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// Sizes in a message. They are written only after a check has failed: writing costs more than a
// small convolution.
struct Text {
  const Ints& values;
};
inline Text text(const Ints& values) {
  return {values};
}
inline std::ostream& operator<<(std::ostream& out, Text text) {
  out << '[';
  for (size_t i = 0; i < text.values.size(); ++i) out << (i ? ", " : "") << text.values[i];
  return out << ']';
}

inline Ints sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Ints(sizes.begin(), sizes.end());
}

// The largest stride, padding, dilation or filter that makes sense. With such parameters, and
// inputs no larger than the address space, no product or sum overflows 64 bits.
constexpr int64_t kLargestParameter = (int64_t{1} << 31) - 1;
// The address space of a 64-bit process, in bytes.
constexpr int64_t kLargestBytes = int64_t{1} << 47;

// The convolution that these arguments describe; throws std::runtime_error where they
// describe none.
ConvProblem check_conv2d(const Ints& input_size, const Ints& weight_size, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups,
                         int64_t element_bytes);

// The pooling that these arguments describe; throws likewise.
PoolProblem check_pool2d(const Ints& input_size, const Ints& kernel_size, const Ints& stride,
                         const Ints& padding, const Ints& dilation, bool ceil_mode);

// The device on which this library's kernels run.
extern const torch::headeronly::DeviceType kDevice;

// Checks that a tensor is on the kernels' kind of device, and on the same one as `first`. The
// dispatcher sees to the kind as a rule, but does not tell several devices of a kind apart.
void check_device(const char* name, const Tensor& tensor, const Tensor& first);

// Checks that a tensor is defined: Python's None comes as an undefined tensor.
void check_defined(const char* op, const char* name, const Tensor& tensor);

// Checks that the storage reaches to the tensor's last element: Storage.resize_ may have cut it.
void check_has_memory(const char* name, const Tensor& tensor);

// Checks that all tensors have the first one's dtype, one of the four supported, and memory on its
// device.
struct Argument {
  const char* name;
  const Tensor& tensor;
};
void check_tensors(const char* op, const std::vector<Argument>& arguments);

// The bytes of a tensor of this size; inexact where they are more than there can be.
double bytes_of(const Ints& size, int64_t element_bytes);
// Checks that a result of this size fits into the address space.
void check_fits(const Ints& size, int64_t element_bytes);

void check_bias(const Tensor& bias, const Ints& weight_size);
// Checks that the tensor `name` has the size of `like`.
void check_size(const char* name, const Ints& size, const char* like, const Ints& expected);
// Checks the size of delta, or of a tensor that has delta's size.
void check_delta(const Ints& delta_size, const ConvProblem& problem, const char* name = "delta");

}  // namespace convbp
