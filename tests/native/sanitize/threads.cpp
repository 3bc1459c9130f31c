// csrc/cpu/parallel.h on threads of its own: a sanitizer sees every one, and a new thread has no
// scratch memory left of an earlier problem, so that each block has exactly its size.
#include "threads.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace convbp {

namespace sanitize {
int64_t threads = 1;
}

int64_t thread_count() {
  return sanitize::threads;
}

void parallel_tasks(int64_t tasks, TaskRange body, void* context) {
  const int64_t count = std::min(sanitize::threads, tasks);
  std::exception_ptr error;
  std::mutex mutex;
  std::vector<std::thread> workers;
  for (int64_t i = 0; i < count; ++i)
    workers.emplace_back([&, i] {
      try {
        body(context, i * tasks / count, (i + 1) * tasks / count);
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    });
  for (std::thread& worker : workers) worker.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace convbp
