// How many threads a session starts by default.
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "team.h"

namespace kaoken {
namespace {

// Processors' worth of time, rounded up; 0 where there is no limit.
int quota(double limit, double period) {
  if (limit <= 0 || period <= 0) return 0;
  const double processors = limit / period;
  const int whole = static_cast<int>(processors);
  return whole + (processors > whole);
}

int smaller(int a, int b) { return a == 0 ? b : b == 0 || a < b ? a : b; }

// What a control group's directory says; 0 where it says nothing.
int group_quota(const std::string &directory) {
  std::ifstream both(directory + "/cpu.max"), limit_file(directory + "/cpu.cfs_quota_us"),
      period_file(directory + "/cpu.cfs_period_us");
  double limit = 0, period = 0;
  if (both >> limit >> period) return quota(limit, period);  // "max 100000" does not parse: no limit
  return limit_file >> limit && period_file >> period ? quota(limit, period) : 0;
}

// The least quota on the way from the group `path` up to `root`.
int least_quota(const std::string &root, std::string path) {
  int least = group_quota(root);
  while (path.size() > 1) {
    least = smaller(least, group_quota(root + path));
    path.resize(path.rfind('/'));
  }
  return least;
}

bool lists_cpu(const std::string &controllers) { return ("," + controllers + ",").find(",cpu,") != std::string::npos; }

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

std::vector<int> allowed_processors() {
  std::vector<int> allowed;
#if defined(__linux__)
  for (int capacity = 1024; capacity <= 1 << 16; capacity *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t *set = CPU_ALLOC(capacity);
    const size_t size = CPU_ALLOC_SIZE(capacity);
    if (set && sched_getaffinity(0, size, set) == 0) {
      for (int processor = 0; processor < capacity; ++processor) {
        if (CPU_ISSET_S(processor, size, set)) allowed.push_back(processor);
      }
    }
    CPU_FREE(set);
    if (!allowed.empty()) return allowed;
  }
#endif
  allowed.resize(std::max(1u, std::thread::hardware_concurrency()));
  std::iota(allowed.begin(), allowed.end(), 0);
  return allowed;
}

int cores(const std::vector<int> &processors, const std::string &cpu_directory) {
  std::set<std::string> siblings;  // as Linux lists the threads of a core
  for (const int processor : processors) {
    std::ifstream file(cpu_directory + "/cpu" + std::to_string(processor) + "/topology/thread_siblings_list");
    std::string list;
    siblings.insert(std::getline(file, list) ? list : std::to_string(processor));
  }
  return static_cast<int>(siblings.size());
}

int cgroup_processors(const std::string &cgroup_file, const std::string &mount) {
  std::ifstream file(cgroup_file);
  int least = 0;
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !lists_cpu(controllers)) continue;
    least = smaller(least, least_quota(controllers.empty() ? mount : mount + "/cpu", line.substr(second + 1)));
  }
  return least;
}

int default_threads() {
  const char *text = getenv("KAOKEN_THREADS");
  if (text && *text) return threads_from_environment(text);
  const int processors = smaller(cores(allowed_processors(), "/sys/devices/system/cpu"),
                                 cgroup_processors("/proc/self/cgroup", "/sys/fs/cgroup"));
  return processors < 1 ? 1 : processors > kMaxThreads ? kMaxThreads : processors;
}

}  // namespace kaoken
