// Weight gradient (L4) and bias gradient (L5) of depthwise convolutions:
//
//     for every filter o, of channel c, and every tap (r, s)
//       for every sample b and output position (m, n) whose input position (i, j) is inside
//         weight_grad[o, r, s] += delta[b, o, m, n] * input[b, c, i, j]
//       bias_grad[o] = the sum of delta[b, o, m, n]
//
// Bound by memory: input and delta are read once from DRAM, and what several taps need of them
// comes from the L1 cache. The sum over the pixels is cut into splits; a block sums a split in a
// fixed order, and a second kernel adds the splits in theirs.
//
// - `strips`, compiled for R = S = 3, 5, 7 and strides 1 and 2: a thread has one tap of the axis
//   across and all taps of the axis along a strip, whose input it loads once into registers. Where
//   channels are innermost it has 4 of them and 4 neighbouring columns, along the width; where
//   columns are, the lanes have neighbouring columns, of 8 rows each, along the height. A block has
//   all taps of its channels.
// - `general`, for the rest: a thread goes over the split once for each of its taps.
//
// The speed is not measured yet.
#pragma once

#include "cuda/depthwise/splits.cuh"
#include "cuda/depthwise/strip.cuh"

namespace convbp::cuda::depthwise {

namespace kernels {

// partial [splits, taps * taps + 1, channels]: the last tap is the bias. Lines are output rows of
// all samples; where a strip's axis is the height, rows of strips.
template <typename T, int taps, int stride, int length, int V, bool along_height>
__global__ void __launch_bounds__(256, 1)
    strips(StripAxis height, StripAxis width, int all_channels, View<const T> input,
           View<const T> delta, Splits splits, bool packed, Accumulator<T>* partial) {
  using A = Accumulator<T>;
  using S = Strip<Direction::kForward, taps, stride>;
  constexpr int kSources = S::sources(length);
  constexpr int kAlong = along_height ? 2 : 3, kAcross = 5 - kAlong;
  const StripAxis along = (along_height ? height : width).template known<taps, stride>();
  const StripAxis across = (along_height ? width : height).template known<taps, stride>();
  const int lane = threadIdx.x, tap_across = threadIdx.y, slot = threadIdx.z;
  const int lanes = blockDim.x, slots = blockDim.z;
  const int first_channel = along_height ? blockIdx.x : blockIdx.x * lanes * V;
  const int c = along_height ? first_channel : first_channel + lane * V;
  const int there = std::max(0, std::min(V, all_channels - c));
  const Vector from_input{input.stride[1], there, packed && there == V};
  const Vector from_delta{delta.stride[1], there, packed && there == V};

  A sum[taps + 1][V] = {};  // the last is the bias
  const auto add = [&](int64_t b, int strip, int q) {
    const int source = q * across.stride - across.pad + tap_across;
    const bool meets = inside(source, across.sources);
    if (!meets && tap_across > 0) return;
    const int first = strip * length, n = S::first_source(along, first);
    const T* const from =
        delta.data + b * delta.stride[0] + c * delta.stride[1] + q * delta.stride[kAcross];
    A d[length][V] = {};
#pragma unroll
    for (int p = 0; p < length; ++p)
      if (first + p < along.results)
        from_delta.load(d[p], from + (first + p) * delta.stride[kAlong]);
#pragma unroll
    for (int p = 0; p < length; ++p)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[taps][v] += d[p][v];
    if (!meets) return;
    const T* const line =
        input.data + b * input.stride[0] + c * input.stride[1] + source * input.stride[kAcross];
    A x[kSources][V] = {};
#pragma unroll
    for (int k = 0; k < kSources; ++k)
      if (inside(n + k, along.sources))
        from_input.load(x[k], line + (n + k) * input.stride[kAlong]);
#pragma unroll
    for (int p = 0; p < length; ++p)
#pragma unroll
      for (int k = 0; k < taps; ++k)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[k][v] += d[p][v] * x[p * stride + k][v];
  };
  const int strip_count = S::count(along, length);
  const int lines_per_sample = along_height ? strip_count : across.results;
  const int64_t end = std::min((blockIdx.y + 1) * splits.lines_per_split, splits.lines);
  if (there > 0)
    for (int64_t line = blockIdx.y * splits.lines_per_split + slot; line < end; line += slots) {
      const int64_t b = line / lines_per_sample;
      const int at = static_cast<int>(line - b * lines_per_sample);
      if constexpr (along_height)
        for (int q = lane; q < across.results; q += lanes) add(b, at, q);
      else
        for (int strip = 0; strip < strip_count; ++strip) add(b, strip, at);
    }

  if constexpr (along_height)
    for (int mask = lanes / 2; mask > 0; mask /= 2)
#pragma unroll
      for (int k = 0; k <= taps; ++k) sum[k][0] += shuffle_xor(sum[k][0], mask);
  // The slots are added in their order: [slots, taps across, taps along + 1, channels of the block]
  const int at_once = along_height ? 1 : lanes * V;
  const int sums = taps * (taps + 1) * at_once;
  A* const shared = shared_memory<A>();
  if (!along_height || lane == 0)
#pragma unroll
    for (int k = 0; k <= taps; ++k)
      Vector{1, V, true}.store(shared + slot * sums + (tap_across * (taps + 1) + k) * at_once +
                                   (along_height ? 0 : lane * V),
                               sum[k]);
  barrier();
  const int thread = (slot * taps + tap_across) * lanes + lane;
  for (int e = thread; e < sums; e += lanes * taps * slots) {
    const int channel = first_channel + e % at_once;
    const int k = e / at_once % (taps + 1), a = e / at_once / (taps + 1);
    if (channel >= all_channels || (k == taps && a > 0)) continue;
    A total = 0;
    for (int z = 0; z < slots; ++z) total += shared[z * sums + e];
    const int tap = k == taps ? taps * taps : along_height ? k * taps + a : a * taps + k;
    partial[(static_cast<int64_t>(blockIdx.y) * (taps * taps + 1) + tap) * all_channels + channel] =
        total;
  }
}

// A block has 32 filters or, of one filter, neighbouring columns in its lanes.
// partial [splits, R * S + 1, filters]
template <typename T>
__global__ void __launch_bounds__(256, 1)
    general(StripAxis height, StripAxis width, int filters, int multiplier, View<const T> input,
            View<const T> delta, Splits splits, bool channels_innermost, Accumulator<T>* partial) {
  using A = Accumulator<T>;
  const int lane = threadIdx.x;
  const int o = channels_innermost ? blockIdx.x * blockDim.x + lane : blockIdx.x;
  const int first = channels_innermost ? 0 : lane, step = channels_innermost ? 1 : blockDim.x;
  const int64_t begin = blockIdx.y * splits.lines_per_split;
  const int64_t end = std::min(begin + splits.lines_per_split, splits.lines);
  const int taps = height.taps * width.taps;
  for (int tap = threadIdx.y; tap <= taps; tap += blockDim.y) {
    const int r = tap / width.taps, s = tap % width.taps;
    A sum = 0;
    if (o < filters)
      for (int64_t line = begin; line < end; ++line) {
        const int64_t b = line / height.results;
        const int m = static_cast<int>(line - b * height.results);
        const int i = m * height.stride - height.pad + r * height.dilation;
        if (tap < taps && !inside(i, height.sources)) continue;
        const T* const from = &delta.at(b, o, m, 0);
        const T* const source = &input.at(b, o / multiplier, tap < taps ? i : 0, 0);
        for (int n = first; n < width.results; n += step) {
          const A d = static_cast<A>(from[n * delta.stride[3]]);
          const int j = n * width.stride - width.pad + s * width.dilation;
          if (tap == taps)
            sum += d;
          else if (inside(j, width.sources))
            sum += d * static_cast<A>(source[j * input.stride[3]]);
        }
      }
    if (!channels_innermost)
      for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (o < filters && (channels_innermost || lane == 0))
      partial[(static_cast<int64_t>(blockIdx.y) * (taps + 1) + tap) * filters + o] = sum;
  }
}

}  // namespace kernels
}  // namespace convbp::cuda::depthwise
