// Depthwise convolutions (one input and one output channel a group), read from where they lie: no
// patch, no packed result. They are bound by memory, not by arithmetic.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"

namespace convbp::depthwise {

// Can it compute the problem between tensors with these strides (for the weight gradient, input and
// delta)? Channels or pixels along the width must be neighbours in both, and one row of them fill a
// vector.
bool takes(const ConvProblem& problem, const int64_t* source_stride, const int64_t* other_stride);

template <typename T>
void conv2d(const ConvProblem& problem, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output);

template <typename T>
void conv2d_input_grad(const ConvProblem& problem, View<const T> weight, View<const T> delta,
                       View<T> input_grad);

// bias_grad may be null: then it is not computed.
template <typename T>
void conv2d_weight_grad(const ConvProblem& problem, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad);

}  // namespace convbp::depthwise
