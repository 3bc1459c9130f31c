// Gradients of the filters, which are sums over all pixels: cut into splits, whose sums are added.
#pragma once

#include "core/conv_problem.h"
#include "cuda/epilogue.h"
#include "cuda/grid.h"

namespace convbp::cuda::depthwise {

// A split is summed by one block of each group of channels, line by line.
struct Splits {
  int64_t lines, lines_per_split;
  int64_t count;
};

// The cut depends on the problem alone: so does the order of the sums. A split has at least four
// pixels for each tap, so that the partial sums are a small part of the traffic.
inline Splits cut(int64_t lines, int64_t pixels_per_line, int64_t taps, int64_t other_blocks) {
  constexpr int64_t kMost = 512, kBlocks = 2048;
  const int64_t most = std::clamp<int64_t>(kBlocks / other_blocks, 1, kMost);
  Splits p{lines, 0, 0};
  p.lines_per_split =
      std::max({int64_t{1}, divide_up(4 * taps, pixels_per_line), divide_up(lines, most)});
  p.count = divide_up(lines, p.lines_per_split);
  return p;
}

// The gradients that the sums become.
template <typename T>
struct FilterGradients {
  int rows, columns, filters;  // sizes of the weight
  View<T> weight_grad;
  T* bias_grad;  // or null

  // One sum for each tap and the bias: [rows * columns + 1, filters].
  CONVBP_BOTH int64_t sums() const { return (int64_t{rows} * columns + 1) * filters; }
};

template <typename T>
FilterGradients<T> filter_gradients(const ConvProblem& p, View<T> weight_grad, T* bias_grad) {
  return {static_cast<int>(p.kernel[kHeight]), static_cast<int>(p.kernel[kWidth]),
          static_cast<int>(p.groups * p.out_channels), weight_grad, bias_grad};
}

namespace kernels {

// A block of 32 x 8 threads adds the splits of 32 sums, every eighth split a thread.
template <typename T>
__global__ void __launch_bounds__(256, 1)
    reduce_splits(const Accumulator<T>* partial, int64_t splits, FilterGradients<T> to) {
  using A = Accumulator<T>;
  const int64_t sums = to.sums();
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  A sum = 0;
  if (e < sums)
    for (int64_t split = threadIdx.y; split < splits; split += blockDim.y)
      sum += partial[split * sums + e];
  A* const shared = shared_memory<A>();
  shared[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  barrier();
  if (threadIdx.y > 0 || e >= sums) return;
  sum = 0;
  for (int y = 0; y < static_cast<int>(blockDim.y); ++y)
    sum += shared[y * blockDim.x + threadIdx.x];
  const int o = static_cast<int>(e % to.filters), tap = static_cast<int>(e / to.filters);
  if (tap < to.rows * to.columns)
    to.weight_grad.at(o, 0, tap / to.columns, tap % to.columns) = static_cast<T>(sum);
  else if (to.bias_grad)
    to.bias_grad[o] = static_cast<T>(sum);
}

}  // namespace kernels

// Memory for the splits' sums: [splits, sums].
template <typename T>
Accumulator<T>* partial_sums(Context& context, const Splits& splits, const FilterGradients<T>& to) {
  return static_cast<Accumulator<T>*>(
      context.scratch(splits.count * to.sums() * sizeof(Accumulator<T>)));
}

template <typename T>
void reduce_splits(Context& context, const Accumulator<T>* partial, const Splits& splits,
                   const FilterGradients<T>& to) {
  launch(context, "depthwise_reduce_splits", kernels::reduce_splits<T>,
         dim3(static_cast<unsigned>(divide_up(to.sums(), 32))), dim3(32, 8),
         32 * 8 * sizeof(Accumulator<T>), partial, splits.count, to);
}

}  // namespace convbp::cuda::depthwise
