#include "team.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "float_mode.h"

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

// A counter that threads wait on. Waiting spins, then yields, then sleeps, so that it is fast when every thread has a
// processor and still moves on when they share one.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  void wait_past(uint32_t seen, int spins) {
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

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

struct Team::Crew {
  Signal work;     // raised with each run, and once to stop
  Signal barrier;  // raised by the last to arrive
  std::atomic<int> arrived{0};
  void (*task)(void *, const Worker &) = nullptr;  // null: stop
  void *context = nullptr;
  std::vector<std::thread> threads;

  void stop() {
    task = nullptr;
    work.raise();
    for (std::thread &thread : threads) thread.join();
  }
};

Team::Team(int size, std::vector<int> processors)
    : size_(size),
      processors_(std::move(processors)),
      spins_(static_cast<size_t>(size) <= processors_.size() ? kSpins : 0) {}

Team::~Team() {
  if (!crew_) return;
  if (process_ == getpid()) {
    crew_->stop();
  } else {
    (void)crew_.release();  // its threads and locks belong to the parent; nothing here may touch them
  }
}

void Team::hire() {
  if (crew_ && process_ != getpid()) (void)crew_.release();
  if (crew_) return;
  crew_ = std::make_unique<Crew>();
  process_ = getpid();
  Crew *crew = crew_.get();
  try {
    for (int index = 1; index < size_; ++index) {
      crew->threads.emplace_back([this, crew, index] {
        const FloatMode mode;
        for (uint32_t seen = 0;; ++seen) {
          crew->work.wait_past(seen, spins_);
          if (!crew->task) return;
          crew->task(crew->context, Worker{index, size_, this});
          wait_at_barrier();
        }
      });
    }
  } catch (...) {  // the system refused a thread: send home those that came
    crew->stop();
    crew_.reset();
    throw;
  }
}

void Team::run(void (*task)(void *, const Worker &), void *context) {
  const FloatMode mode;
  if (size_ == 1) return task(context, Worker{0, 1, this});
  hire();
  crew_->task = task;
  crew_->context = context;
  crew_->work.raise();
  task(context, Worker{0, size_, this});
  wait_at_barrier();
}

void Team::wait_at_barrier() {
  Crew &crew = *crew_;
  const uint32_t seen = crew.barrier.value();
  if (crew.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) return crew.barrier.wait_past(seen, spins_);
  crew.arrived.store(0, std::memory_order_relaxed);
  crew.barrier.raise();
}

namespace {

struct SpareTeam {
  std::atomic<Team *> team{nullptr};
  ~SpareTeam() { delete team.exchange(nullptr); }
} spare_team;

}  // namespace

void GiveBack::operator()(Team *team) const { delete spare_team.team.exchange(team); }

BorrowedTeam borrow_team(int size) {
  std::vector<int> processors = allowed_processors();
  BorrowedTeam team(spare_team.team.exchange(nullptr));
  if (team && team->size() == size && team->processors() == processors) return team;
  return BorrowedTeam(new Team(size, std::move(processors)));
}

void barrier(const Worker &worker) {
  if (worker.count > 1) worker.team->wait_at_barrier();
}

}  // namespace kaoken
