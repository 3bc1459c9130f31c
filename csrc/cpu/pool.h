// Pooling (L8): the kernels as the boundary calls them, and the table of an instruction set's.
#pragma once

#include <cstdint>

#include "../pool_problem.h"

namespace convbp::pool {

// Offsets are unsigned bytes where they fit, else 32-bit; the largest value says that no position
// of the window lay inside the input.
template <typename Offset>
constexpr Offset kNowhere = static_cast<Offset>(~Offset(0));

template <typename T, typename Offset>
struct MaxTable {
  void (*forward)(const PoolProblem&, View<const T> input, View<T> output, View<Offset> offset);
  // input_grad[i, j] = sum of the deltas whose window took (i, j)
  void (*input_grad)(const PoolProblem&, View<const T> delta, View<const Offset> offset,
                     View<T> input_grad);
  // output[m, n] = the input position that the window's offset says
  void (*gather)(const PoolProblem&, View<const T> input, View<const Offset> offset,
                 View<T> output);
};

template <typename T>
struct AverageTable {
  void (*forward)(const PoolProblem&, View<const T> input, View<T> output);
  void (*input_grad)(const PoolProblem&, View<const T> delta, View<T> input_grad);
};

template <typename T, typename Offset>
const MaxTable<T, Offset>& max_table();
template <typename T>
const AverageTable<T>& average_table();

}  // namespace convbp::pool
