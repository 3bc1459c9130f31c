// The pooling kernels (L8). Included once per instruction set, with the macros of direct_kernel.h
// set. What is computed stands in pool_plain.h.
//
// Forward, channels innermost: a window's channels lie side by side, and a block of them is taken
// through all its taps in registers. Elsewhere a row of windows goes through the taps side by side,
// or, where it is shorter than a vector, each window by itself. The order of taps is the same.
//
// Backward, a task owns a band of rows of the input gradient and gathers it in a buffer of the
// accumulator's type, [row][column][lane]: for max pooling, the delta of every window that meets
// the band is added where the window's winner is, in the order of the windows; for average pooling,
// a row is the sum of its windows' rows of deltas, each spread over the columns of its window.

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "element.h"
#include "pool.h"
#include "scratch.h"

namespace convbp::pool::CONVBP_ISA {

#define CONVBP_INLINE __attribute__((always_inline)) CONVBP_TARGET inline

// A number as wide as the accumulator, for the positions beside the values.
template <typename Acc>
using Index = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// What is taken through the taps at a time: one number, or a vector of neighbouring ones.
template <typename Acc>
struct One {
  using Element = Acc;
  using Value = Acc;
  using Where = Index<Acc>;
  static constexpr int kLanes = 1;

  template <typename T>
  CONVBP_INLINE static void load_from(const T* from, Value& to) {
    to = load<Acc>(*from);
  }
};

template <typename Acc>
struct Vector {
  using Element = Acc;
  // Aligned as their elements are, so that they may be loaded from anywhere.
  typedef Acc Value __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)),
                                   may_alias));
  typedef Index<Acc> Where __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)),
                                          may_alias));
  static constexpr int kLanes = CONVBP_VECTOR_BYTES / sizeof(Acc);

  template <typename T>
  CONVBP_INLINE static void load_from(const T* from, Value& to) {
    if constexpr (std::is_same_v<T, Acc>) {
      to = *reinterpret_cast<const Value*>(from);
    } else {
      Acc converted[kLanes];
      for (int l = 0; l < kLanes; ++l) converted[l] = load<Acc>(from[l]);
      to = *reinterpret_cast<const Value*>(converted);
    }
  }
};

template <typename Acc>
constexpr Acc kLeast = -std::numeric_limits<Acc>::infinity();

// The first of equal values wins, and the last NaN, as in torch.
template <typename Lanes>
struct Largest {
  typename Lanes::Value value;
  typename Lanes::Where where;

  CONVBP_INLINE void start(int64_t tap) {
    value = typename Lanes::Value{} + kLeast<typename Lanes::Element>;
    where = typename Lanes::Where{} + static_cast<Index<typename Lanes::Element>>(tap);
  }
  CONVBP_INLINE void take(const typename Lanes::Value& x, int64_t tap) {
    const auto larger = (x > value) | (x != x);
    const auto here =
        typename Lanes::Where{} + static_cast<Index<typename Lanes::Element>>(tap);
    value = larger ? x : value;
    where = larger ? here : where;
  }
};

template <typename Lanes>
struct Sum {
  typename Lanes::Value value;

  CONVBP_INLINE void start(int64_t) { value = typename Lanes::Value{}; }
  CONVBP_INLINE void take(const typename Lanes::Value& x, int64_t) { value += x; }
};

// The taps of one window inside the input: where the first one is, and how far apart they are.
template <typename T>
struct Window {
  const T* from;
  Range rows, columns;
  int64_t row_step, column_step, kernel_width;

  Window(const PoolProblem& p, const View<const T>& input, int64_t b, int64_t c, int64_t m,
         int64_t n)
      : rows(p.taps_inside(kHeight, m)),
        columns(p.taps_inside(kWidth, n)),
        row_step(input.stride[2] * p.dilation[kHeight]),
        column_step(input.stride[3] * p.dilation[kWidth]),
        kernel_width(p.kernel[kWidth]) {
    from = empty() ? input.data
                   : &input.at(b, c, p.input_position(kHeight, m, rows.begin),
                               p.input_position(kWidth, n, columns.begin));
  }
  bool empty() const { return rows.begin >= rows.end || columns.begin >= columns.end; }
  int64_t first_tap() const { return empty() ? -1 : rows.begin * kernel_width + columns.begin; }
};

// Takes kCount neighbouring groups of lanes, from the window's lane `lane` on, through its taps.
template <typename Lanes, int kCount, template <typename> typename Fold, typename T>
CONVBP_INLINE void fold_window(const Window<T>& w, int64_t lane, Fold<Lanes> (&folds)[kCount]) {
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) folds[v].start(w.first_tap());
  for (int64_t r = w.rows.begin; r < w.rows.end; ++r) {
    const T* from = w.from + (r - w.rows.begin) * w.row_step + lane;
    for (int64_t s = w.columns.begin; s < w.columns.end; ++s, from += w.column_step)
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        typename Lanes::Value x;
        Lanes::load_from(from + v * Lanes::kLanes, x);
        folds[v].take(x, r * w.kernel_width + s);
      }
  }
}

template <typename T, typename Acc>
CONVBP_INLINE void store_line(const Acc* from, int64_t count, T* to, int64_t step) {
  if (step == 1)
    for (int64_t l = 0; l < count; ++l) to[l] = store<T>(from[l]);
  else
    for (int64_t l = 0; l < count; ++l) to[l * step] = store<T>(from[l]);
}

template <typename Offset, typename Where>
CONVBP_INLINE void store_offsets(const Where* from, int64_t count, Offset* to, int64_t step) {
  if (step == 1)  // -1 becomes kNowhere
    for (int64_t l = 0; l < count; ++l) to[l] = static_cast<Offset>(from[l]);
  else
    for (int64_t l = 0; l < count; ++l) to[l * step] = static_cast<Offset>(from[l]);
}

template <typename Lanes, int kCount, typename T, typename Offset>
CONVBP_INLINE void max_block(const Window<T>& w, int64_t lane, T* output, int64_t output_step,
                             Offset* offset, int64_t offset_step) {
  constexpr int kBlock = kCount * Lanes::kLanes;
  Largest<Lanes> folds[kCount];
  fold_window<Lanes, kCount>(w, lane, folds);
  typename Lanes::Element values[kBlock];
  Index<typename Lanes::Element> where[kBlock];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    *reinterpret_cast<typename Lanes::Value*>(values + v * Lanes::kLanes) = folds[v].value;
    *reinterpret_cast<typename Lanes::Where*>(where + v * Lanes::kLanes) = folds[v].where;
  }
  store_line(values, kBlock, output + lane * output_step, output_step);
  store_offsets(where, kBlock, offset + lane * offset_step, offset_step);
}

template <typename Lanes, int kCount, typename T>
CONVBP_INLINE void average_block(const Window<T>& w, int64_t lane,
                                 typename Lanes::Element divisor, T* output, int64_t step) {
  constexpr int kBlock = kCount * Lanes::kLanes;
  Sum<Lanes> folds[kCount];
  fold_window<Lanes, kCount>(w, lane, folds);
  typename Lanes::Element values[kBlock];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v)
    *reinterpret_cast<typename Lanes::Value*>(values + v * Lanes::kLanes) =
        folds[v].value / divisor;
  store_line(values, kBlock, output + lane * step, step);
}

// Calls body(step), with a constant where the step is a usual one: the compiler knows how to make
// vectors of every number and of every second one.
template <typename Body>
CONVBP_INLINE void by_step(int64_t step, const Body& body) {
  if (step == 1)
    body(std::integral_constant<int64_t, 1>());
  else if (step == 2)
    body(std::integral_constant<int64_t, 2>());
  else
    body(step);
}
#define CONVBP_BODY(...) [&](__VA_ARGS__) __attribute__((always_inline))

// Windows side by side that go through the taps together.
constexpr int64_t kLine = 128;

template <typename T, typename Acc>
CONVBP_TARGET void take_line(const T* __restrict from, int64_t any_step, int64_t count,
                             Index<Acc> tap, Acc* __restrict value, Index<Acc>* __restrict where) {
  by_step(any_step, CONVBP_BODY(const auto step) {
    for (int64_t l = 0; l < count; ++l) {
      const Acc x = load<Acc>(from[l * step]);
      const bool larger = (x > value[l]) | (x != x);
      value[l] = larger ? x : value[l];
      where[l] = larger ? tap : where[l];
    }
  });
}

template <typename T, typename Acc>
CONVBP_TARGET void add_line(const T* __restrict from, int64_t any_step, int64_t count,
                            Acc* __restrict sum) {
  by_step(any_step, CONVBP_BODY(const auto step) {
    for (int64_t l = 0; l < count; ++l) sum[l] += load<Acc>(from[l * step]);
  });
}

// Calls body(tap, from, step, begin, end) for every tap of the windows (m, n), (m, n + 1), ...:
// windows begin to end read from[0], from[step], ...; the others' tap lies outside the input.
template <typename T, typename Body>
CONVBP_INLINE void line_taps(const PoolProblem& p, const View<const T>& input, int64_t b, int64_t c,
                             int64_t m, int64_t n, int64_t count, const Body& body) {
  const Range rows = p.taps_inside(kHeight, m);
  const int64_t last = p.taps_inside(kWidth, n).end;
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = p.taps_inside(kWidth, n + count - 1).begin; s < last; ++s) {
      const Range reach = p.outputs_inside(kWidth, s);
      const int64_t begin = std::max(reach.begin, n), end = std::min(reach.end, n + count);
      if (begin < end)
        body(r * p.kernel[kWidth] + s,
             &input.at(b, c, p.input_position(kHeight, m, r), p.input_position(kWidth, begin, s)),
             input.stride[3] * p.stride[kWidth], begin - n, end - n);
    }
}

// Does a row of windows fill a vector?
template <typename Acc>
bool is_line(const PoolProblem& p) {
  return p.out_size[kWidth] >= Vector<Acc>::kLanes;
}

template <typename T, typename Offset>
CONVBP_TARGET void max_pool2d(const PoolProblem& p, const Tasks& tasks, View<const T> input,
                              View<T> output, View<Offset> offset, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  constexpr int kLanes = Vector<Acc>::kLanes;
  const int64_t columns = p.out_size[kWidth];
  std::vector<Index<Acc>> first_column(columns);  // the first tap of each, -1 where there is none
  for (int64_t n = 0; n < columns; ++n) {
    const Range taps = p.taps_inside(kWidth, n);
    first_column[n] = static_cast<Index<Acc>>(taps.begin < taps.end ? taps.begin : -1);
  }

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    for (int64_t m = piece.begin; m < piece.end; ++m) {
      T* const to = &output.at(piece.b, piece.c, m, 0);
      Offset* const to_offset = &offset.at(piece.b, piece.c, m, 0);

      if (piece.lanes == 1 && is_line<Acc>(p)) {
        const Range rows = p.taps_inside(kHeight, m);
        for (int64_t n = 0; n < columns; n += kLine) {
          const int64_t count = std::min(kLine, columns - n);
          Acc value[kLine];
          Index<Acc> where[kLine];
          for (int64_t l = 0; l < count; ++l) {
            const bool empty = rows.begin >= rows.end || first_column[n + l] < 0;
            value[l] = kLeast<Acc>;
            where[l] = static_cast<Index<Acc>>(
                empty ? -1 : rows.begin * p.kernel[kWidth] + first_column[n + l]);
          }
          line_taps(p, input, piece.b, piece.c, m, n, count,
                    CONVBP_BODY(int64_t tap, const T* from, int64_t step, int64_t first,
                                int64_t last) {
                      take_line(from, step, last - first, static_cast<Index<Acc>>(tap),
                                value + first, where + first);
                    });
          store_line(value, count, to + n * output.stride[3], output.stride[3]);
          store_offsets(where, count, to_offset + n * offset.stride[3], offset.stride[3]);
        }
        continue;
      }

      for (int64_t n = 0; n < columns; ++n) {
        const Window<T> w(p, input, piece.b, piece.c, m, n);
        T* const out = to + n * output.stride[3];
        Offset* const out_offset = to_offset + n * offset.stride[3];
        const int64_t step = output.stride[1], offset_step = offset.stride[1];
        int64_t lane = 0;
        for (; lane + 4 * kLanes <= piece.lanes; lane += 4 * kLanes)
          max_block<Vector<Acc>, 4>(w, lane, out, step, out_offset, offset_step);
        for (; lane + kLanes <= piece.lanes; lane += kLanes)
          max_block<Vector<Acc>, 1>(w, lane, out, step, out_offset, offset_step);
        for (; lane < piece.lanes; ++lane)
          max_block<One<Acc>, 1>(w, lane, out, step, out_offset, offset_step);
      }
    }
  }
}

template <typename T>
CONVBP_TARGET void avg_pool2d(const PoolProblem& p, const Tasks& tasks, View<const T> input,
                              View<T> output, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  constexpr int kLanes = Vector<Acc>::kLanes;
  const int64_t columns = p.out_size[kWidth];
  std::vector<Acc> column_divisor(columns);
  for (int64_t n = 0; n < columns; ++n) column_divisor[n] = static_cast<Acc>(p.column_divisor(n));

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    for (int64_t m = piece.begin; m < piece.end; ++m) {
      const Acc row_divisor = static_cast<Acc>(p.row_divisor(m));
      T* const to = &output.at(piece.b, piece.c, m, 0);

      if (piece.lanes == 1 && is_line<Acc>(p)) {
        for (int64_t n = 0; n < columns; n += kLine) {
          const int64_t count = std::min(kLine, columns - n);
          Acc sum[kLine];
          for (int64_t l = 0; l < count; ++l) sum[l] = Acc(0);
          line_taps(p, input, piece.b, piece.c, m, n, count,
                    CONVBP_BODY(int64_t, const T* from, int64_t step, int64_t first, int64_t last) {
                      add_line(from, step, last - first, sum + first);
                    });
          for (int64_t l = 0; l < count; ++l) sum[l] /= row_divisor * column_divisor[n + l];
          store_line(sum, count, to + n * output.stride[3], output.stride[3]);
        }
        continue;
      }

      for (int64_t n = 0; n < columns; ++n) {
        const Window<T> w(p, input, piece.b, piece.c, m, n);
        const Acc divisor = row_divisor * column_divisor[n];
        T* const out = to + n * output.stride[3];
        int64_t lane = 0;
        for (; lane + 4 * kLanes <= piece.lanes; lane += 4 * kLanes)
          average_block<Vector<Acc>, 4>(w, lane, divisor, out, output.stride[1]);
        for (; lane + kLanes <= piece.lanes; lane += kLanes)
          average_block<Vector<Acc>, 1>(w, lane, divisor, out, output.stride[1]);
        for (; lane < piece.lanes; ++lane)
          average_block<One<Acc>, 1>(w, lane, divisor, out, output.stride[1]);
      }
    }
  }
}

// Where a tap is in the buffer and on the width axis, from its offset: looked up, or divided.
template <typename Offset>
struct Taps {
  const PoolProblem& p;
  int64_t row_step, column_step;  // in the buffer, of neighbouring taps
  int64_t shifts[256], columns[256];

  Taps(const PoolProblem& problem, int64_t lanes)
      : p(problem),
        row_step(p.dilation[kHeight] * p.in_size[kWidth] * lanes),
        column_step(p.dilation[kWidth] * lanes) {
    if constexpr (sizeof(Offset) == 1)
      for (int64_t tap = 0; tap < p.taps(); ++tap) {
        shifts[tap] = tap / p.kernel[kWidth] * row_step + tap % p.kernel[kWidth] * column_step;
        columns[tap] = tap % p.kernel[kWidth] * p.dilation[kWidth];
      }
  }
  CONVBP_INLINE int64_t shift(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return shifts[tap];
    return tap / p.kernel[kWidth] * row_step + tap % p.kernel[kWidth] * column_step;
  }
  CONVBP_INLINE int64_t column(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return columns[tap];
    return tap % p.kernel[kWidth] * p.dilation[kWidth];
  }
};

template <typename T, typename Offset, bool kOneLane>
CONVBP_TARGET void max_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                                  View<const Offset> offset, View<T> input_grad, int64_t begin,
                                  int64_t end) {
  using Acc = Accumulator<T>;
  const int64_t columns = p.in_size[kWidth];
  const Scratch block =
      Scratch::take<Acc>(ScratchName::kPatch, tasks.rows * columns * tasks.lanes);
  Acc* const buffer = block.template data<Acc>();

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    const int64_t lanes = kOneLane ? 1 : piece.lanes;
    const Taps<Offset> taps(p, lanes);
    const int64_t row_size = columns * lanes;
    for (int64_t x = 0; x < (piece.end - piece.begin) * row_size; ++x) buffer[x] = Acc(0);

    const Range meeting = p.outputs_meeting(kHeight, piece.begin, piece.end);
    for (int64_t m = meeting.begin; m < meeting.end; ++m) {
      // Offsets of the taps in this band are neighbours: one comparison finds them, and excludes
      // what is no offset.
      const Range rows = p.taps_within(kHeight, m, piece.begin, piece.end);
      if (rows.begin >= rows.end) continue;
      const uint64_t first = rows.begin * p.kernel[kWidth];
      const uint64_t count = (rows.end - rows.begin) * p.kernel[kWidth];
      Acc* const row = buffer + (p.input_position(kHeight, m, 0) - piece.begin) * row_size;
      const T* const from = &delta.at(piece.b, piece.c, m, 0);
      const Offset* const from_offset = &offset.at(piece.b, piece.c, m, 0);
      for (int64_t n = 0; n < p.out_size[kWidth]; ++n) {
        const int64_t start = p.input_position(kWidth, n, 0);
        Acc* const at = row + start * lanes;
        const T* const deltas = from + n * delta.stride[3];
        const Offset* const offsets = from_offset + n * offset.stride[3];
        for (int64_t l = 0; l < lanes; ++l) {
          const uint64_t tap = offsets[l * offset.stride[1]];
          if (tap - first < count && p.inside(kWidth, start + taps.column(tap)))
            at[taps.shift(tap) + l] += load<Acc>(deltas[l * delta.stride[1]]);
        }
      }
    }

    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const Acc* const sums = buffer + (i - piece.begin) * row_size;
      T* const to = &input_grad.at(piece.b, piece.c, i, 0);
      if constexpr (kOneLane) {
        store_line(sums, columns, to, input_grad.stride[3]);
      } else {
        for (int64_t j = 0; j < columns; ++j)
          store_line(sums + j * lanes, lanes, to + j * input_grad.stride[3],
                     input_grad.stride[1]);
      }
    }
  }
}

template <typename T, typename Offset>
void max_pool2d_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                           View<const Offset> offset, View<T> input_grad, int64_t begin,
                           int64_t end) {
  const auto kernel =
      tasks.lanes == 1 ? max_input_grad<T, Offset, true> : max_input_grad<T, Offset, false>;
  kernel(p, tasks, delta, offset, input_grad, begin, end);
}

template <typename T, bool kOneLane>
CONVBP_TARGET void average_input_grad(const PoolProblem& p, const Tasks& tasks,
                                      View<const T> delta, View<T> input_grad, int64_t begin,
                                      int64_t end) {
  using Acc = Accumulator<T>;
  const int64_t columns = p.in_size[kWidth], windows = p.out_size[kWidth];
  const Scratch block =
      Scratch::take<Acc>(ScratchName::kPatch, (columns + windows) * tasks.lanes + windows);
  Acc* const line = block.template data<Acc>();           // a row of the input gradient
  Acc* const shares = line + columns * tasks.lanes;       // what each column of windows gives to it
  Acc* const column_divisor = shares + windows * tasks.lanes;
  for (int64_t n = 0; n < windows; ++n) column_divisor[n] = static_cast<Acc>(p.column_divisor(n));

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    const int64_t lanes = kOneLane ? 1 : piece.lanes;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      for (int64_t x = 0; x < columns * lanes; ++x) line[x] = Acc(0);
      for (int64_t x = 0; x < windows * lanes; ++x) shares[x] = Acc(0);
      const Range meeting = p.outputs_meeting(kHeight, i, i + 1);
      for (int64_t m = meeting.begin; m < meeting.end; ++m) {
        const Acc row_divisor = static_cast<Acc>(p.row_divisor(m));
        const T* const from = &delta.at(piece.b, piece.c, m, 0);
        if constexpr (kOneLane) {
          by_step(delta.stride[3], CONVBP_BODY(const auto step) {
            for (int64_t n = 0; n < windows; ++n)
              shares[n] += load<Acc>(from[n * step]) / (row_divisor * column_divisor[n]);
          });
        } else {
          for (int64_t n = 0; n < windows; ++n) {
            const Acc divisor = row_divisor * column_divisor[n];
            by_step(delta.stride[1], CONVBP_BODY(const auto step) {
              for (int64_t l = 0; l < lanes; ++l)
                shares[n * lanes + l] += load<Acc>(from[n * delta.stride[3] + l * step]) / divisor;
            });
          }
        }
      }

      T* const to = &input_grad.at(piece.b, piece.c, i, 0);
      if constexpr (kOneLane) {
        for (int64_t s = 0; s < p.kernel[kWidth]; ++s) {
          const Range reach = p.outputs_inside(kWidth, s);
          Acc* const at = line + p.input_position(kWidth, 0, s);
          by_step(p.stride[kWidth], CONVBP_BODY(const auto step) {
            for (int64_t n = reach.begin; n < reach.end; ++n) at[n * step] += shares[n];
          });
        }
        store_line(line, columns, to, input_grad.stride[3]);
      } else {
        for (int64_t n = 0; n < windows; ++n) {
          const Range taps = p.taps_inside(kWidth, n);
          for (int64_t s = taps.begin; s < taps.end; ++s) {
            Acc* const at = line + p.input_position(kWidth, n, s) * lanes;
            for (int64_t l = 0; l < lanes; ++l) at[l] += shares[n * lanes + l];
          }
        }
        for (int64_t j = 0; j < columns; ++j)
          store_line(line + j * lanes, lanes, to + j * input_grad.stride[3],
                     input_grad.stride[1]);
      }
    }
  }
}

template <typename T>
void avg_pool2d_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                           View<T> input_grad, int64_t begin, int64_t end) {
  const auto kernel = tasks.lanes == 1 ? average_input_grad<T, true> : average_input_grad<T, false>;
  kernel(p, tasks, delta, input_grad, begin, end);
}

template <typename T, typename Offset>
MaxTable<T, Offset> max_table() {
  return {&max_pool2d<T, Offset>, &max_pool2d_input_grad<T, Offset>};
}

template <typename T>
AverageTable<T> average_table() {
  return {&avg_pool2d<T>, &avg_pool2d_input_grad<T>};
}

// The element types every instruction set is compiled for.
#define CONVBP_INSTANTIATE(T)                       \
  template MaxTable<T, uint8_t> max_table();        \
  template MaxTable<T, uint32_t> max_table();       \
  template AverageTable<T> average_table();
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::pool::CONVBP_ISA

#undef CONVBP_BODY
#undef CONVBP_INLINE
