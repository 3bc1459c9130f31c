// Loops over the rows of the table of activations. Included once per instruction set, with the
// macros of register_tile.h set.

#include "cpu/activation.h"

namespace convbp::activation::CONVBP_ISA {

template <typename Row, typename A>
CONVBP_TARGET void value(A* __restrict x, int64_t count, const A* __restrict parameters) {
  for (int64_t i = 0; i < count; ++i) x[i] = Row::template value<A>(x[i], parameters);
}

template <typename Row, typename A>
CONVBP_TARGET void error_signal(const A* grad, const A* saved, A* delta, int64_t count,
                                const A* parameters) {
#pragma GCC ivdep  // delta may be grad, element for element
  for (int64_t i = 0; i < count; ++i)
    delta[i] = Row::template error_signal<A>(grad[i], saved[i], parameters);
}

template <typename A, typename... Rows>
const Functions<A>* functions_of(int row, Table<Rows...>) {
  static constexpr Functions<A> rows[] = {{&value<Rows, A>, &error_signal<Rows, A>}...};
  return &rows[row];
}

template <typename A>
const Functions<A>* functions_of(int row) {
  return functions_of<A>(row, All{});
}
template const Functions<float>* functions_of(int);
template const Functions<double>* functions_of(int);

}  // namespace convbp::activation::CONVBP_ISA
