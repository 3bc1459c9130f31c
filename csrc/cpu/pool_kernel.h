// Pooling (L8). Included once per instruction set, with the macros of direct_kernel.h set.
//
// Everything goes by *lines* of neighbouring results that are computed together, so that the
// compiler makes vectors of them: channels of one position where channels lie innermost, columns
// of one row elsewhere. A forward line gathers from its windows' taps, one after the other.
//
// Backward, channels innermost, a line of the input gradient gathers from the windows it lies in;
// elsewhere a task owns a whole map and scatters each window's delta into it, in their order.
// Either way one task writes an element, in an order that the problem alone fixes.

#include <algorithm>
#include <limits>
#include <vector>

#include "element.h"
#include "parallel.h"
#include "pool.h"
#include "scratch.h"

namespace convbp::pool::CONVBP_ISA {

constexpr int64_t kLanes = 128;

// Lanes [lane, lane + count) of an output line: channels of column n, or columns of channel c.
struct Line {
  int64_t b, c, m, n, count;
};

template <typename T>
bool channels_innermost(const PoolProblem& p, const View<T>& v) {
  return v.stride[1] == 1 && p.channels > 1;
}

// Calls body(line) for every line of the output.
template <bool kChannels, typename Body>
void output_lines(const PoolProblem& p, const Body& body) {
  const int64_t rows = p.out_size[kHeight];
  if constexpr (kChannels) {
    parallel_for(p.batch * rows, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        for (int64_t n = 0; n < p.out_size[kWidth]; ++n)
          for (int64_t c = 0; c < p.channels; c += kLanes)
            body(Line{task / rows, c, task % rows, n, std::min(kLanes, p.channels - c)});
    });
  } else {
    parallel_for(p.batch * p.channels, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        for (int64_t m = 0; m < rows; ++m)
          for (int64_t n = 0; n < p.out_size[kWidth]; n += kLanes)
            body(Line{task / p.channels, task % p.channels, m, n,
                      std::min(kLanes, p.out_size[kWidth] - n)});
    });
  }
}

// Calls body(tap, from, step, begin, end) for every tap: lanes begin to end of the line read
// from[0], from[step], ...; the others' tap lies outside the input.
template <bool kChannels, typename T, typename Body>
inline __attribute__((always_inline)) void line_taps(const PoolProblem& p, const Line& line,
                                                     const View<const T>& input,
                                                     const Body& body) {
  for (int64_t r = 0; r < p.kernel[kHeight]; ++r) {
    const int64_t i = p.input_position(kHeight, line.m, r);
    if (!p.inside(kHeight, i)) continue;
    for (int64_t s = 0; s < p.kernel[kWidth]; ++s) {
      const int64_t tap = r * p.kernel[kWidth] + s;
      if constexpr (kChannels) {
        const int64_t j = p.input_position(kWidth, line.n, s);
        if (p.inside(kWidth, j))
          body(tap, &input.at(line.b, line.c, i, j), input.stride[1], int64_t{0}, line.count);
      } else {
        const int64_t begin = std::max(p.first_reaching(kWidth, s, 0), line.n);
        const int64_t end =
            std::min(p.first_reaching(kWidth, s, p.in_size[kWidth]), line.n + line.count);
        if (begin < end)
          body(tap, &input.at(line.b, line.c, i, p.input_position(kWidth, begin, s)),
               input.stride[3] * p.stride[kWidth], begin - line.n, end - line.n);
      }
    }
  }
}

template <typename T, typename Acc>
CONVBP_TARGET void store_line(const Acc* from, int64_t count, T* to, int64_t step) {
  if (step == 1)
    for (int64_t l = 0; l < count; ++l) to[l] = store<T>(from[l]);
  else
    for (int64_t l = 0; l < count; ++l) to[l * step] = store<T>(from[l]);
}

// The first of equal values wins, and the last NaN, as in torch.
template <typename T, typename Acc>
CONVBP_TARGET void take_larger(const T* __restrict from, int64_t step, int64_t count, int32_t tap,
                               Acc* __restrict best, int32_t* __restrict where) {
  const auto take = [&](Acc value, int64_t l) __attribute__((always_inline)) {
    const bool larger = value > best[l] || value != value || where[l] < 0;
    best[l] = larger ? value : best[l];
    where[l] = larger ? tap : where[l];
  };
  if (step == 1)
    for (int64_t l = 0; l < count; ++l) take(load<Acc>(from[l]), l);
  else if (step == 2)
    for (int64_t l = 0; l < count; ++l) take(load<Acc>(from[2 * l]), l);
  else
    for (int64_t l = 0; l < count; ++l) take(load<Acc>(from[l * step]), l);
}

template <typename T, typename Acc>
CONVBP_TARGET void add(const T* __restrict from, int64_t step, int64_t count,
                       Acc* __restrict sum) {
  if (step == 1)
    for (int64_t l = 0; l < count; ++l) sum[l] += load<Acc>(from[l]);
  else if (step == 2)
    for (int64_t l = 0; l < count; ++l) sum[l] += load<Acc>(from[2 * l]);
  else
    for (int64_t l = 0; l < count; ++l) sum[l] += load<Acc>(from[l * step]);
}

template <typename T, typename Offset, bool kChannels>
void max_forward_lines(const PoolProblem& p, View<const T> input, View<T> output,
                       View<Offset> offset) {
  using Acc = Accumulator<T>;
  constexpr int axis = kChannels ? 1 : 3;
  output_lines<kChannels>(p, [&](const Line& line) {
    Acc best[kLanes];
    int32_t where[kLanes];
    std::fill_n(best, line.count, -std::numeric_limits<Acc>::infinity());
    std::fill_n(where, line.count, int32_t{-1});
    line_taps<kChannels>(p, line, input, [&](int64_t tap, const T* from, int64_t step,
                                             int64_t begin, int64_t end) {
      take_larger(from, step, end - begin, static_cast<int32_t>(tap), best + begin, where + begin);
    });
    store_line(best, line.count, &output.at(line.b, line.c, line.m, line.n), output.stride[axis]);
    Offset* const to = &offset.at(line.b, line.c, line.m, line.n);
    for (int64_t l = 0; l < line.count; ++l)  // -1 becomes kNowhere
      to[l * offset.stride[axis]] = static_cast<Offset>(where[l]);
  });
}

template <typename T, typename Offset>
void max_forward(const PoolProblem& p, View<const T> input, View<T> output, View<Offset> offset) {
  (channels_innermost(p, input) ? max_forward_lines<T, Offset, true>
                                : max_forward_lines<T, Offset, false>)(p, input, output, offset);
}

template <typename T, bool kChannels>
void average_forward_lines(const PoolProblem& p, View<const T> input, View<T> output) {
  using Acc = Accumulator<T>;
  constexpr int axis = kChannels ? 1 : 3;
  output_lines<kChannels>(p, [&](const Line& line) {
    Acc sum[kLanes];
    std::fill_n(sum, line.count, Acc(0));
    line_taps<kChannels>(p, line, input, [&](int64_t, const T* from, int64_t step, int64_t begin,
                                             int64_t end) {
      add(from, step, end - begin, sum + begin);
    });
    if constexpr (kChannels) {
      const Acc divisor = static_cast<Acc>(p.divisor(line.m, line.n));
      for (int64_t l = 0; l < line.count; ++l) sum[l] /= divisor;
    } else {
      for (int64_t l = 0; l < line.count; ++l)
        sum[l] /= static_cast<Acc>(p.divisor(line.m, line.n + l));
    }
    store_line(sum, line.count, &output.at(line.b, line.c, line.m, line.n), output.stride[axis]);
  });
}

template <typename T>
void average_forward(const PoolProblem& p, View<const T> input, View<T> output) {
  (channels_innermost(p, input) ? average_forward_lines<T, true>
                                : average_forward_lines<T, false>)(p, input, output);
}

// Backward, channels innermost: calls body(tap, m, n, c, count, sum) for every window that input
// line (b, channels from c, i, j) lies in, then stores the sums.
template <typename T, typename Body>
void gather_lines(const PoolProblem& p, View<T> input_grad, const Body& body) {
  using Acc = Accumulator<T>;
  const int64_t rows = p.in_size[kHeight];
  parallel_for(p.batch * rows, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / rows, i = task % rows;
      for (int64_t j = 0; j < p.in_size[kWidth]; ++j)
        for (int64_t c = 0; c < p.channels; c += kLanes) {
          const int64_t count = std::min(kLanes, p.channels - c);
          Acc sum[kLanes];
          std::fill_n(sum, count, Acc(0));
          for (int64_t r = 0; r < p.kernel[kHeight]; ++r) {
            const int64_t m = p.output_position(kHeight, r, i);
            if (m < 0) continue;
            for (int64_t s = 0; s < p.kernel[kWidth]; ++s) {
              const int64_t n = p.output_position(kWidth, s, j);
              if (n >= 0) body(r * p.kernel[kWidth] + s, Line{b, c, m, n, count}, sum);
            }
          }
          store_line(sum, count, &input_grad.at(b, c, i, j), input_grad.stride[1]);
        }
    }
  });
}

// Backward, elsewhere: calls body(b, c, map) for every map of the input gradient, zero at first,
// and stores it.
template <typename T, typename Body>
void scatter_maps(const PoolProblem& p, View<T> input_grad, const Body& body) {
  using Acc = Accumulator<T>;
  const int64_t rows = p.in_size[kHeight], columns = p.in_size[kWidth];
  parallel_for(p.batch * p.channels, [&](int64_t begin, int64_t end) {
    const Scratch block = Scratch::take<Acc>(ScratchName::kPatch, rows * columns);
    Acc* const map = block.template data<Acc>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / p.channels, c = task % p.channels;
      std::fill_n(map, rows * columns, Acc(0));
      body(b, c, map);
      for (int64_t i = 0; i < rows; ++i)
        store_line(map + i * columns, columns, &input_grad.at(b, c, i, 0), input_grad.stride[3]);
    }
  });
}

template <typename T, typename Offset, typename Acc>
CONVBP_TARGET void add_where(const T* __restrict delta, int64_t delta_step,
                             const Offset* __restrict offset, int64_t offset_step, Offset tap,
                             int64_t count, Acc* __restrict sum) {
  if (delta_step == 1 && offset_step == 1)
    for (int64_t l = 0; l < count; ++l) sum[l] += offset[l] == tap ? load<Acc>(delta[l]) : Acc(0);
  else
    for (int64_t l = 0; l < count; ++l)
      if (offset[l * offset_step] == tap) sum[l] += load<Acc>(delta[l * delta_step]);
}

template <typename T, typename Offset>
void max_input_grad(const PoolProblem& p, View<const T> delta, View<const Offset> offset,
                    View<T> input_grad) {
  using Acc = Accumulator<T>;
  if (channels_innermost(p, input_grad)) {
    gather_lines(p, input_grad, [&](int64_t tap, const Line& line, Acc* sum) {
      add_where(&delta.at(line.b, line.c, line.m, line.n), delta.stride[1],
                &offset.at(line.b, line.c, line.m, line.n), offset.stride[1],
                static_cast<Offset>(tap), line.count, sum);
    });
    return;
  }
  const int64_t columns = p.in_size[kWidth];
  std::vector<int64_t> shift(p.taps());  // of a tap, in the map
  for (int64_t tap = 0; tap < p.taps(); ++tap)
    shift[tap] = tap / p.kernel[kWidth] * p.dilation[kHeight] * columns +
                 tap % p.kernel[kWidth] * p.dilation[kWidth];
  scatter_maps(p, input_grad, [&](int64_t b, int64_t c, Acc* map) {
    for (int64_t m = 0; m < p.out_size[kHeight]; ++m) {
      const T* from = &delta.at(b, c, m, 0);
      const Offset* where = &offset.at(b, c, m, 0);
      const int64_t row = p.input_position(kHeight, m, 0) * columns;
      for (int64_t n = 0; n < p.out_size[kWidth]; ++n) {
        const Offset tap = where[n * offset.stride[3]];
        if (tap != kNowhere<Offset>)
          map[row + p.input_position(kWidth, n, 0) + shift[tap]] +=
              load<Acc>(from[n * delta.stride[3]]);
      }
    }
  });
}

template <typename T>
void average_input_grad(const PoolProblem& p, View<const T> delta, View<T> input_grad) {
  using Acc = Accumulator<T>;
  if (channels_innermost(p, input_grad)) {
    gather_lines(p, input_grad, [&](int64_t, const Line& line, Acc* sum) {
      const Acc divisor = static_cast<Acc>(p.divisor(line.m, line.n));
      const T* from = &delta.at(line.b, line.c, line.m, line.n);
      for (int64_t l = 0; l < line.count; ++l)
        sum[l] += load<Acc>(from[l * delta.stride[1]]) / divisor;
    });
    return;
  }
  const int64_t columns = p.in_size[kWidth];
  scatter_maps(p, input_grad, [&](int64_t b, int64_t c, Acc* map) {
    std::vector<Acc> share(p.out_size[kWidth]);
    for (int64_t m = 0; m < p.out_size[kHeight]; ++m) {
      for (int64_t n = 0; n < p.out_size[kWidth]; ++n)
        share[n] = load<Acc>(delta.at(b, c, m, n)) / static_cast<Acc>(p.divisor(m, n));
      for (int64_t r = 0; r < p.kernel[kHeight]; ++r) {
        const int64_t i = p.input_position(kHeight, m, r);
        if (!p.inside(kHeight, i)) continue;
        for (int64_t s = 0; s < p.kernel[kWidth]; ++s) {
          const int64_t end = p.first_reaching(kWidth, s, columns);
          for (int64_t n = p.first_reaching(kWidth, s, 0); n < end; ++n)
            map[i * columns + p.input_position(kWidth, n, s)] += share[n];
        }
      }
    }
  });
}

template <typename T, typename Offset>
void max_gather(const PoolProblem& p, View<const T> input, View<const Offset> offset,
                View<T> output) {
  parallel_for(p.batch * p.channels, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / p.channels, c = task % p.channels;
      for (int64_t m = 0; m < p.out_size[kHeight]; ++m)
        for (int64_t n = 0; n < p.out_size[kWidth]; ++n) {
          const Offset tap = offset.at(b, c, m, n);
          output.at(b, c, m, n) =
              tap == kNowhere<Offset>
                  ? T(0)
                  : input.at(b, c, p.input_position(kHeight, m, tap / p.kernel[kWidth]),
                             p.input_position(kWidth, n, tap % p.kernel[kWidth]));
        }
    }
  });
}

template <typename T, typename Offset>
const MaxTable<T, Offset>& max_table() {
  static constexpr MaxTable<T, Offset> table{&max_forward<T, Offset>, &max_input_grad<T, Offset>,
                                             &max_gather<T, Offset>};
  return table;
}

template <typename T>
const AverageTable<T>& average_table() {
  static constexpr AverageTable<T> table{&average_forward<T>, &average_input_grad<T>};
  return table;
}

#define CONVBP_INSTANTIATE(T)                              \
  template const MaxTable<T, uint8_t>& max_table();        \
  template const MaxTable<T, uint32_t>& max_table();       \
  template const AverageTable<T>& average_table();
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::pool::CONVBP_ISA
