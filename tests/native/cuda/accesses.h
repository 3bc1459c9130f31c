// Counts what the kernels ask memory for, as a GPU serves it: one request of a warp's 32 lanes
// after the other. What that costs depends on the addresses alone, so it is known without a GPU.
//
// The kernels are compiled with -fsanitize=thread, but in the place of ThreadSanitizer's library
// stands accesses.cpp: it is told each address that a fiber reads or writes. The lanes of a warp
// run one after the other; what they do at the same instruction, in the same iteration of the loops
// around it, is one request.
//
// - Global memory moves in sectors of 32 bytes: a request moves those that its lanes' addresses lie
//   in, and would move at least as many as its bytes fill.
// - Shared memory has 32 banks of 4 bytes: a request takes as many turns as the fullest bank has
//   different words of it, and at least as many as its words fill. Of 8 bytes a lane, half of the
//   lanes are served at a time, of 16 a quarter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace convbp::traffic {

// What one instruction of a kernel has asked of one tensor, or of shared memory.
struct Requests {
  std::string kernel, memory;  // as the launch, and as watch() named them
  bool shared, write;
  int bytes;                       // of a lane
  std::vector<uintptr_t> callers;  // return addresses, the instruction's last
  int64_t count = 0, asked = 0;    // requests; bytes of all lanes
  int64_t cost = 0, least = 0;     // sectors or turns
  int64_t fresh = 0;               // sectors that no request of the same block had moved before
};

// From now on this is global memory that counts.
void watch(const char* name, const void* data, int64_t bytes);

// What has been counted since the last call; nothing is watched any more.
std::vector<Requests> take();

}  // namespace convbp::traffic
