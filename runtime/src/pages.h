// The pages of a KV cache, and which sequence has which of them.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>
#include <vector>

#include "kaoken/pass.h"

namespace kaoken {

// Zeros, of which a large number takes no memory until they are written.
template <class T>
class Zeros {
 public:
  explicit Zeros(int64_t count) : values_(static_cast<T *>(calloc(static_cast<size_t>(count) + 1, sizeof(T)))) {
    if (!values_) throw std::bad_alloc();
  }
  T &operator[](int64_t i) { return values_.get()[i]; }
  const T &operator[](int64_t i) const { return values_.get()[i]; }

 private:
  struct Free {
    void operator()(T *values) const { free(values); }
  };
  std::unique_ptr<T, Free> values_;
};

inline int64_t pages_of(int64_t positions) { return (positions + kPage - 1) / kPage; }

// Sequences share pages after a fork, until one of them writes: it then gets a copy of its own. A sequence has no more
// than its last `most` pages; it gives those before them back as it grows.
class Pages {
 public:
  // `cache` has `most` pages for each of `slots` sequences, of up to `limit` positions each.
  Pages(const Cache &cache, int64_t slots, int64_t limit, int64_t most);
  Pages(const Cache &cache, int64_t slots, int64_t limit) : Pages(cache, slots, limit, pages_of(limit)) {}

  int64_t length(int64_t slot) const { return lengths_[slot]; }
  const int32_t *of(int64_t slot) const { return &table_[slot * per_slot_]; }
  int64_t first(int64_t slot) const { return firsts_[slot]; }  // that the slot still has

  // Pages that `count` more positions of a slot take beyond those that it may write to now.
  int64_t needed(int64_t slot, int64_t count) const;
  // Pages whose memory is in use but which no sequence has.
  int64_t spare() const { return touched_ - used_; }

  // Pages among which are all that were ever used: of each slot's own as many as the furthest that was.
  int64_t reach() const { return static_cast<int64_t>(lengths_.size()) * reach_; }

  // Pages that no other sequence has.
  int64_t own(int64_t slot) const;

  // Makes all pages of `count` more positions, no more than there can be pages of, ready to be written.
  void reserve(int64_t slot, int64_t count);
  void extend(int64_t slot, int64_t count) { lengths_[slot] += count; }
  // To 0, or to a length in or behind the first page that the slot has.
  void rewind(int64_t slot, int64_t length);
  void fork(int64_t from, int64_t to);

 private:
  int64_t end(int64_t slot) const { return pages_of(lengths_[slot]); }
  int32_t take(int64_t preferred);
  void release(int32_t page);

  const Cache cache_;
  const int64_t per_slot_, most_;
  std::vector<int64_t> lengths_, firsts_;
  Zeros<int32_t> table_;   // [slots][per_slot], of which a slot has those from its first to that of its last position
  Zeros<int32_t> owners_;  // of each page
  Zeros<bool> seen_;       // whether a page has ever been used
  int64_t used_ = 0, touched_ = 0, reach_ = 0;
};

}  // namespace kaoken
