#include "error_signal.h"

#include <algorithm>

#include "parallel.h"
#include "scratch.h"

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
  parallel_for((count + kTask - 1) / kTask, [&](int64_t begin, int64_t end) {
    pieces(begin * kTask, std::min(end * kTask, count), kPiece, body);
  });
}

// delta[0 .. count) of one piece; the numbers before rounding stay in `piece`.
template <typename T, typename Acc>
void error_signal_piece(const activation::Activation<Acc>& g, const T* grad, const T* kept,
                        T* delta, int64_t count, Acc* piece) {
  Acc kept_piece[kPiece] = {};
  load_piece(grad, count, piece);
  load_piece(kept, count, kept_piece);
  g.error_signal(piece, kept_piece, count);
  store_piece(piece, count, delta);
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
void error_signal(const activation::Activation<Accumulator<T>>& g, const T* grad, const T* kept,
                  T* delta, int64_t count) {
  parallel_pieces(count, [&](int64_t begin, int64_t end) {
    Accumulator<T> piece[kPiece];
    error_signal_piece(g, grad + begin, kept + begin, delta + begin, end - begin, piece);
  });
}

template <typename T>
void error_signal_bias_grad(const activation::Activation<Accumulator<T>>& g, const T* grad,
                            const T* kept, T* delta, const Channels& size, T* bias_grad) {
  using Acc = Accumulator<T>;
  const int64_t channels = size.channels, inner = size.inner;
  if (channels == 0) return;  // the cut below divides by it
  // Where channels lie innermost, a task takes all of a chunk's; else it takes one of them.
  const int64_t wanted =
      inner == 1 ? std::min(kChunks, size.outer * channels / kTask) : kChunks / channels;
  const int64_t chunks = std::max<int64_t>(1, std::min(wanted, size.outer));
  const Scratch block = Scratch::take<double>(ScratchName::kPartial, chunks * channels);
  double* const sums = block.data<double>();
  const auto chunk_begin = [&](int64_t chunk) { return chunk * size.outer / chunks; };

  if (inner == 1) {
    const int64_t rows = std::max<int64_t>(1, kPiece / channels);
    parallel_for(chunks, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        double* const of_chunk = sums + chunk * channels;
        std::fill_n(of_chunk, channels, 0.0);
        pieces(chunk_begin(chunk), chunk_begin(chunk + 1), rows, [&](int64_t row, int64_t last) {
          // Whole rows, or pieces of a row that is longer than one.
          pieces(row * channels, last * channels, kPiece, [&](int64_t i, int64_t piece_end) {
            Acc piece[kPiece];
            error_signal_piece(g, grad + i, kept + i, delta + i, piece_end - i, piece);
            const Acc* from = piece;
            for (int64_t c = i % channels; i < piece_end; c = 0) {
              const int64_t width = std::min(channels - c, piece_end - i);
              for (int64_t x = 0; x < width; ++x) of_chunk[c + x] += from[x];
              i += width;
              from += width;
            }
          });
        });
      }
    });
  } else {
    parallel_for(chunks * channels, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t chunk = task / channels, c = task % channels;
        double total = 0.0;
        for (int64_t o = chunk_begin(chunk); o < chunk_begin(chunk + 1); ++o) {
          const int64_t first = (o * channels + c) * inner;
          pieces(first, first + inner, kPiece, [&](int64_t i, int64_t piece_end) {
            Acc piece[kPiece];
            error_signal_piece(g, grad + i, kept + i, delta + i, piece_end - i, piece);
            total += sum(piece, piece_end - i);
          });
        }
        sums[task] = total;
      }
    });
  }

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
