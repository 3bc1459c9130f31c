// Pooling (L8), as the boundary calls it.
#pragma once

#include "core/pool_problem.h"
#include "cuda/context.h"

namespace convbp::cuda::pool {

template <typename T, typename Offset>
void max_pool2d(Context&, const PoolProblem&, View<const T> input, View<T> output,
                View<Offset> offset);

template <typename T, typename Offset>
void max_pool2d_input_grad(Context&, const PoolProblem&, View<const T> delta,
                           View<const Offset> offset, View<T> input_grad);

template <typename T, typename Offset>
void max_pool2d_gather(Context&, const PoolProblem&, View<const T> input, View<const Offset> offset,
                       View<T> output);

template <typename T>
void avg_pool2d(Context&, const PoolProblem&, View<const T> input, View<T> output);

template <typename T>
void avg_pool2d_input_grad(Context&, const PoolProblem&, View<const T> delta, View<T> input_grad);

}  // namespace convbp::cuda::pool
