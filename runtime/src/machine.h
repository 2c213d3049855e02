// What the system leaves to this process: processors, and memory. `mount` is where control groups are mounted, and a
// /proc/self/cgroup file says which are the process's, of version 2 or 1.
#pragma once

#include <string>
#include <vector>

namespace kaoken {

// The processors that affinity allows this thread; at least one.
std::vector<int> allowed_processors();

// Binds this thread to processors, where the system allows it.
void use_processors(const std::vector<int> &processors);

// How many cores they belong to, by /sys/devices/system/cpu; threads of one core share what a kernel needs.
int cores(const std::vector<int> &processors, const std::string &cpu_directory);

// Processors' worth of time, rounded up, that the control groups leave; 0 where they set no limit.
int cgroup_processors(const std::string &cgroup_file, const std::string &mount);

// The cores that affinity and control groups leave to this thread; at least 1.
int usable_cores();

// KAOKEN_THREADS, else usable_cores().
// Raises std::invalid_argument where KAOKEN_THREADS is not a number from 1 to kMaxThreads.
int default_threads();

constexpr int kMaxThreads = 1024;

// Bytes that a process can take without others having to give any back: what a /proc/meminfo file calls available, or
// less where a control group allows less. Infinity where neither tells.
double available_memory(const std::string &meminfo = "/proc/meminfo",
                        const std::string &cgroup_file = "/proc/self/cgroup",
                        const std::string &mount = "/sys/fs/cgroup");

}  // namespace kaoken
