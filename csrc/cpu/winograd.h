// The Winograd algorithm: 3x3 filters, stride 1, dilation 1, sums in float32.
#pragma once

#include "../conv_problem.h"
#include "algorithm.h"
#include "epilogue.h"

namespace convbp::winograd {

// Is the problem one it can take?
bool takes(const ConvProblem& problem);

// Is it then faster than the direct algorithm? Asked of a problem that it takes.
bool pays(const ConvProblem& problem, Operator op);

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

}  // namespace convbp::winograd
