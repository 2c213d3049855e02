// The threads of a session: persistent workers that run a function side by side and meet at barriers.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "kaoken/pass.h"

namespace kaoken {

class Team {
 public:
  // Threads start with the first run, on the processors that affinity allows then.
  Team(int size, std::vector<int> processors);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  int size() const { return size_; }
  const std::vector<int> &processors() const { return processors_; }

  // Runs task(context, worker) on every worker, this thread being worker 0, and returns when all are done. Every worker
  // runs with round-to-nearest and denormals flushed to zero; the caller's own mode is restored.
  void run(void (*task)(void *context, const Worker &worker), void *context);

  void wait_at_barrier();

 private:
  struct Crew;
  void hire();

  int size_;
  std::vector<int> processors_;
  int spins_;           // of a wait: none where threads share processors
  pid_t process_ = -1;  // where the crew's threads live; after fork() the child has none and hires its own
  std::unique_ptr<Crew> crew_;
};

// A team of this size: the one that was given back last, whose threads are there already, where it has the size and
// the processors; else a new one. Given back when it is no longer held.
struct GiveBack {
  void operator()(Team *team) const;
};
using BorrowedTeam = std::unique_ptr<Team, GiveBack>;
BorrowedTeam borrow_team(int size);

// The processors that affinity allows this thread; at least one.
std::vector<int> allowed_processors();

// On how many cores they are, by /sys/devices/system/cpu; hardware threads of one core share what a kernel needs.
int cores(const std::vector<int> &processors, const std::string &cpu_directory);

// KAOKEN_THREADS, else the cores that affinity and cgroup limits leave to this process; at least 1.
// Raises std::invalid_argument where KAOKEN_THREADS is not a number from 1 to kMaxThreads.
int default_threads();

// Processors' worth of time, rounded up, that the control groups of a /proc/self/cgroup file leave, version 2 or 1;
// 0 where they set no limit.
int cgroup_processors(const std::string &cgroup_file, const std::string &mount);

constexpr int kMaxThreads = 1024;

}  // namespace kaoken
