#include "machine.h"

#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace kaoken {
namespace {

// How many processors' time the limit allows, rounded up; 0 where there is no limit.
int quota(double limit, double period) {
  if (limit <= 0 || period <= 0) return 0;
  const double processors = limit / period;
  const int whole = static_cast<int>(processors);
  return whole + (processors > whole);
}

int smaller(int a, int b) { return a == 0 ? b : b == 0 || a < b ? a : b; }

// The directories of this process's control groups for a controller, each with those above it.
std::vector<std::string> groups(const std::string &cgroup_file, const std::string &mount,
                                const std::string &controller) {
  std::vector<std::string> directories;
  std::ifstream file(cgroup_file);
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos) continue;
    const std::string root = version_2 ? mount : mount + "/" + controller;
    directories.push_back(root);
    std::string path = line.substr(second + 1);
    for (size_t end = path.size(); end != std::string::npos && end > 1; end = path.rfind('/', end - 1)) {
      directories.push_back(root + path.substr(0, end));
    }
  }
  return directories;
}

// The number that a file begins with, or `otherwise`.
double number(const std::string &path, double otherwise) {
  double value = 0;
  return std::ifstream(path) >> value ? value : otherwise;
}

// The number behind a name in a file of lines "name number", or `otherwise`.
double field(const std::string &path, const std::string &name, double otherwise) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    double value = 0;
    if (word == name && file >> value) return value;
  }
  return otherwise;
}

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

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

void use_processors(const std::vector<int> &processors) {
#if defined(__linux__)
  const int capacity = processors.back() + 1;
  cpu_set_t *set = CPU_ALLOC(capacity);
  if (!set) return;
  const size_t size = CPU_ALLOC_SIZE(capacity);
  CPU_ZERO_S(size, set);
  for (const int processor : processors) CPU_SET_S(processor, size, set);
  sched_setaffinity(0, size, set);
  CPU_FREE(set);
#else
  (void)processors;
#endif
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
  int least = 0;
  for (const std::string &group : groups(cgroup_file, mount, "cpu")) {
    std::ifstream both(group + "/cpu.max");
    double limit = 0, period = 0;
    if (!(both >> limit >> period)) {  // "max 100000" does not parse: no limit
      limit = number(group + "/cpu.cfs_quota_us", 0);
      period = number(group + "/cpu.cfs_period_us", 0);
    }
    least = smaller(least, quota(limit, period));
  }
  return least;
}

double available_memory(const std::string &meminfo, const std::string &cgroup_file, const std::string &mount) {
  double least = field(meminfo, "MemAvailable:", kUnlimited) * 1024;
  for (const std::string &group : groups(cgroup_file, mount, "memory")) {
    const double limit = number(group + "/memory.max", number(group + "/memory.limit_in_bytes", kUnlimited));
    const double used = number(group + "/memory.current", number(group + "/memory.usage_in_bytes", 0));
    double kept = 0;  // for speed alone, and given back when it is needed
    for (const char *name : {"inactive_file", "active_file", "slab_reclaimable"}) {
      kept += field(group + "/memory.stat", name, 0);
    }
    least = std::min(least, std::max(0.0, limit - used + kept));
  }
  return least;
}

int usable_cores() {
  // Reading them takes longer than a pass of a small model, and under a set of processors they stay as they are.
  thread_local std::vector<int> known;
  thread_local int count = 0;
  std::vector<int> processors = allowed_processors();
  if (processors != known) {
    count =
        smaller(cores(processors, "/sys/devices/system/cpu"), cgroup_processors("/proc/self/cgroup", "/sys/fs/cgroup"));
    known = std::move(processors);
  }
  return std::clamp(count, 1, kMaxThreads);
}

int default_threads() {
  const char *text = getenv("KAOKEN_THREADS");
  return text && *text ? threads_from_environment(text) : usable_cores();
}

}  // namespace kaoken
