#include "cpu/elementwise/elementwise.h"

#include <algorithm>
#include <type_traits>

#include "core/integers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace convbp {
namespace {

// Numbers go through a buffer of the accumulator's type, in pieces that stay in the first-level
// cache.
constexpr int64_t kPiece = 1024;
// Elements of a task: few enough for every thread to have some, enough to be worth one.
constexpr int64_t kTask = 16 * kPiece;
// The bias gradient is cut into at most this many chunks, whatever the machine: the cut fixes
// the order of its sums.
constexpr int64_t kChunks = 64;

template <typename T, typename Acc>
void load_piece(const T* from, int64_t count, Acc* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = load<Acc>(from[i]);
}

template <typename T, typename Acc>
void store_piece(const Acc* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = store<T>(from[i]);
}

// Calls body(begin, end) on pieces of [begin, end).
template <typename Body>
void pieces(int64_t begin, int64_t end, int64_t piece, const Body& body) {
  for (; begin < end; begin += piece) body(begin, std::min(begin + piece, end));
}

template <typename Body>
void parallel_pieces(int64_t count, const Body& body) {
  parallel_for(divide_up(count, kTask), [&](int64_t begin, int64_t end) {
    pieces(begin * kTask, std::min(end * kTask, count), kPiece, body);
  });
}

// Computes delta[0 .. count) of one piece, and returns its numbers before they are rounded: delta
// itself, or `piece`.
template <typename T, typename Acc>
const Acc* error_signal_piece(const activation::Activation<Acc>& g, const T* grad, const T* saved,
                              T* delta, int64_t count, Acc (&piece)[kPiece]) {
  if constexpr (std::is_same_v<T, Acc>) {
    g.error_signal(grad, saved, delta, count);
    return delta;
  } else {
    Acc saved_piece[kPiece];
    load_piece(grad, count, piece);
    load_piece(saved, count, saved_piece);
    g.error_signal(piece, saved_piece, piece, count);
    store_piece(piece, count, delta);
    return piece;
  }
}

template <typename Acc>
double sum(const Acc* x, int64_t count) {
  constexpr int64_t kLanes = 16;  // independent sums, for vectors
  Acc lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
  double total = 0.0;
  for (const Acc lane : lanes) total += lane;
  for (; i < count; ++i) total += x[i];
  return total;
}

}  // namespace

template <typename T>
void activate(const activation::Activation<Accumulator<T>>& g, const T* input, T* output,
              int64_t count) {
  parallel_pieces(count, [&](int64_t begin, int64_t end) {
    Accumulator<T> piece[kPiece];
    load_piece(input + begin, end - begin, piece);
    g.apply(piece, end - begin);
    store_piece(piece, end - begin, output + begin);
  });
}

template <typename T>
void error_signal(const activation::Activation<Accumulator<T>>& g, const T* grad, const T* saved,
                  T* delta, int64_t count) {
  parallel_pieces(count, [&](int64_t begin, int64_t end) {
    Accumulator<T> piece[kPiece];
    error_signal_piece(g, grad + begin, saved + begin, delta + begin, end - begin, piece);
  });
}

template <typename T>
void error_signal_bias_grad(const activation::Activation<Accumulator<T>>& g, const T* grad,
                            const T* saved, T* delta, const Channels& size, T* bias_grad) {
  using Acc = Accumulator<T>;
  const int64_t channels = size.channels, inner = size.inner;
  if (channels * inner == 0) {  // the cuts below divide by both
    std::fill_n(bias_grad, channels, static_cast<T>(Acc(0)));
    return;
  }
  // A task takes some channels of a chunk, as many as lie side by side for long enough: memory is
  // read in its own order. Where channels lie innermost, that is all of them.
  const int64_t width = inner == 1 ? channels : std::clamp<int64_t>(kTask / inner, 1, channels);
  const int64_t blocks = divide_up(channels, width);
  const int64_t wanted =
      inner == 1 ? std::min(kChunks, size.outer * channels / kTask) : kChunks / blocks;
  const int64_t chunks = std::max<int64_t>(1, std::min(wanted, size.outer));
  const Scratch block = Scratch::take<double>(ScratchName::kPartial, chunks * channels);
  double* const sums = block.data<double>();

  parallel_for(chunks * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / blocks, c0 = task % blocks * width;
      const int64_t c1 = std::min(c0 + width, channels);
      const int64_t o0 = chunk * size.outer / chunks, o1 = (chunk + 1) * size.outer / chunks;
      double* const of_chunk = sums + chunk * channels;
      std::fill(of_chunk + c0, of_chunk + c1, 0.0);
      const auto signal = [&](int64_t first, int64_t last, const auto& add) {
        pieces(first, last, kPiece, [&](int64_t i, int64_t end) {
          Acc piece[kPiece];
          add(i, error_signal_piece(g, grad + i, saved + i, delta + i, end - i, piece), end - i);
        });
      };
      if (inner > 1) {
        for (int64_t o = o0; o < o1; ++o)
          signal((o * channels + c0) * inner, (o * channels + c1) * inner,
                 [&](int64_t i, const Acc* x, int64_t count) {
                   // Adds to each plane that the piece has a part of.
                   for (const int64_t last = i + count; i < last;) {
                     const int64_t plane = i / inner,
                                   part = std::min(last, (plane + 1) * inner) - i;
                     of_chunk[plane % channels] += sum(x, part);
                     x += part;
                     i += part;
                   }
                 });
      } else if (channels <= kPiece) {
        pieces(o0, o1, kPiece / channels, [&](int64_t row, int64_t last) {
          signal(row * channels, last * channels, [&](int64_t, const Acc* x, int64_t count) {
            Acc column[kPiece];
            std::copy_n(x, channels, column);
            for (int64_t from = channels; from < count; from += channels)
              for (int64_t c = 0; c < channels; ++c) column[c] += x[from + c];
            for (int64_t c = 0; c < channels; ++c) of_chunk[c] += column[c];
          });
        });
      } else {
        for (int64_t o = o0; o < o1; ++o)
          signal(o * channels, (o + 1) * channels, [&](int64_t i, const Acc* x, int64_t count) {
            for (int64_t c = 0; c < count; ++c) of_chunk[i % channels + c] += x[c];
          });
      }
    }
  });

  for (int64_t c = 0; c < channels; ++c) {
    double total = 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk * channels + c];
    bias_grad[c] = static_cast<T>(static_cast<Acc>(total));
  }
}

#define CONVBP_INSTANTIATE(T)                                                                   \
  template void activate(const activation::Activation<Accumulator<T>>&, const T*, T*, int64_t); \
  template void error_signal(const activation::Activation<Accumulator<T>>&, const T*, const T*, \
                             T*, int64_t);                                                      \
  template void error_signal_bias_grad(const activation::Activation<Accumulator<T>>&, const T*, \
                                       const T*, T*, const Channels&, T*);
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp
