// The depthwise kernels. Included once per instruction set, as register_tile.h.
//
// The equations are in cpu/reference/conv2d.h. Rows of the source that lie outside are left out of
// the sums.

#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/nchw.h"
#include "cpu/depthwise/transposed.h"

namespace convbp::depthwise::CONVBP_ISA {

template <typename T>
KernelTable<T> kernels() {
  return {CONVBP_VECTOR_BYTES,
          &channels_last_tasks<T>,
          &nchw_tasks<T>,
          &transposed_tasks<T>,
          {&nchw_weight_grad<T>, &channels_last_weight_grad<T>},
          &transposed_weight_grad<T>};
}

template KernelTable<float> kernels();
template KernelTable<double> kernels();

}  // namespace convbp::depthwise::CONVBP_ISA
