#include "crowd.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>

namespace kaoken {
namespace {

constexpr int64_t kMillisecond = 1000000;
constexpr int64_t kMemory = 20 * kMillisecond;     // time that weighs as much as all before it
constexpr int64_t kSlice = 10 * kMillisecond;      // less than one preemption in it is no crowd
constexpr double kEnough = 0.6;                    // share of the time that it takes to go on with several workers
constexpr int64_t kShortest = 100 * kMillisecond;  // the first time of computing alone
constexpr int64_t kLongest = 1600 * kMillisecond;
constexpr int64_t kTrust = 200 * kMillisecond;  // time with several workers, after which the next pause is the shortest

Crowd crowd;

int64_t nanoseconds(const timespec &time) { return time.tv_sec * int64_t{1000000000} + time.tv_nsec; }

int64_t clock_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return nanoseconds(time);
}

}  // namespace

void Crowd::observe(int64_t now, int64_t elapsed, int64_t computed, int64_t preemptions) {
  if (elapsed <= 0 || observing_.exchange(true, std::memory_order_acquire)) return;
  const bool disturbed = preemptions * kSlice >= elapsed;
  const double fraction = disturbed ? std::min(1.0, static_cast<double>(computed) / static_cast<double>(elapsed)) : 1.0;
  computing_ += (fraction - computing_) * static_cast<double>(elapsed) / static_cast<double>(elapsed + kMemory);
  if (computing_ < kEnough) {
    const int64_t pause = std::max(pause_, kShortest);
    since_ = now + pause;
    until_.store(since_, std::memory_order_relaxed);
    pause_ = std::min(2 * pause, kLongest);
    computing_ = 1;
  } else if (now - since_ > kTrust) {
    pause_ = kShortest;
  }
  observing_.store(false, std::memory_order_release);
}

CrowdWatch::Reading CrowdWatch::read() {
  Reading reading = {clock_now(), 0, 0};
#if defined(RUSAGE_THREAD)
  timespec time;
  rusage usage;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0 && getrusage(RUSAGE_THREAD, &usage) == 0) {
    reading.computed = nanoseconds(time);
    reading.preemptions = usage.ru_nivcsw;
  }
#endif
  return reading;
}

CrowdWatch::CrowdWatch() : begin_(read()) {}

CrowdWatch::~CrowdWatch() {
  const Reading end = read();
  crowd.observe(end.now, end.now - begin_.now, end.computed - begin_.computed, end.preemptions - begin_.preemptions);
}

bool is_crowded() { return crowd.is_here(clock_now()); }

}  // namespace kaoken
