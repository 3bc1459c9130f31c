// The depthwise kernels. Included once per instruction set, as register_tile.h.
//
// What is computed stands in cpu/reference/conv2d.h. Rows of the source that lie outside are left
// out of the sums.

#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/planes.h"
#include "cpu/depthwise/turned.h"

namespace convbp::depthwise::CONVBP_ISA {

template <typename T>
KernelTable<T> kernels() {
  return {CONVBP_VECTOR_BYTES,
          &channels_last_tasks<T>,
          &planes_tasks<T>,
          &turned_tasks<T>,
          {&planes_weight_grad<T>, &channels_last_weight_grad<T>},
          &turned_weight_grad<T>};
}

template KernelTable<float> kernels();
template KernelTable<double> kernels();

}  // namespace convbp::depthwise::CONVBP_ISA
