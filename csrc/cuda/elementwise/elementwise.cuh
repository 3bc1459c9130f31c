// g (L2), g' (L3) and the bias gradient (L5):
//
//     output[i] = g(input[i])    delta[i] = g'(p_i) grad[i]    bias_grad[c] = sum delta[.., c, ..]
//
// Bound by memory: a thread takes neighbours of its neighbours' elements, so that a warp reads and
// writes whole lines. The sums of L5 are cut into splits whose number depends on the tensor's size
// alone; each is summed by one block in a fixed order, and another kernel adds the splits.
#pragma once

#include "core/channels.h"
#include "cuda/epilogue.h"
#include "cuda/grid.h"

namespace convbp::cuda::kernels {

template <typename T>
__global__ void activate(activation::Activation<Accumulator<T>> g, const T* input, T* output,
                         int64_t count) {
  each(count, [&](int64_t i) {
    output[i] = static_cast<T>(g.value(static_cast<Accumulator<T>>(input[i])));
  });
}

template <typename T>
__global__ void error_signal(activation::Activation<Accumulator<T>> g, const T* grad,
                             const T* saved, T* delta, int64_t count) {
  each(count, [&](int64_t i) { delta[i] = delta_of<T>(g, grad[i], saved[i]); });
}

// The cut of the sums: a block of 32 x 8 threads takes 32 columns, neighbours in memory, of `rows`
// rows. Rows and columns are (N * H * W, C) where channels are innermost. Otherwise each channel is
// by itself, and its N x H * W elements are read as rows of 32.
struct Sums {
  Channels size;
  int64_t rows, splits;

  static constexpr int kColumns = 32, kRows = 8;
};

// Adds the eight rows of threads and gives column x's sum to thread (x, 0).
template <typename A>
__device__ A sum_of_rows(A value) {
  A* const shared = shared_memory<A>();
  shared[threadIdx.y * Sums::kColumns + threadIdx.x] = value;
  barrier();
  A sum = 0;
  if (threadIdx.y == 0)
    for (int y = 0; y < Sums::kRows; ++y) sum += shared[y * Sums::kColumns + threadIdx.x];
  return sum;
}

// Channels innermost: block (x, y) has channels 32 x ... and split y of the rows.
// partial [splits, C]
template <typename T>
__global__ void error_signal_columns(activation::Activation<Accumulator<T>> g, const T* grad,
                                     const T* saved, T* delta, Sums s, Accumulator<T>* partial) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * Sums::kColumns + threadIdx.x;
  const int64_t end = std::min((blockIdx.y + 1) * s.rows, s.size.outer);
  Accumulator<T> sum = 0;
  if (c < s.size.channels)
    for (int64_t row = blockIdx.y * s.rows + threadIdx.y; row < end; row += Sums::kRows) {
      const int64_t i = row * s.size.channels + c;
      delta[i] = delta_of<T>(g, grad[i], saved[i]);
      sum += static_cast<Accumulator<T>>(delta[i]);
    }
  sum = sum_of_rows(sum);
  if (threadIdx.y == 0 && c < s.size.channels) partial[blockIdx.y * s.size.channels + c] = sum;
}

// Pixels innermost: block (x, y) has channel x and split y of its N * H * W elements.
// partial [splits, C]
template <typename T>
__global__ void error_signal_nchw(activation::Activation<Accumulator<T>> g, const T* grad,
                                  const T* saved, T* delta, Sums s, Accumulator<T>* partial) {
  const int64_t c = blockIdx.x, step = Sums::kColumns * Sums::kRows, inner = s.size.inner;
  const int64_t begin = blockIdx.y * s.rows * Sums::kColumns;
  const int64_t end = std::min(begin + s.rows * Sums::kColumns, s.size.outer * inner);
  int64_t e = begin + threadIdx.y * Sums::kColumns + threadIdx.x;
  // A division for each element would cost more than the memory does.
  int64_t sample = e / inner, pixel = e % inner;
  const int64_t samples = step / inner, pixels = step % inner;
  Accumulator<T> sum = 0;
  for (; e < end; e += step) {
    const int64_t i = (sample * s.size.channels + c) * inner + pixel;
    delta[i] = delta_of<T>(g, grad[i], saved[i]);
    sum += static_cast<Accumulator<T>>(delta[i]);
    sample += samples, pixel += pixels;
    if (pixel >= inner) pixel -= inner, ++sample;
  }
  sum = sum_of_rows(sum);
  if (threadIdx.y == 0) {
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x == 0) partial[blockIdx.y * s.size.channels + c] = sum;
  }
}

template <typename T>
__global__ void sum_of_splits(const Accumulator<T>* partial, int64_t splits, int64_t channels,
                              T* bias_grad) {
  each(channels, [&](int64_t c) {
    Accumulator<T> sum = 0;
    for (int64_t split = 0; split < splits; ++split) sum += partial[split * channels + c];
    bias_grad[c] = static_cast<T>(sum);
  });
}

}  // namespace convbp::cuda::kernels
