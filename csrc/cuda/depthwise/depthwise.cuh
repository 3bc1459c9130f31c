// Depthwise convolution (L1, L2) and its input gradient (L6):
//
//     for every sample b, channel c and result position (i, j)
//       for every tap (r, s) that meets a source position (m, n) there
//         result[b, c, i, j] += source[b, c, m, n] * w[c, r, s]
//
// Bound by memory: there are no more than R * S products for each element read and written. Three
// kernels.
//
// - `channels`, where channels are innermost: a thread has 4 neighbouring channels (one load of 8
//   or 16 bytes) of 4 or 7 neighbouring columns, so that a source it loads serves up to S taps; the
//   filters are in shared memory. A block has up to 128 channels of 8 and more rows, and walks
//   along them: what rows share is in the L1 cache.
// - `nchw`, where columns are innermost: a block takes a tile of 32 x 32 results of a plane (of
//   small planes, several), and brings the sources they meet to shared memory; a thread has 4 rows
//   of a column.
// - `general`, one thread a result, for any kernel, stride, dilation and number of filters a
//   channel.
//
// The first two are compiled for R = S = 3, 5, 7 and strides 1 and 2. Backward with stride 1 is
// forward with the filter flipped. With stride 2 a strip begins where tap 0 meets a source, so that
// products with the zeros between the sources do not exist. From DRAM each source is read once, but
// for the rows around a block's (R - 1 for 8 or more; most of those are in the L2 cache), and each
// result is written once. The speed is not measured yet.
#pragma once

#include "cuda/depthwise/strip.cuh"

namespace convbp::cuda::depthwise {

struct Layer {
  StripAxis height, width;
  int channels;  // channels of the result
  int filters;   // filters of a source channel (backward, of a result channel)
  bool flipped;  // the filter is flipped; forward only
};

namespace kernels {

// Finishes and stores sums, which began with the bias. g is one loop that is not unrolled: it has
// the code of every activation.
template <int size, typename T>
__device__ void finish(const Epilogue<T>& epilogue, Accumulator<T> (&sum)[size], T* result,
                       int64_t offset, const Vector& vector) {
  using A = Accumulator<T>;
  if (epilogue.pre_activation) vector.store(epilogue.pre_activation + offset, sum);
  if (epilogue.activation.row >= 0) {
#pragma unroll 1
    for (int times = 0; times < size; ++times) {
      const A value = epilogue.activation.value(sum[0]);
#pragma unroll
      for (int v = 0; v + 1 < size; ++v) sum[v] = sum[v + 1];
      sum[size - 1] = value;
    }
  }
  vector.store(result + offset, sum);
}

// --- channels innermost -----------------------------------------------------------------------

// The cut of the results into blocks, in the order in which these are numbered.
struct ChannelBlocks {
  int channels, chunks, rows;  // blocks across channels, along the columns, along the rows
  int strips;                  // strips of a chunk
  bool packed;
};

template <typename T, Direction direction, int taps, int stride, int length>
__global__ void __launch_bounds__(kThreads, 1)
    channels(Layer layer, View<const T> source, View<const T> weight, Epilogue<T> epilogue,
             View<T> result, ChannelBlocks blocks) {
  using A = Accumulator<T>;
  using S = Strip<direction, taps, stride>;
  constexpr int V = kVector<T>, kSources = S::sources(length);
  const StripAxis height = layer.height.known<taps, stride>();
  const StripAxis width = layer.width.known<taps, stride>();
  unsigned number = blockIdx.x;
  const auto take = [&](int count) {
    const int digit = static_cast<int>(number % count);
    number /= count;
    return digit;
  };
  const int at_once = blockDim.x * V;
  const int first_channel = take(blocks.channels) * at_once;
  const int first_strip = take(blocks.chunks) * blocks.strips;
  const int row = take(blocks.rows) * blockDim.y + threadIdx.y;
  const int64_t b = number;

  const Filters<taps, V, A> filters(shared_memory<A>(), at_once);
  filters.take(weight, first_channel, layer.channels, layer.flipped,
               threadIdx.y * blockDim.x + threadIdx.x, blockDim.x * blockDim.y);
  barrier();

  const int c = first_channel + threadIdx.x * V;
  if (c >= layer.channels || row >= height.results) return;
  const int there = std::min(V, layer.channels - c);
  const Vector from{source.stride[1], there, blocks.packed};
  const Vector to{result.stride[1], there, blocks.packed};
  A bias[V] = {};
  if (epilogue.bias) Vector{1, there, false}.load(bias, epilogue.bias + c);
  const int end = std::min(first_strip + blocks.strips, S::count(width, length));
#pragma unroll 1
  for (int strip = first_strip; strip < end; ++strip) {
    const int first = S::first_result(width, strip, length);
    const int n = S::first_source(width, first);
    A sum[length][V];
#pragma unroll
    for (int p = 0; p < length; ++p)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[p][v] = bias[v];
    each_tap<direction>(height, row, [&](int r, int m) {
      const T* const line = &source.at(b, c, m, 0);
      A x[kSources][V] = {};
#pragma unroll
      for (int k = 0; k < kSources; ++k)
        if (inside(n + k, width.sources)) from.load(x[k], line + (n + k) * source.stride[3]);
#pragma unroll
      for (int s = 0; s < taps; ++s) {
        A w[V];
        filters.load(w, r * taps + s, threadIdx.x * V);
#pragma unroll
        for (int p = 0; p < length; ++p)
#pragma unroll
          for (int k = 0; k < kSources; ++k)
            if (S::tap(p, k) == s)
#pragma unroll
              for (int v = 0; v < V; ++v) sum[p][v] += x[k][v] * w[v];
      }
    });
#pragma unroll 1
    for (int p = 0; p < length; ++p) {
      if (inside(first + p, width.results))
        finish(epilogue, sum[0], result.data,
               b * result.stride[0] + c * result.stride[1] + row * result.stride[2] +
                   (first + p) * result.stride[3],
               to);
#pragma unroll
      for (int q = 0; q + 1 < length; ++q)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[q][v] = sum[q + 1][v];
    }
  }
}

// --- columns innermost ------------------------------------------------------------------------

struct PlaneBlocks {
  int columns, rows;  // blocks across a plane
  int planes;         // planes of the whole tensor
  int pitch;          // pitch of a tile's rows
};

template <typename T, Direction direction, int taps, int stride, int length>
__global__ void __launch_bounds__(kThreads, 1)
    nchw(Layer layer, View<const T> source, View<const T> weight, Epilogue<T> epilogue,
         View<T> result, PlaneBlocks blocks) {
  using A = Accumulator<T>;
  using S = Strip<direction, taps, stride>;
  constexpr int kSources = S::sources(length);
  const StripAxis height = layer.height.known<taps, stride>();
  const StripAxis width = layer.width.known<taps, stride>();
  const int tile_columns = S::sources(blockDim.x), tile_rows = S::sources(blockDim.y * length);
  const int first_column =
      S::first_result(width, static_cast<int>(blockIdx.x % blocks.columns), blockDim.x);
  const int rest = static_cast<int>(blockIdx.x / blocks.columns);
  const int first_row = S::first_result(height, rest % blocks.rows, blockDim.y * length);
  const int m = S::first_source(height, first_row), n = S::first_source(width, first_column);
  const int plane = rest / blocks.rows * blockDim.z + threadIdx.z;
  const bool is_there = plane < blocks.planes;
  const int b = plane / layer.channels, c = plane % layer.channels;

  const int tile_size = tile_rows * blocks.pitch;
  Filters<taps, 1, A> filters(nullptr, 1);
  A* const tile = shared_memory<A>() + threadIdx.z * (tile_size + filters.size());
  filters.data = tile + tile_size;
  // Columns lie even ones first where neighbouring results meet every other column: in different
  // banks.
  const auto place = [&](int column) {
    const bool apart = S::kForward && stride == 2;
    return apart ? column % 2 * ((tile_columns + 1) / 2) + column / 2 : column;
  };
  if (is_there) {
    for (int i = threadIdx.y; i < tile_rows; i += blockDim.y)
      for (int j = threadIdx.x; j < tile_columns; j += blockDim.x)
        tile[i * blocks.pitch + place(j)] =
            inside(m + i, height.sources) && inside(n + j, width.sources)
                ? static_cast<A>(source.at(b, c, m + i, n + j))
                : A(0);
    filters.take(weight, c, layer.channels, layer.flipped, threadIdx.y * blockDim.x + threadIdx.x,
                 blockDim.x * blockDim.y);
  }
  barrier();

  const int column = first_column + threadIdx.x, first = first_row + threadIdx.y * length;
  if (!is_there || !inside(column, width.results) || first >= height.results) return;
  const A* const strip = tile + (S::first_source(height, first) - m) * blocks.pitch;
  const A bias = epilogue.bias ? static_cast<A>(epilogue.bias[c]) : A(0);
  A sum[length][1];
#pragma unroll
  for (int p = 0; p < length; ++p) sum[p][0] = bias;
  each_tap<direction>(width, column, [&](int s, int j) {
    A x[kSources];
#pragma unroll
    for (int k = 0; k < kSources; ++k) x[k] = strip[k * blocks.pitch + place(j - n)];
#pragma unroll
    for (int r = 0; r < taps; ++r) {
      A w[1];
      filters.load(w, r * taps + s, 0);
#pragma unroll
      for (int p = 0; p < length; ++p)
#pragma unroll
        for (int k = 0; k < kSources; ++k)
          if (S::tap(p, k) == r) sum[p][0] += x[k] * w[0];
    }
  });
  const Vector one{1, 1, false};
#pragma unroll 1
  for (int p = 0; p < length; ++p) {
    if (inside(first + p, height.results))
      finish(epilogue, sum[0], result.data,
             b * result.stride[0] + c * result.stride[1] + (first + p) * result.stride[2] +
                 column * result.stride[3],
             one);
#pragma unroll
    for (int q = 0; q + 1 < length; ++q) sum[q][0] = sum[q + 1][0];
  }
}

// --- anything ---------------------------------------------------------------------------------

template <typename T, Direction direction>
__global__ void __launch_bounds__(kThreads, 1)
    general(Layer layer, View<const T> source, View<const T> weight, Epilogue<T> epilogue,
            View<T> result, Positions positions) {
  using A = Accumulator<T>;
  each(positions.count, [&](int64_t number) {
    const auto [b, c, i, j] = positions.position(number);
    constexpr bool kForward = direction == Direction::kForward;
    const int first = static_cast<int>(kForward ? c : c * layer.filters);
    A sum = 0;
    for (int o = first; o < first + (kForward ? 1 : layer.filters); ++o) {
      const int channel = kForward ? o / layer.filters : o;
      each_tap<direction>(layer.height, static_cast<int>(i), [&](int r, int m) {
        const T* const line = &source.at(b, channel, m, 0);
        const T* const filter = &weight.at(o, 0, r, 0);
        each_tap<direction>(layer.width, static_cast<int>(j), [&](int s, int n) {
          sum += static_cast<A>(line[n * source.stride[3]]) *
                 static_cast<A>(filter[s * weight.stride[3]]);
        });
      });
    }
    T* const to = &result.at(b, c, i, j);
    *to = epilogue.finish(sum, c, to - result.data);
  });
}

}  // namespace kernels
}  // namespace convbp::cuda::depthwise
