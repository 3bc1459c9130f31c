// L3, and L5 from the same pass, as torch calls them on every backend: the operators error_signal and
// error_signal_bias_grad, which are steps of conv2d_backward too. A file that includes this one first
// includes its backend's boundary.h and functions error_signal and error_signal_bias_grad.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "core/channels.h"
#include "torch/binding.h"

namespace convbp {
namespace {

// True where the elements fill their memory in the order of the dimensions `order`.
bool is_dense(const Tensor& t, const Ints& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (t.size(*d) != 1 && t.stride(*d) != expected) return false;
    expected *= t.size(*d);
  }
  return true;
}

// The channels of a dense tensor; contiguous, or channels_last where it has four dimensions.
Channels channels_of(const Tensor& t, bool channels_last) {
  Channels size{1, t.size(1), 1};
  for (int64_t d = 0; d < t.dim(); ++d)
    if (d != 1) (d == 0 || channels_last ? size.outer : size.inner) *= t.size(d);
  return size;
}

struct Operands {
  Tensor grad, saved, delta;  // dense, with the same strides
  bool channels_last;
};

// Brings grad into the format of saved, which delta gets too.
Operands operands(const char* op, const Tensor& grad, const Tensor& saved) {
  check_tensors(op, {{"grad", grad}, {"saved", saved}});
  const Ints size = sizes_of(saved);
  check_size("grad", sizes_of(grad), "saved", size);
  Operands o;
  o.channels_last = size.size() == 4 && is_channels_last(saved);
  Ints order(size.size());
  for (size_t d = 0; d < order.size(); ++d) order[d] = static_cast<int64_t>(d);
  if (o.channels_last) order = {0, 2, 3, 1};
  const auto format = o.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const auto dense = [&](const Tensor& t) {
    if (is_dense(t, order)) return t;
    Tensor copy = new_tensor(size, t, format);
    torch::stable::copy_(copy, t);
    return copy;
  };
  o.grad = dense(grad);
  o.saved = dense(saved);
  o.delta = new_tensor(size, saved, format);
  return o;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

Tensor error_signal_op(const Tensor& grad, const Tensor& saved, const std::string& name,
                       const Doubles& parameters) {
  check_activation(name, parameters);
  const Operands o = operands("error_signal", grad, saved);
  dispatch(saved, [&](auto element) {
    using T = decltype(element);
    error_signal<T>(make_activation<Accumulator<T>>(name, parameters), data<T>(o.grad),
                    data<T>(o.saved), static_cast<T*>(o.delta.mutable_data_ptr()), saved.numel());
  });
  return o.delta;
}

std::tuple<Tensor, Tensor> error_signal_bias_grad_op(const Tensor& grad, const Tensor& saved,
                                                     const std::string& name,
                                                     const Doubles& parameters) {
  check_activation(name, parameters);
  check(saved.dim() >= 2, "Expected saved to have channels in dimension 1, but got saved of size ",
        text(sizes_of(saved)));
  const Operands o = operands("error_signal_bias_grad", grad, saved);
  const Tensor bias_grad = new_tensor({saved.size(1)}, saved, MemoryFormat::Contiguous);
  dispatch(saved, [&](auto element) {
    using T = decltype(element);
    error_signal_bias_grad<T>(make_activation<Accumulator<T>>(name, parameters), data<T>(o.grad),
                              data<T>(o.saved), static_cast<T*>(o.delta.mutable_data_ptr()),
                              channels_of(o.delta, o.channels_last),
                              static_cast<T*>(bias_grad.mutable_data_ptr()));
  });
  return {o.delta, bias_grad};
}

}  // namespace
}  // namespace convbp
