// Pooling (L8), one thread an element of the result, in the order in which memory holds them. The
// reference is cpu/reference/pool2d.h; here the outer loops are the threads, and float32 and
// smaller types are summed in float32. Bound by memory: numbers that neighbouring windows share are
// in the cache.
#pragma once

#include <cmath>

#include "core/pool_problem.h"
#include "core/types.h"
#include "cuda/grid.h"

namespace convbp::cuda::pool::kernels {

using convbp::pool::each_position;
using convbp::pool::each_window;
using convbp::pool::kNowhere;

// Takes the largest of the window, the first of equals. NaN counts as larger than anything, and the
// last NaN wins.
template <typename T, typename Offset>
__global__ void max_pool2d(PoolProblem p, View<const T> input, View<T> output, View<Offset> offset,
                           Positions positions) {
  each(positions.count, [&](int64_t number) {
    const Position at = positions.position(number);
    Accumulator<T> largest = -static_cast<Accumulator<T>>(INFINITY);
    Offset winner = kNowhere<Offset>;
    each_position(p, at.i, at.j, [&](int64_t tap, int64_t i, int64_t j) {
      const auto value = static_cast<Accumulator<T>>(input.at(at.b, at.c, i, j));
      if (value > largest || value != value || winner == kNowhere<Offset>) {
        largest = value;
        winner = static_cast<Offset>(tap);
      }
    });
    output.at(at.b, at.c, at.i, at.j) = static_cast<T>(largest);
    offset.at(at.b, at.c, at.i, at.j) = winner;
  });
}

// dL/da[i, j] = sum of the deltas of those windows whose winner is (i, j).
template <typename T, typename Offset>
__global__ void max_pool2d_input_grad(PoolProblem p, View<const T> delta, View<const Offset> offset,
                                      View<T> input_grad, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const Position at = positions.position(number);
    Accumulator<T> sum = 0;
    each_window(p, at.i, at.j, [&](int64_t m, int64_t n) {
      const int64_t tap = offset.at(at.b, at.c, m, n);
      if (tap < p.taps() && p.input_position(kHeight, m, tap / p.kernel[kWidth]) == at.i &&
          p.input_position(kWidth, n, tap % p.kernel[kWidth]) == at.j)
        sum += static_cast<Accumulator<T>>(delta.at(at.b, at.c, m, n));
    });
    input_grad.at(at.b, at.c, at.i, at.j) = static_cast<T>(sum);
  });
}

// The transpose of that map: takes each window's winner.
template <typename T, typename Offset>
__global__ void max_pool2d_gather(PoolProblem p, View<const T> input, View<const Offset> offset,
                                  View<T> output, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const Position at = positions.position(number);
    const int64_t tap = offset.at(at.b, at.c, at.i, at.j);
    const int64_t i = p.input_position(kHeight, at.i, tap / p.kernel[kWidth]);
    const int64_t j = p.input_position(kWidth, at.j, tap % p.kernel[kWidth]);
    const bool is_there = tap < p.taps() && p.inside(kHeight, i) && p.inside(kWidth, j);
    output.at(at.b, at.c, at.i, at.j) = is_there ? input.at(at.b, at.c, i, j) : static_cast<T>(0.f);
  });
}

template <typename A>
__device__ A divisor(const PoolProblem& p, int64_t m, int64_t n) {
  return static_cast<A>(p.row_divisor(m) * p.column_divisor(n));
}

// The sum of the window, divided by its size.
template <typename T>
__global__ void avg_pool2d(PoolProblem p, View<const T> input, View<T> output,
                           Positions positions) {
  using A = Accumulator<T>;
  each(positions.count, [&](int64_t number) {
    const Position at = positions.position(number);
    A sum = 0;
    each_position(p, at.i, at.j, [&](int64_t, int64_t i, int64_t j) {
      sum += static_cast<A>(input.at(at.b, at.c, i, j));
    });
    output.at(at.b, at.c, at.i, at.j) = static_cast<T>(sum / divisor<A>(p, at.i, at.j));
  });
}

// dL/da[i, j] = sum over the windows (i, j) lies in of delta, divided by the window's size.
template <typename T>
__global__ void avg_pool2d_input_grad(PoolProblem p, View<const T> delta, View<T> input_grad,
                                      Positions positions) {
  using A = Accumulator<T>;
  each(positions.count, [&](int64_t number) {
    const Position at = positions.position(number);
    A sum = 0;
    each_window(p, at.i, at.j, [&](int64_t m, int64_t n) {
      sum += static_cast<A>(delta.at(at.b, at.c, m, n)) / divisor<A>(p, m, n);
    });
    input_grad.at(at.b, at.c, at.i, at.j) = static_cast<T>(sum);
  });
}

}  // namespace convbp::cuda::pool::kernels
