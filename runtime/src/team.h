// The threads of a call: workers that run a function side by side and meet at barriers.
#pragma once

#if !KAOKEN_SINGLE_THREADED
#include <atomic>
#include <condition_variable>
#include <mutex>
#endif
#include <vector>

#include "float_mode.h"
#include "kaoken/pass.h"

namespace kaoken {

#if KAOKEN_SINGLE_THREADED

// A team of one, for programs without threads (single.cpp).
class Team {
 public:
  explicit Team(int) {}
  int size() const { return 1; }
  void run(void (*task)(void *context, const Worker &worker), void *context) {
    const FloatMode mode;
    task(context, Worker{0, 1, this});
  }
};

#else

// A counter that threads wait on. Waiting spins, then yields, then sleeps, so that it is fast when every thread has a
// processor and still moves on when they share one.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void raise();
  void wait_past(uint32_t seen, int spins);

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

struct Helper;  // a thread that waits for work

class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  // The most workers of a run.
  int size() const { return size_; }

  // Runs task(context, worker) on some workers, this thread being worker 0, and returns when all are done. Every worker
  // runs with round-to-nearest and denormals flushed to zero; the caller's own mode is restored. There are `size` of
  // them unless other calls of the process compute (share.h), or other processes do (crowd.h). Helping threads are
  // hired when they are first needed and wait for the next run of any team whose caller may use the same processors.
  void run(void (*task)(void *context, const Worker &worker), void *context);

  void wait_at_barrier();

 private:
  void run_together(void (*task)(void *context, const Worker &worker), void *context);

  const int size_;
  const int cores_;
  const std::vector<int> processors_;
  const bool fits_;  // whether each worker has a core; a core that others take then makes all wait
  const int spins_;  // how long a wait spins: not at all where threads share processors
  int count_ = 1;    // workers of this run
  Signal barrier_;   // raised by the last to arrive
  std::atomic<int> arrived_{0};
  std::vector<Helper *> helpers_;  // of this run
};

#endif

}  // namespace kaoken
