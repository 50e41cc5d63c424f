// Runs tasks on the threads of the process's pool.
#pragma once

#include <cstdint>

namespace stal {

// Calls body(context, task, thread) for every task in [0, tasks), with thread in [0, threads).
// Tasks are handed out as threads become free, so a task must not depend on who runs it.
// One thread never touches the pool. A child that was forked after its parent used the pool here
// has none, and runs all tasks on its one thread.
void ParallelFor(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context);

}  // namespace stal
