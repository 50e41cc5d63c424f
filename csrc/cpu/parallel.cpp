#include "cpu/parallel.h"

#if !defined(_OPENMP)
#include <atomic>
#include <thread>
#include <vector>
#else
#include <omp.h>
#include <unistd.h>
#endif

namespace stal {

#if defined(_OPENMP)
namespace {

// A child of fork has a copy of its parent's pool without the threads in it, and would wait for
// them for ever.
bool PoolIsLost() {
  static const pid_t owner = getpid();
  return getpid() != owner;
}

}  // namespace
#endif

void ParallelFor(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
  if (threads > tasks) threads = static_cast<int>(tasks);
#if defined(_OPENMP)
  if (threads > 1 && PoolIsLost()) threads = 1;
#endif
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
#if defined(_OPENMP)
  // torch's libgomp has the ordinary soname, so this is torch's own pool.
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) body(context, task, thread);
  }
#else
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(context, task, thread);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace stal
