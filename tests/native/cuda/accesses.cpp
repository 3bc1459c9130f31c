#include "accesses.h"

#include <algorithm>
#include <deque>
#include <unordered_map>

#include "shim.h"

namespace convbp::traffic {
namespace {

using cuda::shim::kLanes;

constexpr uintptr_t kSector = 32, kBank = 4, kBanks = 32;

uint64_t mixed(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

// --- where a lane is ------------------------------------------------------------------------

// A loop is entered by its first jump back. It lasts as long as blocks of code lie between where
// that jump led and the furthest place from which one was ever made.
struct Loop {
  uintptr_t head;
  uintptr_t* latch;
  int iteration;
  uint64_t time;  // this and the loops around it
};

struct Frame {
  uintptr_t caller;
  uint64_t place;      // this and the frames around it
  size_t outer_loops;  // the callers'
  uintptr_t block = 0;
};

struct Lane {
  int64_t started = -1;  // the block's number
  std::vector<Frame> frames;
  std::vector<Loop> loops;

  void start(int64_t number) {
    started = number;
    loops.clear();
    frames.assign(1, {});
  }
  uint64_t time() const { return loops.empty() ? 0 : loops.back().time; }
  void enter(uintptr_t caller) {
    frames.push_back({caller, mixed(frames.back().place, caller), loops.size()});
  }
  void leave() {
    if (frames.size() == 1) return;
    loops.resize(frames.back().outer_loops);
    frames.pop_back();
  }
  // A block of code begins.
  void reach(uintptr_t code) {
    static std::unordered_map<uintptr_t, uintptr_t> latches;
    Frame& frame = frames.back();
    while (loops.size() > frame.outer_loops &&
           (code < loops.back().head || code > *loops.back().latch))
      loops.pop_back();
    if (code <= frame.block) {
      if (loops.size() == frame.outer_loops || loops.back().head != code)
        loops.push_back({code, &latches[code], 0, 0});
      Loop& loop = loops.back();
      *loop.latch = std::max(*loop.latch, frame.block);
      const uint64_t around = loops.size() > 1 ? loops[loops.size() - 2].time : 0;
      loop.time = mixed(mixed(around, code), ++loop.iteration);
    }
    frame.block = code;
  }
};

Lane lanes[1024];

// The running fiber's, or null in the scheduler.
Lane* running() {
  namespace shim = cuda::shim;
  if (!shim::current) return nullptr;
  Lane& lane = lanes[shim::current - shim::block->fibers.data()];
  if (lane.started != shim::blocks_started) lane.start(shim::blocks_started);
  return &lane;
}

// --- what is counted ------------------------------------------------------------------------

struct Memory {
  const char* name;
  uintptr_t begin, bytes;
  std::vector<int64_t> moved[2];  // the last block that has read, written a sector
};

std::deque<Memory> watched;
std::unordered_map<uint64_t, Requests> counted;

struct Request {
  Memory* memory;  // null: shared
  Requests* site;
  uint32_t lanes = 0;
  uintptr_t address[kLanes];
};

// The running warp's.
std::unordered_map<uint64_t, Request> requests;
int64_t block_of_all = -1;
int warp_of_block = -1;

void count_global(const Request& request) {
  Requests& site = *request.site;
  const auto bytes = static_cast<uintptr_t>(site.bytes);
  std::vector<uintptr_t> first;  // of each lane's bytes
  for (int lane = 0; lane < kLanes; ++lane)
    if (request.lanes >> lane & 1) first.push_back(request.address[lane]);
  site.asked += static_cast<int64_t>(first.size() * bytes);
  std::sort(first.begin(), first.end());
  uintptr_t end = 0, next_sector = 0, distinct = 0;
  for (const uintptr_t begin : first) {
    distinct += begin + bytes - std::min(std::max(begin, end), begin + bytes);
    end = begin + bytes;
    for (uintptr_t s = std::max(begin / kSector, next_sector); s * kSector < end; ++s) {
      ++site.cost;
      next_sector = s + 1;
      int64_t& moved = request.memory->moved[site.write][s];
      site.fresh += moved != block_of_all;
      moved = block_of_all;
    }
  }
  site.least += static_cast<int64_t>((distinct + kSector - 1) / kSector);
}

void count_shared(const Request& request) {
  Requests& site = *request.site;
  const int at_once = site.bytes <= 4 ? kLanes : kLanes * 4 / site.bytes;
  for (int group = 0; group < kLanes; group += at_once) {
    std::vector<uintptr_t> words;
    for (int lane = group; lane < group + at_once; ++lane)
      if (request.lanes >> lane & 1) {
        site.asked += site.bytes;
        for (int byte = 0; byte < site.bytes; byte += kBank)
          words.push_back((request.address[lane] + byte) / kBank);
      }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int64_t in_bank[kBanks] = {};
    for (const uintptr_t word : words) ++in_bank[word % kBanks];
    site.cost += *std::max_element(in_bank, in_bank + kBanks);
    site.least += static_cast<int64_t>((words.size() + kBanks - 1) / kBanks);
  }
}

void finish_warp() {
  for (const auto& [key, request] : requests) {
    ++request.site->count;
    request.memory ? count_global(request) : count_shared(request);
  }
  requests.clear();
}

Requests* site_of(const Lane& lane, uint64_t place, uintptr_t code, const Memory* memory, int bytes,
                  bool write) {
  namespace shim = cuda::shim;
  const uint64_t key = mixed(mixed(place, reinterpret_cast<uintptr_t>(memory)), write);
  Requests& site = counted[mixed(key, reinterpret_cast<uintptr_t>(shim::kernel_name))];
  if (site.callers.empty()) {
    site.kernel = shim::kernel_name;
    site.memory = memory ? memory->name : "shared";
    site.shared = !memory, site.write = write, site.bytes = bytes;
    for (const Frame& frame : lane.frames) site.callers.push_back(frame.caller);
    site.callers.push_back(code);
  }
  return &site;
}

void access(const void* data, int bytes, bool write, uintptr_t code) {
  namespace shim = cuda::shim;
  if (!shim::current || watched.empty()) return;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const auto shared = reinterpret_cast<uintptr_t>(shim::block->shared.get());
  Memory* memory = nullptr;
  if (address - shared >= static_cast<uintptr_t>(shim::block->shared_bytes)) {
    const auto holds = [=](const Memory& m) { return address - m.begin < m.bytes; };
    const auto found = std::find_if(watched.begin(), watched.end(), holds);
    if (found == watched.end()) return;
    memory = &*found;
  }
  // A warp runs to the next barrier before another one does.
  const auto thread = static_cast<int>(shim::current - shim::block->fibers.data());
  if (shim::blocks_started != block_of_all || thread / kLanes != warp_of_block) finish_warp();
  block_of_all = shim::blocks_started, warp_of_block = thread / kLanes;
  const Lane& lane = *running();
  const uint64_t place = mixed(lane.frames.back().place, code);
  const uint32_t mine = uint32_t{1} << thread % kLanes;
  // The same instruction again, though not in a loop that was noticed, is another request.
  for (uint64_t key = mixed(place, lane.time());; key = mixed(key, 1)) {
    Request& request = requests[key];
    if (request.lanes & mine) continue;
    if (!request.lanes) {
      request.memory = memory;
      request.site = site_of(lane, place, code, memory, bytes, write);
    }
    request.lanes |= mine;
    // Where memory begins is a sector's and a bank's beginning.
    request.address[thread % kLanes] = address - (memory ? memory->begin : shared);
    return;
  }
}

}  // namespace

void watch(const char* name, const void* data, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const std::vector<int64_t> never(bytes / kSector + 1, -1);
  watched.push_back({name, begin, static_cast<uintptr_t>(bytes), {never, never}});
}

std::vector<Requests> take() {
  finish_warp();
  std::vector<Requests> all;
  for (auto& [key, site] : counted) all.push_back(std::move(site));
  counted.clear();
  watched.clear();
  return all;
}

}  // namespace convbp::traffic

// --- what the compiler calls ----------------------------------------------------------------

using convbp::traffic::access;
using convbp::traffic::running;

#define CONVBP_CODE reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define CONVBP_ACCESS(name, bytes, write)       \
  void __tsan_##name(void* address) {           \
    access(address, bytes, write, CONVBP_CODE); \
  }
#define CONVBP_ACCESSES(bytes)                      \
  CONVBP_ACCESS(read##bytes, bytes, false)          \
  CONVBP_ACCESS(write##bytes, bytes, true)          \
  CONVBP_ACCESS(volatile_read##bytes, bytes, false) \
  CONVBP_ACCESS(volatile_write##bytes, bytes, true)

extern "C" {
CONVBP_ACCESSES(1)
CONVBP_ACCESSES(2)
CONVBP_ACCESSES(4)
CONVBP_ACCESSES(8)
CONVBP_ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) {
  access(address, static_cast<int>(bytes), false, CONVBP_CODE);
}
void __tsan_write_range(void* address, size_t bytes) {
  access(address, static_cast<int>(bytes), true, CONVBP_CODE);
}
void __sanitizer_cov_trace_pc() {
  if (auto* const lane = running()) lane->reach(CONVBP_CODE);
}
void __tsan_func_entry(void* caller) {
  if (auto* const lane = running()) lane->enter(reinterpret_cast<uintptr_t>(caller));
}
void __tsan_func_exit() {
  if (auto* const lane = running()) lane->leave();
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
char __tsan_atomic8_load(const volatile char* value, int) {
  return *value;
}
}
