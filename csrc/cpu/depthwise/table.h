// The functions of an instruction set for the depthwise algorithm. <instruction set>.cpp makes the
// tables, depthwise.cpp chooses.
#pragma once

#include <cstdint>
#include <vector>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/epilogue.h"
#include "cpu/gather_conv.h"

namespace convbp::depthwise {

// The gather convolution's axes, and how its rows are cut into tasks.
struct Depthwise {
  int64_t batch = 0;
  int64_t channels = 0;
  ConvAxis h, w;
  int64_t band = 1;       // rows of the result a task takes
  bool streamed = false;  // the result goes past the caches

  int64_t bands() const { return divide_up(h.count, band); }
  int64_t taps() const { return h.tap_count() * w.tap_count(); }
};

// The weight gradient, of which `conv` is the forward convolution. A task takes a part of the
// channels of a chunk of the rows (NCHW: of the images), and the chunks' sums are added. Parts and
// chunks depend on the problem alone, so the order of every sum does too.
struct DepthwiseWeightGrad {
  Depthwise conv;
  int64_t chunks = 1;
  int64_t channels_per_part = 1;

  // Sums of a chunk, of the taps and then of the bias gradient: in NCHW [channel][tap]; in
  // channels_last [tap][channel], padded to whole vectors, the last of which ends with the last
  // channel.
  bool channels_last = false;
  int64_t lanes = 1;

  int64_t parts() const { return divide_up(conv.channels, channels_per_part); }
  int64_t padded_size() const { return divide_up(conv.channels, lanes) * lanes; }
  int64_t sums_per_chunk() const { return (conv.taps() + 1) * padded_size(); }
  int64_t place(int64_t channel, int64_t tap) const {
    if (!channels_last) return channel * (conv.taps() + 1) + tap;
    const bool last = channel >= conv.channels / lanes * lanes;
    return tap * padded_size() + (last ? channel + padded_size() - conv.channels : channel);
  }
};

// Filters, and sums of the weight gradient, are in the order of the taps: channels_last
// [r][s][channel], NCHW [channel][r][s].
template <typename T>
struct KernelTable {
  int vector_bytes;
  int64_t lanes() const { return vector_bytes / static_cast<int64_t>(sizeof(T)); }
  // Task: a band of an image, all channels. The phases of an input gradient are done side by side.
  void (*channels_last)(const std::vector<Depthwise>&, View<const T> source, const T* filters,
                        const Epilogue<T>&, View<T> result, int64_t begin, int64_t end);
  // Task: a band of a channel of an image.
  void (*nchw)(const std::vector<Depthwise>&, View<const T> source, const T* filters,
               const Epilogue<T>&, View<T> result, int64_t begin, int64_t end);
  // Task: a band of a vector of channels of an image. Filters are [vector of channels][r][s][lane];
  // `phases` are those of one vector.
  void (*transposed)(const std::vector<Depthwise>&, int64_t channels, View<const T> source,
                     const T* filters, const Epilogue<T>&, View<T> result, int64_t begin,
                     int64_t end);
  // Task: a part of a chunk. [NCHW, channels_last]
  using WeightGradTasks = void (*)(const DepthwiseWeightGrad&, View<const T> input,
                                   View<const T> delta, T* sums, int64_t begin, int64_t end);
  WeightGradTasks weight_grad[2];
  // The weight gradient of NCHW that is transposed; a part is a vector of channels.
  WeightGradTasks transposed_weight_grad;
};

CONVBP_IN_EACH_ISA(template <typename T> KernelTable<T> kernels();)

}  // namespace convbp::depthwise
