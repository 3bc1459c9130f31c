// The three operators, one thread an output: the equations, one sum after the other.
//
// This file is the first thing to read, and the fast kernels are tested against it. The outer loops
// of cpu/reference/conv2d.h are the threads here, the inner ones are the same:
// core/reference_sums.h.
#pragma once

#include "core/reference_sums.h"
#include "cuda/epilogue.h"
#include "cuda/grid.h"

namespace convbp::cuda::reference::kernels {

using namespace convbp::reference;

// L1: p_o[m, n] = bias_o + sum_k sum_{r,s} a_k[i, j] w[o, k, r, s]
// L2: a_o = g(p_o)
template <typename T>
__global__ void conv2d(ConvProblem c, View<const T> input, View<const T> weight,
                       Epilogue<T> epilogue, View<T> output, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const auto [b, o, m, n] = positions.position(number);
    const double sum = output_sum(c, input, weight, 0.0, b, o, m, n);
    T* const result = &output.at(b, o, m, n);
    *result = epilogue.finish(static_cast<Accumulator<T>>(sum), o, result - output.data);
  });
}

// L6: dL/da_k[i, j] = sum_o sum over the (m, n, r, s) that meet at (i, j) of
//     delta_o[m, n] w[o, k, r, s]
template <typename T>
__global__ void conv2d_input_grad(ConvProblem c, View<const T> weight, View<const T> delta,
                                  View<T> input_grad, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const auto [b, channel, i, j] = positions.position(number);
    const int64_t g = channel / c.in_channels, k = channel % c.in_channels;
    input_grad.at(b, channel, i, j) =
        static_cast<T>(input_grad_sum(c, weight, delta, b, g, k, i, j));
  });
}

// L4: dL/dw[o, k, r, s] = sum_{m,n} delta_o[m, n] a_k[i, j]
template <typename T>
__global__ void conv2d_weight_grad(ConvProblem c, View<const T> input, View<const T> delta,
                                   View<T> weight_grad, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const auto [o, k, r, s] = positions.position(number);
    weight_grad.at(o, k, r, s) = static_cast<T>(weight_grad_sum(c, input, delta, o, k, r, s));
  });
}

// L5: dL/dbias_o = sum_{m,n} delta_o[m, n]
template <typename T>
__global__ void bias_grad(ConvProblem c, View<const T> delta, T* bias_grad) {
  each(c.groups * c.out_channels,
       [&](int64_t o) { bias_grad[o] = static_cast<T>(bias_grad_sum(c, delta, o)); });
}

}  // namespace convbp::cuda::reference::kernels
