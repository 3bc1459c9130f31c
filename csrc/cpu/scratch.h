// Working memory that stays with its thread.
//
// A fresh page costs more than the kernel spends on the data in it, so each thread keeps the last
// block it used under each name. Blocks above kKeptBytes are freed at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>  // and posix_memalign, which is POSIX
#include <limits>
#include <memory>
#include <new>
#include <utility>

namespace convbp {

enum class ScratchName {
  kWeight,
  kPartial,
  kPatch,
  kDelta,
  kTransformed,
  kProduct,
  kPixels,
  kFilters,
  kCount
};

class Scratch {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;
  static constexpr size_t kAlignment = 64;

  // Takes a block of at least `count` elements of T, uninitialised. Throws std::bad_alloc.
  template <typename T>
  static Scratch take(ScratchName name, int64_t count) {
    if (count < 0 || static_cast<size_t>(count) > std::numeric_limits<size_t>::max() / sizeof(T))
      throw std::bad_alloc();
    return Scratch(name, static_cast<size_t>(count) * sizeof(T));
  }

  template <typename T>
  T* data() const {
    return static_cast<T*>(block_.memory.get());
  }

  ~Scratch() {
    if (block_.bytes <= kKeptBytes) kept(name_) = std::move(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };

  static Block& kept(ScratchName name) {
    thread_local Block blocks[static_cast<int>(ScratchName::kCount)];
    return blocks[static_cast<int>(name)];
  }

  Scratch(ScratchName name, size_t bytes) : name_(name), block_(std::move(kept(name))) {
    kept(name).bytes = 0;
    if (block_.bytes >= bytes && block_.memory) return;
    block_.memory.reset();
    block_.bytes = 0;
    // The block has exactly this size, so that an address sanitizer knows where it ends.
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<size_t>(bytes, 1))) throw std::bad_alloc();
    block_.memory.reset(memory);
    block_.bytes = bytes;
  }

  ScratchName name_;
  Block block_;
};

}  // namespace convbp
