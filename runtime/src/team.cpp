#include "team.h"

#include <sys/types.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "crowd.h"
#include "float_mode.h"
#include "machine.h"
#include "share.h"

namespace kaoken {
namespace {

// Pauses before giving up the processor, where each thread has one: some 20 to 120 microseconds.
constexpr int kSpins = 2000;
constexpr int kYields = 200;  // turns given to other threads before sleeping

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

void Signal::raise() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
}

void Signal::wait_past(uint32_t seen, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value() != seen) return;
    pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (value() != seen) return;
    std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

// It touches nothing of a team once it has raised `finished`.
struct Helper {
  Signal work;                                     // raised with each task, and once to stop
  Signal finished;                                 // raised after each task
  void (*task)(void *, const Worker &) = nullptr;  // null: stop
  void *context = nullptr;
  Worker worker = {};
  int spins = 0;
  uint32_t before = 0;  // `finished` as the task began
  std::vector<int> processors;
  std::thread thread;

  void start() {
    thread = std::thread([this] {
      use_processors(processors);  // the team that hires it may have other ones than the last had
      const FloatMode mode;
      int wait = 0;
      for (uint32_t seen = 0;; ++seen) {
        work.wait_past(seen, wait);
        if (!task) return;
        wait = spins;
        task(context, worker);
        finished.raise();
      }
    });
  }

  void stop() {
    task = nullptr;
    work.raise();
    thread.join();
  }
};

namespace {

// The helpers of a process that have nothing to do.
class Pool {
 public:
  const pid_t process = getpid();

  // Moves up to `count` helpers on these processors to the end of `helpers`, hiring those that are missing. Where the
  // system refuses a thread there are fewer: a run keeps its bits.
  void take(int count, const std::vector<int> &processors, std::vector<Helper *> &helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = idle_.size(); i-- > 0 && count > 0;) {
        if (idle_[i]->processors != processors) continue;
        helpers.push_back(idle_[i]);
        idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(i));
        --count;
      }
    }
    try {
      for (; count > 0; --count) {
        auto helper = std::make_unique<Helper>();
        helper->processors = processors;
        helper->start();
        helpers.push_back(helper.release());
      }
    } catch (const std::exception &) {
    }
  }

  // Takes them back, the first at the end, so that the next run finds each with the worker's number that it had.
  void give(std::vector<Helper *> &helpers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), helpers.rbegin(), helpers.rend());
    helpers.clear();
  }

  // Dismisses all but `count`.
  void trim(size_t count) {
    for (;;) {
      std::unique_ptr<Helper> helper;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.size() <= count) return;
        helper.reset(idle_.front());
        idle_.erase(idle_.begin());
      }
      helper->stop();
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Helper *> idle_;
};

// This process's pool. A child of fork() has none of its parent's threads, and makes a pool of its own; the parent's is
// left as it is, since it may be locked.
class ProcessPool {
 public:
  Pool &get() {
    Pool *found = pool_.load(std::memory_order_acquire);
    if (found && found->process == getpid()) return *found;
    auto made = std::make_unique<Pool>();
    if (pool_.compare_exchange_strong(found, made.get(), std::memory_order_acq_rel)) return *made.release();
    return *found;
  }
  // The pool itself stays for threads that still compute.
  ~ProcessPool() {
    Pool *found = pool_.load(std::memory_order_acquire);
    if (found && found->process == getpid()) found->trim(0);
  }

 private:
  std::atomic<Pool *> pool_{nullptr};
} process_pool;

}  // namespace

Team::Team(int size)
    : size_(size),
      cores_(usable_cores()),
      processors_(allowed_processors()),
      fits_(size > 1 && size <= cores_),
      spins_(static_cast<size_t>(size) <= processors_.size() ? kSpins : 0) {
  helpers_.reserve(static_cast<size_t>(size));
}

Team::~Team() {
  if (size_ > cores_) process_pool.get().trim(static_cast<size_t>(cores_ - 1));
}

void Team::run(void (*task)(void *, const Worker &), void *context) {
  const FloatMode mode;
  const ShareOfCores share(fits_ && is_crowded() ? 1 : size_, cores_);
  count_ = share.threads();
  if (count_ == 1) return task(context, Worker{0, 1, this});
  if (!fits_) return run_together(task, context);
  const CrowdWatch watch;
  run_together(task, context);
}

void Team::run_together(void (*task)(void *, const Worker &), void *context) {
  Pool &pool = process_pool.get();
  pool.take(count_ - 1, processors_, helpers_);
  count_ = 1 + static_cast<int>(helpers_.size());
  int index = 0;
  for (Helper *helper : helpers_) {
    helper->task = task;
    helper->context = context;
    helper->worker = {++index, count_, this};
    helper->spins = spins_;
    helper->before = helper->finished.value();
    helper->work.raise();
  }
  task(context, Worker{0, count_, this});
  for (Helper *helper : helpers_) helper->finished.wait_past(helper->before, spins_);
  pool.give(helpers_);
}

void Team::wait_at_barrier() {
  const uint32_t seen = barrier_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < count_) return barrier_.wait_past(seen, spins_);
  arrived_.store(0, std::memory_order_relaxed);
  barrier_.raise();
}

void barrier(const Worker &worker) {
  if (worker.count > 1) worker.team->wait_at_barrier();
}

}  // namespace kaoken
