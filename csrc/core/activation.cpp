#include "core/activation.h"

namespace convbp::activation {
namespace {

struct Named {
  const char* name;
  int parameters;
};

template <typename... Rows>
const Named* named(Table<Rows...>) {
  static constexpr Named all[] = {{Rows::kName, Rows::kParameters}..., {nullptr, 0}};
  return all;
}

}  // namespace

int row_of(const std::string& name) {
  for (const Named* row = named(All{}); row->name; ++row)
    if (name == row->name) return static_cast<int>(row - named(All{}));
  return -1;
}

int parameters_of(int row) {
  return named(All{})[row].parameters;
}

std::string names() {
  std::string all;
  for (const Named* row = named(All{}); row->name; ++row)
    all +=
        (all.empty() ? "" : ", ") + std::string(row->name) + " " + std::to_string(row->parameters);
  return all;
}

}  // namespace convbp::activation
