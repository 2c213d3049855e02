// The memory of a session.
#pragma once

#include <stddef.h>

namespace kaoken {

// The caller's memory or, where that is null, memory from the system, page by page as it is touched. What is in it is
// anything: the last session's may be used again.
class Arena {
 public:
  Arena(size_t bytes, void *given);
  ~Arena();
  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;
  void *data() const { return data_; }
  bool own() const { return own_; }  // from the system

 private:
  void *data_;
  size_t bytes_;
  bool own_;
};

}  // namespace kaoken
