// The parts that the boundary files of all backends share: memory formats, new tensors, views, the
// element type. A backend's own boundary.h adds `dispatch`, which calls a kernel.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/activation.h"
#include "core/conv_problem.h"
#include "core/types.h"
#include "torch/checks.h"

namespace convbp {

using torch::headeronly::MemoryFormat;
using Doubles = std::vector<double>;

// True where the strides put the channels innermost. The rule is that of torch's
// suggest_memory_format(): where sizes of 1 leave both readings open, the tensor counts as
// contiguous.
inline bool is_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = size > 1 ? stride * size : stride;
  }
  return true;
}

inline MemoryFormat result_format(const std::optional<MemoryFormat>& asked, const Tensor& a,
                                  const Tensor& b) {
  if (asked) {
    check(*asked == MemoryFormat::Contiguous || *asked == MemoryFormat::ChannelsLast,
          "Expected memory_format to be torch.contiguous_format or torch.channels_last, but got "
          "another one");
    return *asked;
  }
  return is_channels_last(a) || is_channels_last(b) ? MemoryFormat::ChannelsLast
                                                    : MemoryFormat::Contiguous;
}

// The tensor of this size, with the element type of `like`, that `make` allocates.
template <typename Make>
Tensor allocate(const Ints& size, const Tensor& like, const Make& make) {
  check_fits(size, like.element_size());
  try {
    return make();
  } catch (const std::exception&) {
    // Sizes were checked before, so it is memory that is missing. torch's own message comes with
    // source lines of the interface or, in older versions, not at all.
    fail("can't allocate memory: the result of size ", text(size), " takes ",
         bytes_of(size, like.element_size()), " bytes");
  }
}

// Prepares new memory; each backend defines how.
void prepare_memory(void* data, int64_t bytes);

// The strides of a new tensor, as torch's; channels_last has four dimensions.
inline Ints strides_of(const Ints& size, MemoryFormat format) {
  Ints stride(size.size());
  int64_t step = 1;
  const auto fill = [&](size_t d, int64_t length) {
    stride[d] = step;
    if (__builtin_mul_overflow(step, length, &step)) fail("Stride calculation overflowed");
  };
  if (format == MemoryFormat::ChannelsLast)
    for (const size_t d : {1, 3, 2, 0}) fill(d, size[d]);
  else  // here torch counts an empty dimension as one element
    for (size_t d = size.size(); d-- > 0;) fill(d, std::max<int64_t>(size[d], 1));
  return stride;
}

inline Tensor new_tensor(const Ints& size, const Tensor& like, MemoryFormat format,
                         std::optional<ScalarType> type = std::nullopt) {
  return allocate(size, like, [&] {
    // Not torch::stable::empty, whose way through the dispatcher takes as long as a small kernel.
    const Ints stride = strides_of(size, format);
    int32_t dtype = 0, device = 0, index = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
    if (type) dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()),
                                                           size.data(), stride.data(), dtype,
                                                           device, index, &handle));
    const Tensor tensor(handle);
    prepare_memory(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
    return tensor;
  });
}

template <typename T>
View<T> view(const Tensor& t) {
  View<T> v;
  if constexpr (std::is_const_v<T>)
    v.data = static_cast<T*>(t.const_data_ptr());
  else
    v.data = static_cast<T*>(t.mutable_data_ptr());
  for (int d = 0; d < 4; ++d) v.stride[d] = t.stride(d);
  return v;
}

// Calls body(T()) with the element type of t, which check_tensors has let through.
template <typename Body>
void dispatch_type(const Tensor& t, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::BFloat16:
      return body(BFloat16());
    case ScalarType::Half:
      return body(Half());
    default:
      fail("unreachable: dtype ", torch::headeronly::toString(t.scalar_type()));
  }
}

// Checks that an activation of this name exists and has this number of parameters.
inline void check_activation(const std::string& name, const Doubles& parameters) {
  const int row = activation::row_of(name);
  if (row < 0)
    fail("Expected activation to be one of (name and number of parameters) ", activation::names(),
         ", but got \"", name, '"');
  const int expected = activation::parameters_of(row);
  check(parameters.size() == static_cast<size_t>(expected), "Expected ", expected,
        " parameters of activation ", name, ", but got ", parameters.size());
}

}  // namespace convbp
