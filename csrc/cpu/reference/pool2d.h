// Pooling (L8) as loop nests: the first thing to read; the fast kernels are tested against them.
// Sums run in double precision whatever the element type, in the order of the loops.
#pragma once

#include <limits>

#include "core/pool_problem.h"

namespace convbp::pool::reference {

// Calls body(b, c, m, n) for every output position.
template <typename Body>
void each_output(const PoolProblem& p, const Body& body) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t m = 0; m < p.out_size[kHeight]; ++m)
        for (int64_t n = 0; n < p.out_size[kWidth]; ++n) body(b, c, m, n);
}

// Calls body(b, c, i, j) for every input position.
template <typename Body>
void each_input(const PoolProblem& p, const Body& body) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t i = 0; i < p.in_size[kHeight]; ++i)
        for (int64_t j = 0; j < p.in_size[kWidth]; ++j) body(b, c, i, j);
}

// Takes the largest of the window, the first of equals. NaN counts as larger than anything, and the
// last NaN wins.
template <typename T, typename Offset>
void max_pool2d(const PoolProblem& p, View<const T> input, View<T> output, View<Offset> offset) {
  each_output(p, [&](int64_t b, int64_t c, int64_t m, int64_t n) {
    double largest = -std::numeric_limits<double>::infinity();
    Offset winner = kNowhere<Offset>;
    each_position(p, m, n, [&](int64_t tap, int64_t i, int64_t j) {
      const double value = static_cast<double>(input.at(b, c, i, j));
      if (value > largest || value != value || winner == kNowhere<Offset>) {
        largest = value;
        winner = static_cast<Offset>(tap);
      }
    });
    output.at(b, c, m, n) = static_cast<T>(largest);
    offset.at(b, c, m, n) = winner;
  });
}

// L8: dL/da[i, j] = sum of the deltas of those windows whose winner is (i, j).
template <typename T, typename Offset>
void max_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<const Offset> offset,
                           View<T> input_grad) {
  each_input(p, [&](int64_t b, int64_t c, int64_t i, int64_t j) {
    double sum = 0.0;
    each_window(p, i, j, [&](int64_t m, int64_t n) {
      const int64_t tap = offset.at(b, c, m, n);
      if (tap < p.taps() && p.input_position(kHeight, m, tap / p.kernel[kWidth]) == i &&
          p.input_position(kWidth, n, tap % p.kernel[kWidth]) == j)
        sum += static_cast<double>(delta.at(b, c, m, n));
    });
    input_grad.at(b, c, i, j) = static_cast<T>(sum);
  });
}

// The sum of the window, divided by its size.
template <typename T>
void avg_pool2d(const PoolProblem& p, View<const T> input, View<T> output) {
  each_output(p, [&](int64_t b, int64_t c, int64_t m, int64_t n) {
    double sum = 0.0;
    each_position(p, m, n, [&](int64_t, int64_t i, int64_t j) {
      sum += static_cast<double>(input.at(b, c, i, j));
    });
    output.at(b, c, m, n) =
        static_cast<T>(sum / static_cast<double>(p.row_divisor(m) * p.column_divisor(n)));
  });
}

// L8: dL/da[i, j] = sum over the windows (i, j) lies in of delta, divided by the window's size.
template <typename T>
void avg_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<T> input_grad) {
  each_input(p, [&](int64_t b, int64_t c, int64_t i, int64_t j) {
    double sum = 0.0;
    each_window(p, i, j, [&](int64_t m, int64_t n) {
      sum += static_cast<double>(delta.at(b, c, m, n)) /
             static_cast<double>(p.row_divisor(m) * p.column_divisor(n));
    });
    input_grad.at(b, c, i, j) = static_cast<T>(sum);
  });
}

}  // namespace convbp::pool::reference
