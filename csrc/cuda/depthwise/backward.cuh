// The whole backward pass of a depthwise convolution: error signal (L3), weight gradient (L4), bias
// gradient (L5), input gradient (L6).
//
//     for every sample b, channel c, output position (m, n)
//       delta[b, c, m, n] = g'(p[b, c, m, n]) * grad[b, c, m, n]
//       bias_grad[c] += delta[b, c, m, n]
//       for every tap (r, s) that meets an input position (i, j) there
//         input_grad[b, c, i, j] += delta[b, c, m, n] * w[c, r, s]
//         weight_grad[c, r, s] += delta[b, c, m, n] * a[b, c, i, j]
//
// Bound by memory: one after the other, L3 with L5, L4 and L6 read grad, p, a and twice delta, and
// write delta and input_grad. Here grad, p and a are read and input_grad is written, four tensors
// instead of seven; without an activation, three instead of four.
//
// A block takes tiles of input positions. The deltas they meet, tile and halo, are computed once
// and go to shared memory, rounded as L3 by itself rounds them. Both sums read them there: an input
// position needs its own `a` alone for L4, and no other block's. A thread has strips of 4 rows of a
// column, and keeps R * S + 1 sums for the filter's gradients from tile to tile.
//
// - channels innermost: tiles of 16 x 8 positions of up to 64 channels, of which a thread loads and
//   stores two at once; the lanes are channels.
// - columns innermost: tiles of up to 32 x 32 positions of a plane, or of several planes; the lanes
//   are columns.
//
// Compiled for R = S = 3, 5, 7 and strides 1 and 2, a padding less than the filter, and tensors
// that all have their channels innermost, an even number of them, or all their columns. 32 bits
// have to count in a plane: products of 64 bits for the addresses would be as many instructions as
// the convolution. The tiles around read the halo again, from the L2 cache as a rule: counted for
// 3x3 of 96x28x28, channels innermost, grad and p are read 1.30 times, a and input_grad once;
// columns innermost, all once. The speed is not measured yet.
#pragma once

#include "cuda/depthwise/depthwise.h"
#include "cuda/depthwise/splits.cuh"
#include "cuda/depthwise/strip.cuh"

namespace convbp::cuda::depthwise {

// The cut of the input positions. Strips of rows begin where tap 0 meets a delta, see Strip.
template <int taps, int stride, bool channels_innermost>
struct Tile {
  using S = Strip<Direction::kBackward, taps, stride>;
  static constexpr int kLength = 4;  // rows of a strip
  static constexpr int kColumns = 8, kRows = 16;
  // Channels of a thread: the sums for their filters are to stay in registers.
  static constexpr int V = channels_innermost ? 2 : 1;

  int rows, columns;  // positions of a tile
  int pitch;          // deltas from one of their rows to the next
  int at_once;        // channels of a block

  // The tile of a block of this number of threads; with this pitch where columns are innermost.
  CONVBP_BOTH Tile(const dim3& threads, int pitch_)
      : rows(channels_innermost ? kRows : threads.y * kLength),
        columns(channels_innermost ? kColumns : threads.x),
        pitch(channels_innermost ? S::sources(kColumns) : pitch_),
        at_once(channels_innermost ? threads.x * V : 1) {}

  CONVBP_BOTH int delta_rows() const { return S::sources(rows); }
  CONVBP_BOTH int delta_columns() const { return S::sources(columns); }
  CONVBP_BOTH int deltas() const { return delta_rows() * pitch * at_once; }
};

struct Tiles {
  int rows, columns;  // tiles across a plane
  int count;          // tiles of the whole tensor
  int pitch;          // see Tile
};

// The positions of a plane of V channels; the channels lie side by side and are one load or store.
template <typename T, int V>
struct Plane {
  T* data;
  int row, column;

  __device__ Plane(const View<T>& t, int64_t b, int c)
      : data(t.data + b * t.stride[0] + c * t.stride[1]),
        row(static_cast<int>(t.stride[2])),
        column(static_cast<int>(t.stride[3])) {}

  template <typename A>
  __device__ void load(A (&to)[V], int i, int j) const {
    Vector{1, V, true}.load(to, data + (i * row + j * column));
  }
  template <typename A>
  __device__ void store(const A (&from)[V], int i, int j) const {
    Vector{1, V, true}.store(data + (i * row + j * column), from);
  }
};

namespace kernels {

// Computes delta = g'(p) grad in place, as it would be stored. g' is one loop that is not unrolled:
// it has the code of every activation.
template <typename T, int V, typename A>
__device__ void to_error_signal(const activation::Activation<A>& g, A (&grad)[V], A (&saved)[V]) {
#pragma unroll 1
  for (int times = 0; times < V; ++times) {
    const A delta = static_cast<A>(delta_of<T>(g, grad[0], saved[0]));
#pragma unroll
    for (int v = 0; v + 1 < V; ++v) grad[v] = grad[v + 1], saved[v] = saved[v + 1];
    grad[V - 1] = delta;
  }
}

// partial [splits, taps * taps + 1, channels]: the last tap is the bias. A line is as many tiles as
// a block has slots.
template <typename T, int taps, int stride, bool channels_innermost>
__global__ void __launch_bounds__(kThreads, 1)
    backward(StripAxis height, StripAxis width, int all_channels, ErrorSignal<T> signal,
             View<const T> input, View<const T> weight, View<T> input_grad, Tiles tiles,
             Splits splits, Accumulator<T>* partial) {
  using A = Accumulator<T>;
  using TileOf = Tile<taps, stride, channels_innermost>;
  using S = typename TileOf::S;
  constexpr int V = TileOf::V, kLength = TileOf::kLength, kSources = S::sources(kLength);
  height = height.known<taps, stride>();
  width = width.known<taps, stride>();
  const TileOf tile(blockDim, tiles.pitch);
  const int pitch = tile.pitch, at_once = tile.at_once;
  const int lane = channels_innermost ? threadIdx.x : 0, slot = threadIdx.z;
  const int first_channel = blockIdx.x * at_once, c = first_channel + lane * V;
  const Vector in_shared{1, V, true};

  const Filters<taps, V, A> filters(shared_memory<A>(), at_once);
  A* const deltas = filters.data + filters.size() + slot * tile.deltas() + lane * V;
  const int thread = (slot * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  filters.take(weight, first_channel, all_channels, false, thread, kThreads);

  A sum[taps * taps + 1][V] = {};  // the last is the bias
  const int64_t end = std::min((blockIdx.y + 1) * splits.lines_per_split, splits.lines);
  for (int64_t line = blockIdx.y * splits.lines_per_split; line < end; ++line) {
    const int64_t number = line * blockDim.z + slot;
    // A slot after the last tile, or a lane after the last channel, has no rows.
    const bool is_there = number < tiles.count && c < all_channels;
    const int sources = is_there ? height.sources : 0, results = is_there ? height.results : 0;
    const int tile_column = static_cast<int>(number) % tiles.columns;
    const int rest = static_cast<int>(number) / tiles.columns;
    const int tile_row = rest % tiles.rows;
    const int64_t b = rest / tiles.rows;
    const int first_row = S::first_result(height, tile_row, tile.rows);
    const int first_column = S::first_result(width, tile_column, tile.columns);
    const int first_m = S::first_source(height, first_row);
    const int first_n = S::first_source(width, first_column);

    const Plane<const T, V> grad(signal.grad, b, c), saved(signal.saved, b, c), a(input, b, c);
    const Plane<T, V> to(input_grad, b, c);
    const auto load = [&](int i, int j, int place) {
      const int m = first_m + i, n = first_n + j;
      A delta[V] = {};
      if (inside(m, sources) && inside(n, width.sources)) {
        grad.load(delta, m, n);
        if (signal.saved.data) {
          A of_g[V];
          saved.load(of_g, m, n);
          to_error_signal<T>(signal.g, delta, of_g);
        }
        // One of the tiles that have this delta counts it: the one with its tap 0, or the first
        // tile.
        if ((i >= S::kBehind || tile_row == 0) && (j >= S::kBehind || tile_column == 0))
#pragma unroll
          for (int v = 0; v < V; ++v) sum[taps * taps][v] += delta[v];
      }
      in_shared.store(deltas + place * at_once, delta);
    };
    if constexpr (channels_innermost) {
      constexpr unsigned kDeltaColumns = S::sources(TileOf::kColumns);
      constexpr unsigned kDeltas = S::sources(TileOf::kRows) * kDeltaColumns;
      for (unsigned e = threadIdx.y; e < kDeltas; e += blockDim.y)
        load(e / kDeltaColumns, e % kDeltaColumns, e);
    } else {
      for (int i = threadIdx.y; i < tile.delta_rows(); i += blockDim.y)
        for (int j = threadIdx.x; j < tile.delta_columns(); j += blockDim.x)
          load(i, j, i * pitch + j);
    }
    barrier();

    const auto compute = [&](int strip, int column) {
      const int first = first_row + strip * kLength, j = first_column + column;
      if (!inside(j, width.results)) return;
      A x[kLength][V] = {}, sums_of_x[kLength][V] = {};
#pragma unroll
      for (int p = 0; p < kLength; ++p)
        if (inside(first + p, results)) a.load(x[p], first + p, j);
#pragma unroll
      for (int s = 0; s < taps; ++s) {
        if (stride > 1 && (column - s) % stride) continue;
        const int source = S::kBehind + (column - s) / stride;
        const A* const from =
            deltas + (strip * S::sources_apart(kLength) * pitch + source) * at_once;
        A delta[kSources][V];
#pragma unroll
        for (int k = 0; k < kSources; ++k) in_shared.load(delta[k], from + k * pitch * at_once);
#pragma unroll
        for (int r = 0; r < taps; ++r) {
          A w[V];
          filters.load(w, r * taps + s, lane * V);
#pragma unroll
          for (int p = 0; p < kLength; ++p)
#pragma unroll
            for (int k = 0; k < kSources; ++k)
              if (S::tap(p, k) == r)
#pragma unroll
                for (int v = 0; v < V; ++v) {
                  sums_of_x[p][v] += delta[k][v] * w[v];
                  sum[r * taps + s][v] += delta[k][v] * x[p][v];
                }
        }
      }
#pragma unroll
      for (int p = 0; p < kLength; ++p)
        if (inside(first + p, results)) to.store(sums_of_x[p], first + p, j);
    };
    if constexpr (channels_innermost) {
      constexpr unsigned kUnits = TileOf::kRows / kLength * TileOf::kColumns;
      for (unsigned unit = threadIdx.y; unit < kUnits; unit += blockDim.y)
        compute(unit / TileOf::kColumns, unit % TileOf::kColumns);
    } else {
      compute(threadIdx.y, threadIdx.x);
    }
    barrier();
  }

  // The threads of a channel add their sums, the upper half to the lower one and so on:
  // [taps * taps + 1, threads of the half, channels of the block]
  const int of_channel = channels_innermost ? thread / blockDim.x : thread;
  A* const shared = shared_memory<A>();
  for (int half = kThreads * V / at_once / 2; half > 0; half /= 2) {
    const auto place = [&](int k, int number) {
      return shared + (k * half + number) * at_once + lane * V;
    };
    if (half <= of_channel && of_channel < 2 * half)
#pragma unroll
      for (int k = 0; k <= taps * taps; ++k) in_shared.store(place(k, of_channel - half), sum[k]);
    barrier();
    if (of_channel < half)
#pragma unroll
      for (int k = 0; k <= taps * taps; ++k) {
        A other[V];
        in_shared.load(other, place(k, of_channel));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[k][v] += other[v];
      }
    barrier();
  }
  if (of_channel > 0 || c >= all_channels) return;
  A* const to = partial + blockIdx.y * static_cast<int64_t>(taps * taps + 1) * all_channels + c;
#pragma unroll
  for (int k = 0; k <= taps * taps; ++k)
#pragma unroll
    for (int v = 0; v < V; ++v) to[static_cast<int64_t>(k) * all_channels + v] = sum[k][v];
}

// L3 by itself, for a backward pass that is not compiled as one.
template <typename T>
__global__ void error_signal(ErrorSignal<T> signal, View<T> delta, Positions positions) {
  each(positions.count, [&](int64_t number) {
    const auto [b, c, m, n] = positions.position(number);
    delta.at(b, c, m, n) =
        delta_of<T>(signal.g, signal.grad.at(b, c, m, n), signal.saved.at(b, c, m, n));
  });
}

}  // namespace kernels
}  // namespace convbp::cuda::depthwise
