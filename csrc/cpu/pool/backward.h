// The backward kernels of pooling (L8), part of kernel.h.
//
// A task owns a band of rows of the input gradient and sums it up, [row][column][channel]. Max
// pooling adds the delta of every window that meets the band to the window's winner, in the order
// of the windows. Average pooling adds up, for each row, its windows' rows of deltas; then each
// column of the sum is spread over the columns of its window.

namespace convbp::pool::CONVBP_ISA {

// Rows of the input gradient while they are summed: in place if the sums have its type, else in
// working memory.
template <typename T>
class Rows {
 public:
  using Acc = Accumulator<T>;
  int64_t row_step, column_step;

  Rows(const PoolProblem& p, const Tasks& tasks, const View<T>& grad)
      : row_step(kInPlace ? grad.stride[2] : p.in_size[kWidth] * tasks.channels_per_task),
        column_step(kInPlace ? grad.stride[3] : tasks.channels_per_task),
        grad_(grad),
        columns_(p.in_size[kWidth]),
        scratch_(Scratch::take<Acc>(ScratchName::kPatch, kInPlace ? 0 : tasks.rows * row_step)) {}

  // The piece's rows, all zero.
  CONVBP_INLINE Acc* open(const Piece& piece) const {
    Acc* const rows = place(piece);
    const int64_t count = piece.end - piece.begin;
    if (column_step == piece.channels && row_step == columns_ * column_step)
      fill_zero(rows, count * row_step);
    else
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < columns_; ++j)
          fill_zero(rows + i * row_step + j * column_step, piece.channels);
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
            store_line(sums + j * column_step, piece.channels, to + j * grad_.stride[3],
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

// The place of a tap, from its offset: looked up, or divided.
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
  // The tap's distance from the window's first element, in the rows.
  CONVBP_INLINE int64_t shift(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return shifts[tap];
    return tap / kernel_width * row_step + tap % kernel_width * column_step;
  }
  // The tap's distance from the window's first column, on the width axis.
  CONVBP_INLINE int64_t column(int64_t tap) const {
    if constexpr (sizeof(Offset) == 1) return columns[tap];
    return tap % kernel_width * dilation;
  }
};

template <typename T, typename Offset, bool kOneChannel>
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
    const int64_t channels = kOneChannel ? 1 : piece.channels;
    Acc* const sums = rows.open(piece);
    const Range meeting = p.outputs_meeting(kHeight, piece.begin, piece.end);
    for (int64_t m = meeting.begin; m < meeting.end; ++m) {
      // Offsets of the taps in this band are neighbours: one comparison finds them, and excludes
      // numbers that are no offset. The comparison relies on unsigned numbers: tap - first of a tap
      // before the first wraps around to a huge number.
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
          for (int64_t l = 0; l < channels; ++l) {
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
  const auto kernel = tasks.channels_per_task == 1 ? max_input_grad<T, Offset, true>
                                                   : max_input_grad<T, Offset, false>;
  kernel(p, tasks, delta, offset, input_grad, begin, end);
}

template <typename T, bool kOneChannel>
CONVBP_TARGET void average_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                                      View<T> input_grad, int64_t begin, int64_t end) {
  using Acc = Accumulator<T>;
  const Rows<T> rows(p, tasks, input_grad);
  const Columns columns(p);
  const int64_t width = p.out_size[kWidth];
  // The share of each column of windows in a row.
  std::vector<Acc> shares(width * tasks.channels_per_task);
  std::vector<Acc> column_divisor(width);
  for (int64_t n = 0; n < width; ++n) column_divisor[n] = static_cast<Acc>(p.column_divisor(n));

  for (int64_t task = begin; task < end; ++task) {
    const Piece piece(tasks, task);
    const int64_t channels = kOneChannel ? 1 : piece.channels;
    Acc* const sums = rows.open(piece);
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      Acc* const share = shares.data();
      const Range meeting = p.outputs_meeting(kHeight, i, i + 1);
      for (int64_t m = meeting.begin; m < meeting.end; ++m) {
        const Acc row_divisor = static_cast<Acc>(p.row_divisor(m));
        const bool first = m == meeting.begin;
        const T* const from = &delta.at(piece.b, piece.c, m, 0);
        if constexpr (kOneChannel) {
          by_step(
              delta.stride[3], CONVBP_BODY(const auto step) {
                for (int64_t n = 0; n < width; ++n)
                  share[n] = (first ? Acc(0) : share[n]) +
                             load<Acc>(from[n * step]) / (row_divisor * column_divisor[n]);
              });
        } else {
          for (int64_t n = 0; n < width; ++n) {
            const Acc divisor = row_divisor * column_divisor[n];
            Acc* const to = share + n * channels;
            by_step(
                delta.stride[1], CONVBP_BODY(const auto step) {
                  for (int64_t l = 0; l < channels; ++l)
                    to[l] = (first ? Acc(0) : to[l]) +
                            load<Acc>(from[n * delta.stride[3] + l * step]) / divisor;
                });
          }
        }
      }
      if (meeting.begin >= meeting.end) continue;

      Acc* const row = sums + (i - piece.begin) * rows.row_step;
      if (kOneChannel && is_line<Acc>(p)) {
        for (size_t k = 0; k < columns.windows.size(); ++k) {
          const Range windows = columns.windows[k];
          Acc* const at =
              row + p.input_position(kWidth, 0, columns.first_tap + k) * rows.column_step;
          by_step(
              p.stride[kWidth] * rows.column_step, CONVBP_BODY(const auto step) {
                for (int64_t n = windows.begin; n < windows.end; ++n) at[n * step] += share[n];
              });
        }
      } else {
        for (int64_t n = 0; n < width; ++n)
          for (int64_t s = columns.taps[n].begin; s < columns.taps[n].end; ++s) {
            Acc* const at = row + p.input_position(kWidth, n, s) * rows.column_step;
            for (int64_t l = 0; l < channels; ++l) at[l] += share[n * channels + l];
          }
      }
    }
    rows.close(piece);
  }
}

template <typename T>
void avg_pool2d_input_grad(const PoolProblem& p, const Tasks& tasks, View<const T> delta,
                           View<T> input_grad, int64_t begin, int64_t end) {
  const auto kernel =
      tasks.channels_per_task == 1 ? average_input_grad<T, true> : average_input_grad<T, false>;
  kernel(p, tasks, delta, input_grad, begin, end);
}

}  // namespace convbp::pool::CONVBP_ISA
