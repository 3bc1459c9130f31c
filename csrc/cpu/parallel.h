// Threads for the kernels, without torch: the boundary supplies the implementation.
#pragma once

#include <cstdint>

namespace convbp {

using TaskRange = void (*)(void* context, int64_t begin, int64_t end);

// Runs body over [0, tasks) cut into ranges, one range a thread. The thread of a task is not fixed;
// no result may depend on the thread.
void parallel_tasks(int64_t tasks, TaskRange body, void* context);
int64_t thread_count();

template <typename Body>
void parallel_for(int64_t tasks, const Body& body) {
  parallel_tasks(
      tasks,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace convbp
