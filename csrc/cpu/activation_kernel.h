// Loops over the rows of the table of activations. Included once per instruction set, with the
// macros of direct_kernel.h set.

#include "activation.h"

namespace convbp::activation::CONVBP_ISA {

template <typename Row, typename A>
CONVBP_TARGET void value(A* __restrict x, int64_t count, const A* __restrict parameters) {
  for (int64_t i = 0; i < count; ++i) x[i] = Row::template value<A>(x[i], parameters);
}

template <typename Row, typename A>
CONVBP_TARGET void error_signal(const A* grad, const A* kept, A* delta, int64_t count,
                                const A* parameters) {
#pragma GCC ivdep  // delta may be grad, element for element
  for (int64_t i = 0; i < count; ++i)
    delta[i] = Row::template error_signal<A>(grad[i], kept[i], parameters);
}

template <typename A, typename... Rows>
const Functions<A>* find_in(const std::string& name, Table<Rows...>) {
  static constexpr Functions<A> rows[] = {
      {Rows::kName, Rows::kParameters, &value<Rows, A>, &error_signal<Rows, A>}...};
  for (const Functions<A>& row : rows)
    if (name == row.name) return &row;
  return nullptr;
}

template <typename A>
const Functions<A>* find(const std::string& name) {
  return find_in<A>(name, All{});
}
template const Functions<float>* find(const std::string&);
template const Functions<double>* find(const std::string&);

}  // namespace convbp::activation::CONVBP_ISA
