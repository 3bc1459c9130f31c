#include "activation.h"

namespace convbp::activation {
namespace {

template <typename Row, typename A>
void value(A* x, int64_t count, const A* parameters) {
  for (int64_t i = 0; i < count; ++i) x[i] = Row::template value<A>(x[i], parameters);
}

template <typename Row, typename A>
void error_signal(A* grad, const A* kept, int64_t count, const A* parameters) {
  for (int64_t i = 0; i < count; ++i)
    grad[i] = Row::template error_signal<A>(grad[i], kept[i], parameters);
}

template <typename A, typename... Rows>
const Functions<A>* find_in(const std::string& name, Table<Rows...>) {
  static constexpr Functions<A> rows[] = {
      {Rows::kName, Rows::kParameters, &value<Rows, A>, &error_signal<Rows, A>}...};
  for (const Functions<A>& row : rows)
    if (name == row.name) return &row;
  return nullptr;
}

template <typename... Rows>
std::string names_in(Table<Rows...>) {
  std::string all;
  ((all += (all.empty() ? "" : ", ") + std::string(Rows::kName) + " " +
           std::to_string(Rows::kParameters)),
   ...);
  return all;
}

}  // namespace

template <typename A>
const Functions<A>* find(const std::string& name) {
  return find_in<A>(name, All{});
}
template const Functions<float>* find(const std::string&);
template const Functions<double>* find(const std::string&);

std::string names() {
  return names_in(All{});
}

}  // namespace convbp::activation
