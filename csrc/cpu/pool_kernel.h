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

// What every row of windows asks for again: divisions are slow.
struct Columns {
  std::vector<Range> taps;     // of each column of windows: the taps inside the input
  int64_t first_tap;           // taps in front of it are inside for no window
  std::vector<Range> windows;  // of each tap from first_tap on: the windows it is inside for

  explicit Columns(const PoolProblem& p) : taps(p.out_size[kWidth]) {
    for (int64_t n = 0; n < p.out_size[kWidth]; ++n) taps[n] = p.taps_inside(kWidth, n);
    first_tap = taps.back().begin;
    for (int64_t s = first_tap; s < taps.front().end; ++s)
      windows.push_back(p.outputs_inside(kWidth, s));
  }
};

// The taps of one window inside the input: where the first one is, and how far apart they are.
template <typename T>
struct Window {
  const T* from;
  Range rows, columns;
  int64_t row_step, column_step, kernel_width;

  bool empty() const { return rows.begin >= rows.end || columns.begin >= columns.end; }
  int64_t first_tap() const { return empty() ? -1 : rows.begin * kernel_width + columns.begin; }
};

template <typename T>
CONVBP_INLINE Window<T> window(const PoolProblem& p, const View<const T>& input, const Piece& piece,
                               int64_t m, int64_t n, Range rows, Range columns) {
  const T* const from = &input.at(piece.b, piece.c, p.input_position(kHeight, m, rows.begin),
                                  p.input_position(kWidth, n, columns.begin));
  return {from,
          rows,
          columns,
          input.stride[2] * p.dilation[kHeight],
          input.stride[3] * p.dilation[kWidth],
          p.kernel[kWidth]};
}

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
#define CONVBP_BODY(...) [&](__VA_ARGS__) __attribute__((always_inline)) CONVBP_TARGET

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
CONVBP_INLINE void line_taps(const PoolProblem& p, const Columns& columns,
                             const View<const T>& input, const Piece& piece, int64_t m, Range rows,
                             int64_t n, int64_t count, const Body& body) {
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (size_t k = 0; k < columns.windows.size(); ++k) {
      const int64_t s = columns.first_tap + static_cast<int64_t>(k);
      const int64_t begin = std::max(columns.windows[k].begin, n);
      const int64_t end = std::min(columns.windows[k].end, n + count);
      if (begin < end)
        body(r * p.kernel[kWidth] + s,
             &input.at(piece.b, piece.c, p.input_position(kHeight, m, r),
                       p.input_position(kWidth, begin, s)),
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
  const int64_t width = p.out_size[kWidth];
  const Columns columns(p);

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    for (int64_t m = piece.begin; m < piece.end; ++m) {
      const Range rows = p.taps_inside(kHeight, m);
      T* const to = &output.at(piece.b, piece.c, m, 0);
      Offset* const to_offset = &offset.at(piece.b, piece.c, m, 0);

      if (piece.lanes == 1 && is_line<Acc>(p)) {
        for (int64_t n = 0; n < width; n += kLine) {
          const int64_t count = std::min(kLine, width - n);
          Acc value[kLine];
          Index<Acc> where[kLine];
          for (int64_t l = 0; l < count; ++l) {
            const Range taps = columns.taps[n + l];
            const bool empty = rows.begin >= rows.end || taps.begin >= taps.end;
            value[l] = kLeast<Acc>;
            where[l] = static_cast<Index<Acc>>(
                empty ? -1 : rows.begin * p.kernel[kWidth] + taps.begin);
          }
          line_taps(p, columns, input, piece, m, rows, n, count,
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

      for (int64_t n = 0; n < width; ++n) {
        const Window<T> w = window(p, input, piece, m, n, rows, columns.taps[n]);
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
  const int64_t width = p.out_size[kWidth];
  const Columns columns(p);
  std::vector<Acc> column_divisor(width);
  for (int64_t n = 0; n < width; ++n) column_divisor[n] = static_cast<Acc>(p.column_divisor(n));

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    for (int64_t m = piece.begin; m < piece.end; ++m) {
      const Range rows = p.taps_inside(kHeight, m);
      const Acc row_divisor = static_cast<Acc>(p.row_divisor(m));
      T* const to = &output.at(piece.b, piece.c, m, 0);

      if (piece.lanes == 1 && is_line<Acc>(p)) {
        for (int64_t n = 0; n < width; n += kLine) {
          const int64_t count = std::min(kLine, width - n);
          Acc sum[kLine];
          for (int64_t l = 0; l < count; ++l) sum[l] = Acc(0);
          line_taps(p, columns, input, piece, m, rows, n, count,
                    CONVBP_BODY(int64_t, const T* from, int64_t step, int64_t first, int64_t last) {
                      add_line(from, step, last - first, sum + first);
                    });
          for (int64_t l = 0; l < count; ++l) sum[l] /= row_divisor * column_divisor[n + l];
          store_line(sum, count, to + n * output.stride[3], output.stride[3]);
        }
        continue;
      }

      for (int64_t n = 0; n < width; ++n) {
        const Window<T> w = window(p, input, piece, m, n, rows, columns.taps[n]);
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

// Rows of the input gradient while they are summed: where they belong if the sums have its type,
// else in working memory.
template <typename T>
class Rows {
 public:
  using Acc = Accumulator<T>;
  int64_t row_step, column_step;

  Rows(const PoolProblem& p, const Tasks& tasks, const View<T>& grad)
      : row_step(kInPlace ? grad.stride[2] : p.in_size[kWidth] * tasks.lanes),
        column_step(kInPlace ? grad.stride[3] : tasks.lanes),
        grad_(grad),
        columns_(p.in_size[kWidth]),
        scratch_(Scratch::take<Acc>(ScratchName::kPatch, kInPlace ? 0 : tasks.rows * row_step)) {}

  // The piece's rows, all zero.
  CONVBP_INLINE Acc* open(const Piece& piece) const {
    Acc* const rows = place(piece);
    const int64_t count = piece.end - piece.begin;
    if (column_step == piece.lanes && row_step == columns_ * column_step)
      fill_zero(rows, count * row_step);
    else
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < columns_; ++j)
          fill_zero(rows + i * row_step + j * column_step, piece.lanes);
    return rows;
  }

  CONVBP_INLINE void close(const Piece& piece) const {
    if constexpr (!kInPlace)
      for (int64_t i = piece.begin; i < piece.end; ++i) {
        const Acc* const sums = place(piece) + (i - piece.begin) * row_step;
        T* const to = &grad_.at(piece.b, piece.c, i, 0);
        if (column_step == 1)
          store_line(sums, columns_, to, grad_.stride[3]);
        else
          for (int64_t j = 0; j < columns_; ++j)
            store_line(sums + j * column_step, piece.lanes, to + j * grad_.stride[3],
                       grad_.stride[1]);
      }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, Acc>;

  CONVBP_INLINE static void fill_zero(Acc* to, int64_t count) {
    for (int64_t x = 0; x < count; ++x) to[x] = Acc(0);
  }
  CONVBP_INLINE Acc* place(const Piece& piece) const {
    if constexpr (kInPlace)
      return &grad_.at(piece.b, piece.c, piece.begin, 0);
    else
      return scratch_.template data<Acc>();
  }

  View<T> grad_;
  int64_t columns_;
  Scratch scratch_;
};

// Where a tap is, from its offset: looked up, or divided.
template <typename Offset>
struct Taps {
  int64_t kernel_width, row_step, column_step, dilation;
  int64_t shifts[256], columns[256];

  Taps(const PoolProblem& p, int64_t row, int64_t column)
      : kernel_width(p.kernel[kWidth]),
        row_step(p.dilation[kHeight] * row),
        column_step(p.dilation[kWidth] * column),
        dilation(p.dilation[kWidth]) {
    if constexpr (sizeof(Offset) == 1)
      for (int64_t tap = 0; tap < p.taps(); ++tap) {
        shifts[tap] = tap / kernel_width * row_step + tap % kernel_width * column_step;
        columns[tap] = tap % kernel_width * dilation;
      }
  }
  // In the rows.
  CONVBP_INLINE int64_t shift(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return shifts[tap];
    return tap / kernel_width * row_step + tap % kernel_width * column_step;
  }
  // On the width axis.
  CONVBP_INLINE int64_t column(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return columns[tap];
    return tap % kernel_width * dilation;
  }
};

template <typename T, typename Offset, bool kOneLane>
CONVBP_TARGET void max_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                                  View<const Offset> offset, View<T> input_grad, int64_t begin,
                                  int64_t end) {
  using Acc = Accumulator<T>;
  const Rows<T> rows(p, tasks, input_grad);
  const Taps<Offset> taps(p, rows.row_step, rows.column_step);
  // Windows all of whose columns are inside.
  const Range whole{p.outputs_inside(kWidth, 0).begin,
                    p.outputs_inside(kWidth, p.kernel[kWidth] - 1).end};

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    const int64_t lanes = kOneLane ? 1 : piece.lanes;
    Acc* const sums = rows.open(piece);
    const Range meeting = p.outputs_meeting(kHeight, piece.begin, piece.end);
    for (int64_t m = meeting.begin; m < meeting.end; ++m) {
      // Offsets of the taps in this band are neighbours: one comparison finds them, and excludes
      // what is no offset.
      const Range inside = p.taps_within(kHeight, m, piece.begin, piece.end);
      if (inside.begin >= inside.end) continue;
      const uint64_t first = inside.begin * p.kernel[kWidth];
      const uint64_t count = (inside.end - inside.begin) * p.kernel[kWidth];
      Acc* const row = sums + (p.input_position(kHeight, m, 0) - piece.begin) * rows.row_step;
      const T* const from = &delta.at(piece.b, piece.c, m, 0);
      const Offset* const from_offset = &offset.at(piece.b, piece.c, m, 0);

      const auto scatter = CONVBP_BODY(int64_t n, const int64_t last, const auto check) {
        for (; n < last; ++n) {
          const int64_t start = p.input_position(kWidth, n, 0);
          Acc* const at = row + start * rows.column_step;
          const T* const deltas = from + n * delta.stride[3];
          const Offset* const offsets = from_offset + n * offset.stride[3];
          for (int64_t l = 0; l < lanes; ++l) {
            const uint64_t tap = offsets[l * offset.stride[1]];
            if (tap - first < count && (!check || p.inside(kWidth, start + taps.column(tap))))
              at[taps.shift(tap) + l] += load<Acc>(deltas[l * delta.stride[1]]);
          }
        }
      };
      const int64_t left = std::min(whole.begin, p.out_size[kWidth]);
      const int64_t right = std::max(left, whole.end);
      scatter(0, left, std::true_type());
      scatter(left, right, std::false_type());
      scatter(right, p.out_size[kWidth], std::true_type());
    }
    rows.close(piece);
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
  const Rows<T> rows(p, tasks, input_grad);
  const Columns columns(p);
  const int64_t width = p.out_size[kWidth];
  std::vector<Acc> shares(width * tasks.lanes);  // what each column of windows gives to a row
  std::vector<Acc> column_divisor(width);
  for (int64_t n = 0; n < width; ++n) column_divisor[n] = static_cast<Acc>(p.column_divisor(n));

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    const int64_t lanes = kOneLane ? 1 : piece.lanes;
    Acc* const sums = rows.open(piece);
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      Acc* const share = shares.data();
      const Range meeting = p.outputs_meeting(kHeight, i, i + 1);
      for (int64_t m = meeting.begin; m < meeting.end; ++m) {
        const Acc row_divisor = static_cast<Acc>(p.row_divisor(m));
        const bool first = m == meeting.begin;
        const T* const from = &delta.at(piece.b, piece.c, m, 0);
        if constexpr (kOneLane) {
          by_step(delta.stride[3], CONVBP_BODY(const auto step) {
            for (int64_t n = 0; n < width; ++n)
              share[n] = (first ? Acc(0) : share[n]) +
                         load<Acc>(from[n * step]) / (row_divisor * column_divisor[n]);
          });
        } else {
          for (int64_t n = 0; n < width; ++n) {
            const Acc divisor = row_divisor * column_divisor[n];
            Acc* const to = share + n * lanes;
            by_step(delta.stride[1], CONVBP_BODY(const auto step) {
              for (int64_t l = 0; l < lanes; ++l)
                to[l] = (first ? Acc(0) : to[l]) +
                        load<Acc>(from[n * delta.stride[3] + l * step]) / divisor;
            });
          }
        }
      }
      if (meeting.begin >= meeting.end) continue;

      Acc* const row = sums + (i - piece.begin) * rows.row_step;
      if (kOneLane && is_line<Acc>(p)) {
        for (size_t k = 0; k < columns.windows.size(); ++k) {
          const Range windows = columns.windows[k];
          Acc* const at = row + p.input_position(kWidth, 0, columns.first_tap + k) *
                                    rows.column_step;
          by_step(p.stride[kWidth] * rows.column_step, CONVBP_BODY(const auto step) {
            for (int64_t n = windows.begin; n < windows.end; ++n) at[n * step] += share[n];
          });
        }
      } else {
        for (int64_t n = 0; n < width; ++n)
          for (int64_t s = columns.taps[n].begin; s < columns.taps[n].end; ++s) {
            Acc* const at = row + p.input_position(kWidth, n, s) * rows.column_step;
            for (int64_t l = 0; l < lanes; ++l) at[l] += share[n * lanes + l];
          }
      }
    }
    rows.close(piece);
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
