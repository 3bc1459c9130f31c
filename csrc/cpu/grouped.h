// Convolutions of more than one group with few channels each: the direct sums, with the channels of
// several groups side by side in the lanes of a vector.
#pragma once

#include "../conv_problem.h"
#include "epilogue.h"

namespace convbp::grouped {

// Does it compute the problem faster than the direct algorithm, whose vectors end with a group?
bool takes(const ConvProblem& problem, int64_t element_bytes);

template <typename T>
void conv2d(const ConvProblem& problem, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output);

template <typename T>
void conv2d_input_grad(const ConvProblem& problem, View<const T> weight, View<const T> delta,
                       View<T> input_grad);

template <typename T>
void conv2d_weight_grad(const ConvProblem& problem, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad);

}  // namespace convbp::grouped
