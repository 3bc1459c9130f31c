// 1x1 convolutions without padding: matrix products of pixels and channels, whose operands are read
// from where they lie, or copied once without being transposed.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"

namespace convbp::pointwise {

// Can it compute the problem between tensors with these strides, and faster than the direct
// algorithm? Channels or pixels along the width must be neighbours in both.
bool takes(const ConvProblem& problem, const int64_t* source_stride, const int64_t* result_stride);

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

}  // namespace convbp::pointwise
