// The convolution operators as implicit matrix products, as the boundary calls them.
#pragma once

#include "core/conv_problem.h"
#include "cuda/context.h"
#include "cuda/epilogue.h"

namespace convbp::cuda::gemm {

// Choices of the caller. The problem's size decides on the tile, unless told otherwise.
struct Options {
  bool tf32 = false;  // float32 may be rounded to a mantissa of 10 bits before it is multiplied
  int tile = -1;      // 0: 128x128, 1: 128x64, 2: 64x64, where the element type has it; for tests
};

// True where the problem fits the kernels' numbers. Speed is another question (algorithm.h).
bool can_implement(const ConvProblem&);

template <typename T>
void conv2d(Context&, const ConvProblem&, View<const T> input, View<const T> weight,
            const Epilogue<T>&, View<T> output, const Options& = {});

template <typename T>
void conv2d_input_grad(Context&, const ConvProblem&, View<const T> weight, View<const T> delta,
                       View<T> input_grad, const Options& = {});

// L4, and L5 where bias_grad is given.
template <typename T>
void conv2d_weight_grad(Context&, const ConvProblem&, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad, const Options& = {});

}  // namespace convbp::cuda::gemm
