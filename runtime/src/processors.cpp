// How many threads a session starts by default.
#include <stdlib.h>

#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "team.h"

namespace kaoken {
namespace {

int allowed_processors() {
#if defined(__linux__)
  for (int capacity = 1024; capacity <= 1 << 16; capacity *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t *set = CPU_ALLOC(capacity);
    const size_t size = CPU_ALLOC_SIZE(capacity);
    const int count = set && sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Processors' worth of time, rounded up; 0 where there is no limit.
int quota(double limit, double period) {
  if (limit <= 0 || period <= 0) return 0;
  const double processors = limit / period;
  const int whole = static_cast<int>(processors);
  return whole + (processors > whole);
}

// The cgroup path of this process in the hierarchy whose /proc/self/cgroup line contains `mark`.
std::string cgroup_path(const std::string &mark) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t found = line.find(mark);
    if (found != std::string::npos) return line.substr(line.find(':', line.find(':') + 1) + 1);
  }
  return "";
}

int smaller(int a, int b) { return a == 0 ? b : b == 0 || a < b ? a : b; }

// The least quota on the way from the process's own cgroup up to the root of `mount`.
template <class Read>
int least_quota(const std::string &mount, std::string path, Read read) {
  int least = read(mount);
  while (path.size() > 1) {
    least = smaller(least, read(mount + path));
    path.resize(path.rfind('/'));
  }
  return least;
}

int cgroup_processors() {
  const int v2 = least_quota("/sys/fs/cgroup", cgroup_path("0::"), [](const std::string &directory) {
    std::ifstream file(directory + "/cpu.max");
    double limit = 0, period = 0;
    return file >> limit >> period ? quota(limit, period) : 0;  // "max 100000" does not parse: no limit
  });
  const int v1 = least_quota("/sys/fs/cgroup/cpu", cgroup_path(":cpu"), [](const std::string &directory) {
    std::ifstream limit_file(directory + "/cpu.cfs_quota_us"), period_file(directory + "/cpu.cfs_period_us");
    double limit = 0, period = 0;
    return limit_file >> limit && period_file >> period ? quota(limit, period) : 0;
  });
  return smaller(v2, v1);
}

int threads_from_environment(const char *text) {
  char *end = nullptr;
  const long threads = strtol(text, &end, 10);
  if (end == text || *end != '\0' || threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("KAOKEN_THREADS is \"" + std::string(text) + "\"; set it to a number from 1 to " +
                                std::to_string(kMaxThreads) + ", or unset it");
  }
  return static_cast<int>(threads);
}

}  // namespace

int default_threads() {
  const char *text = getenv("KAOKEN_THREADS");
  if (text && *text) return threads_from_environment(text);
  const int processors = smaller(allowed_processors(), cgroup_processors());
  return processors < 1 ? 1 : processors > kMaxThreads ? kMaxThreads : processors;
}

}  // namespace kaoken
