// Depthwise convolutions (one input and one output channel a group), forward and input gradient, read
// from where they lie: no patch, no packed result. They are bound by memory, not by arithmetic.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"

namespace convbp::depthwise {

// Can it compute the problem between tensors with these strides? Channels or pixels along the width
// must be neighbours in both, and one row of them fill a vector.
bool takes(const ConvProblem& problem, const int64_t* source_stride, const int64_t* result_stride);

template <typename T>
void conv2d(const ConvProblem& problem, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output);

template <typename T>
void conv2d_input_grad(const ConvProblem& problem, View<const T> weight, View<const T> delta,
                       View<T> input_grad);

}  // namespace convbp::depthwise
