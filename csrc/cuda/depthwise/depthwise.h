// Depthwise convolutions on the GPU: groups of one input channel and one or several filters.
#pragma once

#include "core/conv_problem.h"
#include "cuda/context.h"
#include "cuda/epilogue.h"

namespace convbp::cuda::depthwise {

// True where the depthwise kernels can compute the problem: one input channel a group, and
// positions that 32 bits count.
bool can_implement(const ConvProblem& problem);

template <typename T>
void conv2d(Context&, const ConvProblem&, View<const T> input, View<const T> weight,
            const Epilogue<T>&, View<T> output);

template <typename T>
void conv2d_input_grad(Context&, const ConvProblem&, View<const T> weight, View<const T> delta,
                       View<T> input_grad);

// L4, and L5 where bias_grad is given.
template <typename T>
void conv2d_weight_grad(Context&, const ConvProblem&, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad);

// The operands of the error signal (L3): delta = g'(p) grad, where g' is known from the saved
// tensor, p or g(p). Without an activation nothing is saved, and delta is grad.
template <typename T>
struct ErrorSignal {
  activation::Activation<Accumulator<T>> g;
  View<const T> grad, saved;
};

// L3 to L6 in one pass over memory, where there is a kernel for that. Returns whether there is.
template <typename T>
bool backward(Context&, const ConvProblem&, const ErrorSignal<T>&, View<const T> input,
              View<const T> weight, View<T> input_grad, View<T> weight_grad, T* bias_grad);

// L3 by itself: delta, in scratch memory where it is not grad.
template <typename T>
View<const T> error_signal(Context&, const ConvProblem&, const ErrorSignal<T>&);

}  // namespace convbp::cuda::depthwise
