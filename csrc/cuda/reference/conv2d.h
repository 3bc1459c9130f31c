// The reference operators, as the boundary calls them.
#pragma once

#include "core/conv_problem.h"
#include "cuda/context.h"
#include "cuda/epilogue.h"

namespace convbp::cuda::reference {

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

}  // namespace convbp::cuda::reference
