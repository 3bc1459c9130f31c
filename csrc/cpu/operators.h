// The three operators, which every algorithm has in its own namespace: declared in its header,
// instantiated in its source file for each element type that it can compute. bias_grad may be null:
// then it is not computed.
#pragma once

#include "core/conv_problem.h"
#include "cpu/epilogue.h"

namespace convbp {

enum class Operator { kForward, kInputGrad, kWeightGrad };

}  // namespace convbp

#define CONVBP_DECLARE_OPERATORS                                                                \
  template <typename T>                                                                         \
  void conv2d(const ConvProblem& problem, View<const T> input, View<const T> weight,            \
              const Epilogue<T>& epilogue, View<T> output);                                     \
  template <typename T>                                                                         \
  void conv2d_input_grad(const ConvProblem& problem, View<const T> weight, View<const T> delta, \
                         View<T> input_grad);                                                   \
  template <typename T>                                                                         \
  void conv2d_weight_grad(const ConvProblem& problem, View<const T> input, View<const T> delta, \
                          View<T> weight_grad, T* bias_grad);

#define CONVBP_INSTANTIATE_OPERATORS(T)                                                       \
  template void conv2d(const ConvProblem&, View<const T>, View<const T>, const Epilogue<T>&,  \
                       View<T>);                                                              \
  template void conv2d_input_grad(const ConvProblem&, View<const T>, View<const T>, View<T>); \
  template void conv2d_weight_grad(const ConvProblem&, View<const T>, View<const T>, View<T>, T*);
