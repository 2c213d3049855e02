// How the calls of a process share its cores: each takes what is free, and at least its own thread.
#pragma once

#include <stdint.h>

#include <atomic>

namespace kaoken {

// What is known of the calls at work. Plain words of memory: several model libraries of one process may use the same
// one (kaoken_model_api.share_cores), and all of it zero is the state in which nothing has run.
struct Calls {
  std::atomic<uint64_t> now;     // process id: 32 bits, calls at work: 16, their threads: 16
  std::atomic<uint64_t> recent;  // milliseconds of the window: 32 bits, the most calls at a time in it: 16, before: 16
};

// The calls of this process: its own until share_cores() names others.
Calls &calls();
void share_cores(Calls *calls);

// The threads of one call, for as long as it runs. There are at most `wanted`, at most as many as others leave free,
// and at most the call's share of `cores` among those that have called lately. The first of them is the caller's own.
class ShareOfCores {
 public:
  ShareOfCores(int wanted, int cores);
  ~ShareOfCores();
  ShareOfCores(const ShareOfCores &) = delete;
  ShareOfCores &operator=(const ShareOfCores &) = delete;
  int threads() const { return threads_; }

 private:
  Calls &calls_;
  int threads_;
};

}  // namespace kaoken
