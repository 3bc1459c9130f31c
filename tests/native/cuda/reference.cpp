#include "reference.h"

#include "cpu/reference/conv2d.h"
#include "cpu/reference/pool2d.h"

namespace convbp::expected {

void conv2d(const ConvProblem& p, Read input, Read weight, const double* bias, Write output) {
  Epilogue<double> epilogue;
  epilogue.bias = bias;
  reference::conv2d<double>(p, input, weight, epilogue, output);
}

void conv2d_input_grad(const ConvProblem& p, Read weight, Read delta, Write input_grad) {
  reference::conv2d_input_grad<double>(p, weight, delta, input_grad);
}

void conv2d_weight_grad(const ConvProblem& p, Read input, Read delta, Write weight_grad,
                        double* bias_grad) {
  reference::conv2d_weight_grad<double>(p, input, delta, weight_grad, bias_grad);
}

void max_pool2d(const PoolProblem& p, Read input, Write output, View<uint32_t> offset) {
  pool::reference::max_pool2d<double, uint32_t>(p, input, output, offset);
}

void max_pool2d_input_grad(const PoolProblem& p, Read delta, View<const uint32_t> offset,
                           Write input_grad) {
  pool::reference::max_pool2d_input_grad<double, uint32_t>(p, delta, offset, input_grad);
}

void avg_pool2d(const PoolProblem& p, Read input, Write output) {
  pool::reference::avg_pool2d<double>(p, input, output);
}

void avg_pool2d_input_grad(const PoolProblem& p, Read delta, Write input_grad) {
  pool::reference::avg_pool2d_input_grad<double>(p, delta, input_grad);
}

}  // namespace convbp::expected
