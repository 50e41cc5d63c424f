#include "cpu/parallel.h"

#include <atomic>
#include <vector>

#if !defined(_OPENMP)
#include <thread>
#else
#include <omp.h>
#include <unistd.h>
#endif

namespace stal {

namespace {

#if defined(_OPENMP)
// A child of fork has a copy of its parent's pool without the threads in it, and would wait for
// them for ever.
bool PoolIsLost() {
  static const pid_t owner = getpid();
  return getpid() != owner;
}
#endif

// The tasks of one call, cut into as many shares as there are threads.
class Shares {
 public:
  Shares(int threads, int64_t tasks) : shares_(threads) {
    const int64_t size = tasks / threads, rest = tasks % threads;
    int64_t first = 0;
    for (int thread = 0; thread < threads; ++thread) {
      shares_[thread].next = first;
      shares_[thread].end = first += size + (thread < rest);
    }
  }

  // Runs the thread's own share, then what is left of the others'.
  void Run(int thread, void (*body)(void*, int64_t, int), void* context) {
    for (size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(thread + i) % shares_.size()];
      for (int64_t task; (task = share.next.fetch_add(1)) < share.end;) {
        body(context, task, thread);
      }
    }
  }

 private:
  struct alignas(64) Share {  // a line of the cache each
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares_;
};

}  // namespace

void ParallelFor(int threads, int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
  if (threads > tasks) threads = static_cast<int>(tasks);
#if defined(_OPENMP)
  if (threads > 1 && PoolIsLost()) threads = 1;
#endif
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  Shares shares(threads, tasks);
#if defined(_OPENMP)
  // torch's libgomp has the ordinary soname, so this is torch's own pool, which may give fewer.
#pragma omp parallel num_threads(threads)
  shares.Run(omp_get_thread_num(), body, context);
#else
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back([&shares, thread, body, context] { shares.Run(thread, body, context); });
  }
  shares.Run(0, body, context);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace stal
