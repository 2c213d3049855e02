// The pages of a KV cache, and which sequence has which of them.
#pragma once

#include <stdint.h>

#include <vector>

#include "kaoken/pass.h"

namespace kaoken {

// Sequences share pages after a fork, until one of them writes: it then gets a copy of its own.
class Pages {
 public:
  // `cache` has pages for `slots` sequences of up to `limit` positions each.
  Pages(const Cache &cache, int64_t slots, int64_t limit);

  static int64_t count(int64_t slots, int64_t limit);

  int64_t length(int64_t slot) const { return lengths_[slot]; }
  const int32_t *of(int64_t slot) const { return table_.data() + slot * per_slot_; }

  // Pages that `count` more positions of a slot take beyond those that it may write to now.
  int64_t needed(int64_t slot, int64_t count) const;
  // Pages whose memory is in use but which no sequence has.
  int64_t spare() const { return touched_ - used_; }

  // Pages that no other sequence has.
  int64_t own(int64_t slot) const;

  // Makes all pages of `count` more positions ready to be written.
  void reserve(int64_t slot, int64_t count);
  void extend(int64_t slot, int64_t count) { lengths_[slot] += count; }
  void rewind(int64_t slot, int64_t length);
  void fork(int64_t from, int64_t to);

 private:
  int64_t held(int64_t slot) const;
  int32_t take(int64_t preferred);
  void release(int32_t page);

  const Cache cache_;
  const int64_t per_slot_;
  std::vector<int64_t> lengths_;
  std::vector<int32_t> table_;   // [slots][per_slot]
  std::vector<int32_t> owners_;  // of each page
  std::vector<bool> seen_;       // whether a page has ever been used
  int64_t used_ = 0, touched_ = 0;
};

}  // namespace kaoken
