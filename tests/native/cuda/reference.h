// The loop nests of the CPU (csrc/cpu/reference) on float64, in a translation unit of
// their own: CPU and GPU each have an Epilogue of that name.
#pragma once

#include "core/conv_problem.h"
#include "core/pool_problem.h"

namespace convbp::expected {

using Read = View<const double>;
using Write = View<double>;

void conv2d(const ConvProblem&, Read input, Read weight, const double* bias, Write output);
void conv2d_input_grad(const ConvProblem&, Read weight, Read delta, Write input_grad);
void conv2d_weight_grad(const ConvProblem&, Read input, Read delta, Write weight_grad,
                        double* bias_grad);
void max_pool2d(const PoolProblem&, Read input, Write output, View<uint32_t> offset);
void max_pool2d_input_grad(const PoolProblem&, Read delta, View<const uint32_t> offset,
                           Write input_grad);
void avg_pool2d(const PoolProblem&, Read input, Write output);
void avg_pool2d_input_grad(const PoolProblem&, Read delta, Write input_grad);

}  // namespace convbp::expected
