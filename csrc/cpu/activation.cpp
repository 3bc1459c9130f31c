#include "activation.h"

#include "capability.h"

namespace convbp::activation {

CONVBP_IN_EACH_ISA(template <typename A> const Functions<A>* find(const std::string& name);)

template <typename A>
const Functions<A>* find(const std::string& name) {
  return CONVBP_IN_BEST_ISA(find<A>(name));
}
template const Functions<float>* find(const std::string&);
template const Functions<double>* find(const std::string&);

namespace {

template <typename... Rows>
std::string names_in(Table<Rows...>) {
  std::string all;
  ((all += (all.empty() ? "" : ", ") + std::string(Rows::kName) + " " +
           std::to_string(Rows::kParameters)),
   ...);
  return all;
}

}  // namespace

std::string names() {
  return names_in(All{});
}

}  // namespace convbp::activation
