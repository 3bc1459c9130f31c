// A GPU of one multiprocessor, for checking the CUDA kernels without one: what csrc/cuda/device.h
// offers them, in C++. A block's threads are fibers; a launch runs one block after the other and
// returns when all are done. It is strict where a GPU is lenient:
//
// - A warp runs as far as it can, to the next barrier, before another warp runs at all, the first
//   warp first or (CONVBP_SHIM_ORDER=reversed) the last one: a barrier that is missing shows.
// - Asynchronous copies arrive only when they are waited for; a kernel that waits for too few of
//   them reads the poison that shared memory is filled with.
// - Shared memory is as large as the launch says, on the heap, where AddressSanitizer watches it;
//   so is the scratch memory. Misaligned addresses, lanes that do not meet at a collective
//   instruction and copies nobody waits for are errors.
//
// Compiled with -fsanitize=thread, every access to memory calls accesses.cpp, which counts.
#pragma once

#include <ucontext.h>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/types.h"
#include "cuda/context.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__ inline
#define __host__
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace convbp::cuda {
namespace shim {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;

[[noreturn]] inline void fail(const std::string& what) {
  throw std::logic_error("the kernel is wrong: " + what);
}

inline bool reversed() {
  static const char* const order = std::getenv("CONVBP_SHIM_ORDER");
  return order && std::string(order) == "reversed";
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kReady;
  dim3 index;
  std::vector<Copy> begun;                // since the last commit
  std::vector<std::vector<Copy>> groups;  // committed, not waited for
  // What it waits for in its warp: the instruction, and the lane's operands.
  const char* instruction = nullptr;
  void* operands = nullptr;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::function<void()> kernel;
  std::exception_ptr error;
  std::unique_ptr<char[]> shared;
  int64_t shared_bytes = 0;
};

inline Block* block = nullptr;
inline Fiber* current = nullptr;
inline dim3 block_index, block_size, grid_size;
inline const char* kernel_name = "";
inline int64_t blocks_started = 0;  // of all launches

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read16(void*);
extern "C" void __tsan_write16(void*);
#endif

// What an instruction reads or writes that is a function here.
inline void reads_16([[maybe_unused]] const void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_read16(const_cast<void*>(address));
#endif
}

inline void writes_16([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_write16(address);
#endif
}

inline void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack,
                         [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}

inline void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack,
                          [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, bytes);
#endif
}

// From the running fiber to the scheduler, until it is resumed. A call of its own: what the
// scheduler does meanwhile is not in the kernel's loop.
[[gnu::noinline]] inline void yield(State state) {
  Fiber& self = *current;
  self.state = state;
  start_switch(state == State::kDone ? nullptr : &self.fake_stack, block->scheduler_stack,
               block->scheduler_stack_bytes);
  swapcontext(&self.context, &block->scheduler);
  finish_switch(self.fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
}

inline void fiber_main() {
  finish_switch(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes);
  try {
    block->kernel();
    if (!current->begun.empty() || !current->groups.empty())
      fail("a thread ended with copies that it has not waited for");
  } catch (...) {
    if (!block->error) block->error = std::current_exception();
  }
  yield(State::kDone);
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  fiber.state = State::kReady;
  start_switch(&block->scheduler_fake_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&block->scheduler, &fiber.context);
  finish_switch(block->scheduler_fake_stack, nullptr, nullptr);
  current = nullptr;
  if (block->error) std::rethrow_exception(block->error);
}

// All lanes of a warp have arrived at one instruction: body(operands of each lane).
using Collective = void (*)(void* const* operands);
inline Collective collective = nullptr;

inline void meet_in_warp(const char* instruction, Collective body, void* operands) {
  current->instruction = instruction;
  current->operands = operands;
  collective = body;
  yield(State::kInWarp);
}

// Runs a warp until each of its threads waits at the barrier or is done.
inline void run_warp(Fiber* lanes) {
  for (;;) {
    for (int lane = 0; lane < kLanes; ++lane)
      if (lanes[lane].state == State::kReady) resume(lanes[lane]);
    int waiting = 0;
    for (int lane = 0; lane < kLanes; ++lane) waiting += lanes[lane].state == State::kInWarp;
    if (!waiting) return;
    void* operands[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      if (waiting != kLanes || lanes[lane].instruction != lanes[0].instruction)
        fail(std::string("not all lanes of a warp take part in ") + lanes[lane].instruction);
      operands[lane] = lanes[lane].operands;
    }
    collective(operands);
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane].state = State::kReady;
  }
}

inline void run_block() {
  const int warps = static_cast<int>(block->fibers.size()) / kLanes;
  for (;;) {
    for (int i = 0; i < warps; ++i)
      run_warp(&block->fibers[(reversed() ? warps - 1 - i : i) * kLanes]);
    bool alive = false;
    for (Fiber& fiber : block->fibers) {
      if (fiber.state == State::kAtBarrier) fiber.state = State::kReady;
      alive = alive || fiber.state != State::kDone;
    }
    if (!alive) return;
  }
}

inline void start(Fiber& fiber, dim3 index) {
  if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
  fiber.state = State::kReady;
  fiber.index = index;
  fiber.begun.clear();
  fiber.groups.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

inline void check_alignment(const void* address, int bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail(std::string(what) + " at an address that is no multiple of " + std::to_string(bytes));
}

inline void copy_async(void* shared, const void* global, bool valid, int bytes) {
  check_alignment(shared, bytes, "an asynchronous copy to shared memory");
  check_alignment(global, bytes, "an asynchronous copy");
  if (valid) reads_16(global);
  writes_16(shared);
  current->begun.push_back({shared, global, bytes, valid});
}

}  // namespace shim

#define threadIdx (::convbp::cuda::shim::current->index)
#define blockIdx (::convbp::cuda::shim::block_index)
#define blockDim (::convbp::cuda::shim::block_size)
#define gridDim (::convbp::cuda::shim::grid_size)

template <typename T>
T* shared_memory() {
  if (!shim::block->shared_bytes) shim::fail("shared memory, of which the launch asked for none");
  return reinterpret_cast<T*>(shim::block->shared.get());
}

inline void barrier() {
  shim::yield(shim::State::kAtBarrier);
}

template <typename T>
T shuffle_xor(T value, int mask) {
  struct Operands {
    T value;
    int mask;
    T result;
  } mine{value, mask, value};
  shim::meet_in_warp(
      "shuffle_xor",
      [](void* const* all) {
        for (int lane = 0; lane < shim::kLanes; ++lane) {
          auto* const to = static_cast<Operands*>(all[lane]);
          to->result = static_cast<Operands*>(all[lane ^ to->mask])->value;
        }
      },
      &mine);
  return mine.result;
}

inline void copy_16_async(void* shared, const void* global, bool valid) {
  shim::copy_async(shared, global, valid, 16);
}

inline void commit_copies() {
  shim::current->groups.push_back(std::move(shim::current->begun));
  shim::current->begun.clear();
}

template <int pending>
void wait_for_copies() {
  auto& groups = shim::current->groups;
  while (groups.size() > pending) {
    for (const shim::Copy& copy : groups.front())
      if (copy.valid)
        std::memcpy(copy.to, copy.from, copy.bytes);
      else
        std::memset(copy.to, 0, copy.bytes);
    groups.erase(groups.begin());
  }
}

namespace shim {

template <bool transposed>
void load_matrices(uint32_t (&out)[4], const void* row) {
  check_alignment(row, 16, "a matrix row");
  reads_16(row);
  struct Operands {
    uint32_t* out;
    const uint16_t* row;
  } mine{out, static_cast<const uint16_t*>(row)};
  meet_in_warp(
      transposed ? "load_matrices_transposed" : "load_matrices",
      [](void* const* all) {
        const auto element = [all](int matrix, int i, int j) -> uint32_t {
          return static_cast<Operands*>(all[8 * matrix + i])->row[j];
        };
        for (int lane = 0; lane < kLanes; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix) {
            const int i = lane / 4, j = 2 * (lane % 4);
            static_cast<Operands*>(all[lane])->out[matrix] =
                transposed ? element(matrix, j, i) | element(matrix, j + 1, i) << 16
                           : element(matrix, i, j) | element(matrix, i, j + 1) << 16;
          }
      },
      &mine);
}

struct Fragments {
  float* sum;
  const uint32_t *a, *b;
};

// sum (16x8) += a (16 x depth) * b (depth x 8), whose elements a(lane's registers, row, k) and
// b(..., k, column) finds. Lane 4 g + t holds of sum the elements (g, 2t), (g, 2t + 1) and the same
// of row g + 8.
template <int depth, typename A, typename B>
void multiply(void* const* all, const A& a, const B& b) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = 0;
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a(row, k)) * b(k, column);
      const auto& f = *static_cast<Fragments*>(all[row % 8 * 4 + column / 2]);
      float& result = f.sum[row / 8 * 2 + column % 2];
      result = static_cast<float>(result + sum);
    }
}

inline const Fragments& lane(void* const* all, int group, int thread) {
  return *static_cast<Fragments*>(all[4 * group + thread]);
}

}  // namespace shim

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  shim::load_matrices<false>(out, row);
}

inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  shim::load_matrices<true>(out, row);
}

enum class Half16 { kBFloat16, kFloat16 };

template <Half16 type>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  shim::Fragments mine{sum, a, b};
  shim::meet_in_warp(
      type == Half16::kBFloat16 ? "multiply_add bfloat16" : "multiply_add float16",
      [](void* const* all) {
        const auto number = [](uint32_t word, int half) {
          const auto bits = static_cast<uint16_t>(word >> 16 * half);
          if constexpr (type == Half16::kBFloat16)
            return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
          else
            return static_cast<float>(Half(bits, Half::from_bits()));
        };
        shim::multiply<16>(
            all,
            [&](int row, int k) {
              const int word = row / 8 + k / 8 * 2;
              return number(shim::lane(all, row % 8, k % 8 / 2).a[word], k % 2);
            },
            [&](int k, int column) {
              return number(shim::lane(all, column, k % 8 / 2).b[k / 8], k % 2);
            });
      },
      &mine);
}

inline uint32_t to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;  // to the nearest, halves away from zero
}

inline void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  shim::Fragments mine{sum, a, b};
  shim::meet_in_warp(
      "multiply_add TF32",
      [](void* const* all) {
        // The tensor core does not look at the low bits.
        const auto number = [](uint32_t word) { return std::bit_cast<float>(word & ~0x1fffu); };
        shim::multiply<8>(
            all,
            [&](int row, int k) {
              return number(shim::lane(all, row % 8, k % 4).a[row / 8 + k / 4 * 2]);
            },
            [&](int k, int column) { return number(shim::lane(all, column, k % 4).b[k / 4]); });
      },
      &mine);
}

template <typename... Parameters, typename... Arguments>
void launch(const Context&, const char* name, void (*kernel)(Parameters...), dim3 blocks,
            dim3 threads, int64_t shared_bytes, const Arguments&... arguments) {
  const unsigned count = threads.x * threads.y * threads.z;
  // The limits of compute capability 8.0 and 9.0.
  if (!count || count > 1024 || count % shim::kLanes)
    throw std::logic_error(std::string(name) + ": " + std::to_string(count) + " threads a block");
  if (!blocks.x || !blocks.y || !blocks.z || blocks.x > 0x7fffffff || blocks.y > 65535 ||
      blocks.z > 65535 || shared_bytes > (99 << 10))
    throw std::logic_error(std::string(name) + ": a grid or shared memory that no GPU has");
  static std::vector<shim::Fiber> pool;  // stacks are kept
  shim::Block block;
  block.fibers.swap(pool);
  block.fibers.resize(count);
  block.shared_bytes = shared_bytes;
  block.kernel = [&] { kernel(static_cast<Parameters>(arguments)...); };
  shim::block = &block;
  shim::block_size = threads;
  shim::grid_size = blocks;
  shim::kernel_name = name;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        shim::block_index = dim3(x, y, z);
        ++shim::blocks_started;
        block.shared.reset(new char[shared_bytes]);
        std::memset(block.shared.get(), 0xff, shared_bytes);  // NaN
        for (unsigned i = 0; i < count; ++i)
          shim::start(block.fibers[i],
                      dim3(i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y));
        try {
          shim::run_block();
        } catch (const std::exception& error) {
          throw std::logic_error(std::string(name) + ": " + error.what());
        }
      }
  pool.swap(block.fibers);
  shim::block = nullptr;
}

}  // namespace convbp::cuda
