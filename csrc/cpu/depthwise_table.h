// What an instruction set offers to the depthwise algorithm. depthwise_<instruction set>.cpp makes the
// tables, depthwise.cpp chooses.
#pragma once

#include <cstdint>

#include "../conv_problem.h"
#include "capability.h"
#include "epilogue.h"
#include "tap_conv.h"

namespace convbp::depthwise {

// The tap convolution's axes, and how its rows are cut into tasks.
struct Depthwise {
  int64_t batch = 0;
  int64_t channels = 0;
  Axis h, w;
  int64_t band = 1;  // rows of the result a task takes

  int64_t bands() const { return divide_up(h.count, band); }
};

// Filters in the order of the taps: channels last [r][s][channel], or planes [channel][r][s].
template <typename T>
struct Table {
  int vector_bytes;
  // Task: a band of an image, all channels.
  void (*channels_last)(const Depthwise&, View<const T> source, const T* filters,
                        const Epilogue<T>&, View<T> result, int64_t begin, int64_t end);
  // Task: a band of a channel of an image.
  void (*planes)(const Depthwise&, View<const T> source, const T* filters, const Epilogue<T>&,
                 View<T> result, int64_t begin, int64_t end);
};

#define CONVBP_DECLARE_TABLE(isa)           \
  namespace isa {                           \
  template <typename T>                     \
  Table<T> make_table();                    \
  }
CONVBP_FOR_EACH_ISA(CONVBP_DECLARE_TABLE)
#undef CONVBP_DECLARE_TABLE

}  // namespace convbp::depthwise
