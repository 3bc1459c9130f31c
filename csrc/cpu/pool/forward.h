// The forward kernels of pooling (L8), part of kernel.h.
//
// With channels innermost, a window's channels lie side by side, and a block of them is taken
// through all its taps in registers. Elsewhere a row of windows goes through the taps side by side
// or, where the row is shorter than a vector, each window by itself. The order of taps is always
// the same.

namespace convbp::pool::CONVBP_ISA {

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
    const auto here = typename Lanes::Where{} + static_cast<Index<typename Lanes::Element>>(tap);
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

// Takes kCount neighbouring groups of lanes through a window's taps, from channel `channel` on.
template <typename Lanes, int kCount, template <typename> typename Fold, typename T>
CONVBP_INLINE void fold_window(const Window<T>& w, int64_t channel, Fold<Lanes> (&folds)[kCount]) {
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) folds[v].start(w.first_tap());
  for (int64_t r = w.rows.begin; r < w.rows.end; ++r) {
    const T* from = w.from + (r - w.rows.begin) * w.row_step + channel;
    for (int64_t s = w.columns.begin; s < w.columns.end; ++s, from += w.column_step)
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        typename Lanes::Value x;
        Lanes::load_from(from + v * Lanes::kLanes, x);
        folds[v].take(x, r * w.kernel_width + s);
      }
  }
}

template <typename Offset, typename Where>
CONVBP_INLINE void store_offsets(const Where* from, int64_t count, Offset* to, int64_t step) {
  if (step == 1)  // -1 becomes kNowhere
    for (int64_t l = 0; l < count; ++l) to[l] = static_cast<Offset>(from[l]);
  else
    for (int64_t l = 0; l < count; ++l) to[l * step] = static_cast<Offset>(from[l]);
}

template <typename Lanes, int kCount, typename T, typename Offset>
CONVBP_INLINE void max_block(const Window<T>& w, int64_t channel, T* output, int64_t output_step,
                             Offset* offset, int64_t offset_step) {
  constexpr int kBlock = kCount * Lanes::kLanes;
  Largest<Lanes> folds[kCount];
  fold_window<Lanes, kCount>(w, channel, folds);
  typename Lanes::Element values[kBlock];
  Index<typename Lanes::Element> where[kBlock];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    *reinterpret_cast<typename Lanes::Value*>(values + v * Lanes::kLanes) = folds[v].value;
    *reinterpret_cast<typename Lanes::Where*>(where + v * Lanes::kLanes) = folds[v].where;
  }
  store_line(values, kBlock, output + channel * output_step, output_step);
  store_offsets(where, kBlock, offset + channel * offset_step, offset_step);
}

template <typename Lanes, int kCount, typename T>
CONVBP_INLINE void average_block(const Window<T>& w, int64_t channel,
                                 typename Lanes::Element divisor, T* output, int64_t step) {
  constexpr int kBlock = kCount * Lanes::kLanes;
  Sum<Lanes> folds[kCount];
  fold_window<Lanes, kCount>(w, channel, folds);
  typename Lanes::Element values[kBlock];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v)
    *reinterpret_cast<typename Lanes::Value*>(values + v * Lanes::kLanes) =
        folds[v].value / divisor;
  store_line(values, kBlock, output + channel * step, step);
}

// Windows side by side that go through the taps together.
constexpr int64_t kLine = 128;

template <typename T, typename Acc>
CONVBP_TARGET void take_line(const T* __restrict from, int64_t any_step, int64_t count,
                             Index<Acc> tap, Acc* __restrict value, Index<Acc>* __restrict where) {
  by_step(
      any_step, CONVBP_BODY(const auto step) {
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
  by_step(
      any_step, CONVBP_BODY(const auto step) {
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

      if (piece.channels == 1 && is_line<Acc>(p)) {
        for (int64_t n = 0; n < width; n += kLine) {
          const int64_t count = std::min(kLine, width - n);
          Acc value[kLine];
          Index<Acc> where[kLine];
          for (int64_t l = 0; l < count; ++l) {
            const Range taps = columns.taps[n + l];
            const bool empty = rows.begin >= rows.end || taps.begin >= taps.end;
            value[l] = kLeast<Acc>;
            where[l] =
                static_cast<Index<Acc>>(empty ? -1 : rows.begin * p.kernel[kWidth] + taps.begin);
          }
          line_taps(
              p, columns, input, piece, m, rows, n, count,
              CONVBP_BODY(int64_t tap, const T* from, int64_t step, int64_t first, int64_t last) {
                take_line(from, step, last - first, static_cast<Index<Acc>>(tap), value + first,
                          where + first);
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
        int64_t channel = 0;
        for (; channel + 4 * kLanes <= piece.channels; channel += 4 * kLanes)
          max_block<Vector<Acc>, 4>(w, channel, out, step, out_offset, offset_step);
        for (; channel + kLanes <= piece.channels; channel += kLanes)
          max_block<Vector<Acc>, 1>(w, channel, out, step, out_offset, offset_step);
        for (; channel < piece.channels; ++channel)
          max_block<One<Acc>, 1>(w, channel, out, step, out_offset, offset_step);
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

      if (piece.channels == 1 && is_line<Acc>(p)) {
        for (int64_t n = 0; n < width; n += kLine) {
          const int64_t count = std::min(kLine, width - n);
          Acc sum[kLine];
          for (int64_t l = 0; l < count; ++l) sum[l] = Acc(0);
          line_taps(
              p, columns, input, piece, m, rows, n, count,
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
        int64_t channel = 0;
        for (; channel + 4 * kLanes <= piece.channels; channel += 4 * kLanes)
          average_block<Vector<Acc>, 4>(w, channel, divisor, out, output.stride[1]);
        for (; channel + kLanes <= piece.channels; channel += kLanes)
          average_block<Vector<Acc>, 1>(w, channel, divisor, out, output.stride[1]);
        for (; channel < piece.channels; ++channel)
          average_block<One<Acc>, 1>(w, channel, divisor, out, output.stride[1]);
      }
    }
  }
}

}  // namespace convbp::pool::CONVBP_ISA
