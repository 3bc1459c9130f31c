// Pooling (L8) as the boundary calls it, and the tables of an instruction set's kernels.
#pragma once

#include <cstdint>

#include "core/integers.h"
#include "core/pool_problem.h"

namespace convbp::pool {

// The cut of the work: a task computes `rows` rows of `channels_per_task` channels of one image. No
// cut changes what an element of the result is made of.
struct Tasks {
  int64_t batch, channels, size;  // size: all rows
  int64_t channels_per_task = 1, rows = 1;

  int64_t blocks() const { return divide_up(channels, channels_per_task); }
  int64_t bands() const { return divide_up(size, rows); }
  int64_t count() const { return batch * blocks() * bands(); }
};

// One task.
struct Piece {
  int64_t b, c, channels, begin, end;

  Piece(const Tasks& tasks, int64_t task) {
    const int64_t band = task % tasks.bands(), block = task / tasks.bands();
    b = block / tasks.blocks();
    c = block % tasks.blocks() * tasks.channels_per_task;
    channels = std::min(tasks.channels_per_task, tasks.channels - c);
    begin = band * tasks.rows;
    end = std::min(begin + tasks.rows, tasks.size);
  }
};

// Kernels of max pooling. Each computes the tasks [begin, end); a task with more than one channel
// wants the channels innermost.
template <typename T, typename Offset>
struct MaxKernelTable {
  // Tasks are rows of the output.
  void (*forward)(const PoolProblem&, const Tasks&, View<const T> input, View<T> output,
                  View<Offset> offset, int64_t begin, int64_t end);
  // Tasks are rows of the input gradient.
  void (*input_grad)(const PoolProblem&, const Tasks&, View<const T> delta,
                     View<const Offset> offset, View<T> input_grad, int64_t begin, int64_t end);
};

template <typename T>
struct AverageKernelTable {
  void (*forward)(const PoolProblem&, const Tasks&, View<const T> input, View<T> output,
                  int64_t begin, int64_t end);
  void (*input_grad)(const PoolProblem&, const Tasks&, View<const T> delta, View<T> input_grad,
                     int64_t begin, int64_t end);
};

template <typename T, typename Offset>
void max_pool2d(const PoolProblem&, View<const T> input, View<T> output, View<Offset> offset);

template <typename T, typename Offset>
void max_pool2d_input_grad(const PoolProblem&, View<const T> delta, View<const Offset> offset,
                           View<T> input_grad);

template <typename T, typename Offset>
void max_pool2d_gather(const PoolProblem&, View<const T> input, View<const Offset> offset,
                       View<T> output);

template <typename T>
void avg_pool2d(const PoolProblem&, View<const T> input, View<T> output);

template <typename T>
void avg_pool2d_input_grad(const PoolProblem&, View<const T> delta, View<T> input_grad);

}  // namespace convbp::pool
