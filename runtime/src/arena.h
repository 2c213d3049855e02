// The memory of a session.
#pragma once

#include <stddef.h>

namespace kaoken {

// The caller's memory or, where that is null, addresses from the system, which take memory page by page as they are
// touched: a cache for 131072 positions of a small model is gigabytes of addresses. What is in it is anything: the last
// session's may be used again.
class Arena {
 public:
  Arena(size_t bytes, void *given);
  ~Arena();
  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;
  void *data() const { return data_; }
  bool own() const { return own_; }  // from the system
  // Says that no more than this much of it was ever touched.
  void touched(size_t bytes) { touched_ = bytes; }

 private:
  void *data_;
  size_t bytes_;
  size_t before_ = 0, touched_ = 0;  // bytes that sessions before and this one have touched at most
  bool own_;
};

}  // namespace kaoken
