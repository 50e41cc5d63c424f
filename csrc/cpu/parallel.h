// Runs tasks on the threads of the process's pool.
#pragma once

#include <cstdint>

namespace stal {

// Calls body(context, task, thread) for every task in [0, tasks), with thread in [0, threads).
// Each thread begins with a share of consecutive tasks of its own, so that what tasks with the same
// place in two calls have in common stays in its core's caches. Who is done takes the others', so a
// task must not depend on who runs it.
// One thread never touches the pool. A child that was forked after its parent used the pool here
// has none, and runs all tasks on its one thread.
void ParallelFor(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context);

}  // namespace stal
