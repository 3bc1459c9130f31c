// The surroundings of a launcher: the stream, scratch memory, the size of the GPU.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace convbp::cuda {

struct Context {
  CUstream_st* stream;
  int multiprocessors;

  // Memory on the device until the operator returns; later work on the stream may reuse it.
  virtual void* scratch(int64_t bytes) = 0;

 protected:
  ~Context() = default;
};

}  // namespace convbp::cuda
