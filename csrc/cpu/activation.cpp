#include "cpu/activation.h"

#include "cpu/capability.h"

namespace convbp::activation {

CONVBP_IN_EACH_ISA(template <typename A> const Functions<A>* functions_of(int row);)

template <typename A>
const Functions<A>* functions_of(int row) {
  return CONVBP_IN_BEST_ISA(functions_of<A>(row));
}
template const Functions<float>* functions_of(int);
template const Functions<double>* functions_of(int);

}  // namespace convbp::activation
