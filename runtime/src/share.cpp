#include "share.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace kaoken {
namespace {

// Milliseconds. It is longer than the gaps between the short calls of a caller; longer calls overlap anyway.
constexpr uint64_t kWindow = 16;

constexpr uint64_t kFieldMask = 0xffff;

Calls own_calls;
std::atomic<Calls *> shared_calls{&own_calls};

struct Now {
  uint64_t process, calls, threads;
  uint64_t word() const { return process << 32 | calls << 16 | threads; }
};

// A process that was forked while others computed starts anew.
Now decode(uint64_t word) {
  const uint64_t process = static_cast<uint32_t>(getpid());
  if (word >> 32 != process) return {process, 0, 0};
  return {process, word >> 16 & kFieldMask, word & kFieldMask};
}

// The most calls at a time in this window and the one before, counting `calls` now.
uint64_t most_calls(std::atomic<uint64_t> &recent, uint64_t calls) {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  const uint64_t milliseconds =
      static_cast<uint64_t>(time.tv_sec) * 1000 + static_cast<uint64_t>(time.tv_nsec) / 1000000;
  const uint64_t window = static_cast<uint32_t>(milliseconds / kWindow);
  for (uint64_t word = recent.load(std::memory_order_relaxed);;) {
    const uint64_t passed = window > word >> 32 ? window - (word >> 32) : 0;  // another thread's clock may be ahead
    const uint64_t most = word >> 16 & kFieldMask;
    const uint64_t before = passed == 0 ? word & kFieldMask : passed == 1 ? most : 0;
    const uint64_t here = std::max(calls, passed == 0 ? most : 0);
    const uint64_t next = std::max(window, word >> 32) << 32 | here << 16 | before;
    if (word == next || recent.compare_exchange_weak(word, next, std::memory_order_relaxed))
      return std::max(here, before);
  }
}

}  // namespace

Calls &calls() { return *shared_calls.load(std::memory_order_acquire); }

void share_cores(Calls *calls) { shared_calls.store(calls, std::memory_order_release); }

ShareOfCores::ShareOfCores(int wanted, int cores) : calls_(kaoken::calls()), threads_(1) {
  const int all = std::max(wanted, cores);  // a lone call may have more threads than there are cores
  for (uint64_t word = calls_.now.load(std::memory_order_relaxed);;) {
    Now now = decode(word);
    now.calls = std::min(now.calls + 1, kFieldMask);
    const int share = all / static_cast<int>(most_calls(calls_.recent, now.calls));
    const int free = all - static_cast<int>(now.threads);
    threads_ = std::max(1, std::min({wanted, share, free}));
    now.threads += static_cast<uint64_t>(threads_);
    if (calls_.now.compare_exchange_weak(word, now.word(), std::memory_order_relaxed)) return;
  }
}

ShareOfCores::~ShareOfCores() {
  for (uint64_t word = calls_.now.load(std::memory_order_relaxed);;) {
    Now now = decode(word);
    now.calls -= now.calls > 0;
    now.threads -= std::min(now.threads, static_cast<uint64_t>(threads_));
    if (calls_.now.compare_exchange_weak(word, now.word(), std::memory_order_relaxed)) return;
  }
}

}  // namespace kaoken
