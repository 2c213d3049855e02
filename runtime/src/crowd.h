// Whether other processes compute on this one's cores. A team waits at every barrier for its slowest worker; where
// others take a core away now and then, that is most of the time, and one thread alone is up to three times as fast.
#pragma once

#include <stdint.h>

#include <atomic>

namespace kaoken {

class Crowd {
 public:
  // Whether a call should compute alone. Times are in nanoseconds.
  bool is_here(int64_t now) const { return now < until_.load(std::memory_order_relaxed); }

  // What the thread that made a call of several workers saw of it: how long it took, how long the thread ran in that
  // time, and how often another took its processor. If none did, the thread waited for something else, such as a disk.
  void observe(int64_t now, int64_t elapsed, int64_t computed, int64_t preemptions);

 private:
  std::atomic<int64_t> until_{0};       // the end of computing alone
  std::atomic<bool> observing_{false};  // the fields below are one thread's at a time
  double computing_ = 1;                // the share of its time that the thread ran; recent calls weigh most
  int64_t since_ = 0;                   // several workers compute again since then
  int64_t pause_ = 0;                   // how long to compute alone the next time; 0 for the shortest
};

// Observes a call, from its construction to its end, for the process's crowd.
class CrowdWatch {
 public:
  CrowdWatch();
  ~CrowdWatch();
  CrowdWatch(const CrowdWatch &) = delete;
  CrowdWatch &operator=(const CrowdWatch &) = delete;

 private:
  struct Reading {
    int64_t now, computed, preemptions;
  };
  static Reading read();
  const Reading begin_;
};

// Whether a call of this process should compute alone now.
bool is_crowded();

}  // namespace kaoken
