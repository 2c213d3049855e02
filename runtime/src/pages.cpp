#include "pages.h"

#include <string.h>

#include <algorithm>

namespace kaoken {
namespace {

int64_t pages_of(int64_t positions) { return (positions + kPage - 1) / kPage; }

}  // namespace

Pages::Pages(const Cache &cache, int64_t slots, int64_t limit)
    : cache_(cache),
      per_slot_(pages_of(limit)),
      lengths_(static_cast<size_t>(slots)),
      table_(slots * per_slot_),
      owners_(slots * per_slot_),
      seen_(slots * per_slot_) {}

int64_t Pages::count(int64_t slots, int64_t limit) { return slots * pages_of(limit); }

int64_t Pages::held(int64_t slot) const { return pages_of(lengths_[slot]); }

int64_t Pages::needed(int64_t slot, int64_t count) const {
  const int64_t length = lengths_[slot];
  const bool copies = length % kPage && owners_[of(slot)[length / kPage]] > 1;
  return pages_of(length + count) - held(slot) + copies;
}

void Pages::reserve(int64_t slot, int64_t count) {
  const int64_t length = lengths_[slot];
  int32_t *pages = &table_[slot * per_slot_];
  const int64_t last = length / kPage;
  if (length % kPage && owners_[pages[last]] > 1) {
    const int32_t copy = take(slot * per_slot_ + last);
    auto *memory = static_cast<char *>(cache_.memory);
    memcpy(memory + copy * cache_.page_bytes, memory + pages[last] * cache_.page_bytes,
           static_cast<size_t>(cache_.page_bytes));
    release(pages[last]);
    pages[last] = copy;
  }
  for (int64_t i = held(slot); i < pages_of(length + count); ++i) pages[i] = take(slot * per_slot_ + i);
}

void Pages::rewind(int64_t slot, int64_t length) {
  const int64_t before = held(slot);
  lengths_[slot] = length;
  for (int64_t i = held(slot); i < before; ++i) release(of(slot)[i]);
}

void Pages::fork(int64_t from, int64_t to) {
  if (from == to) return;
  rewind(to, 0);
  lengths_[to] = lengths_[from];
  for (int64_t i = 0; i < held(from); ++i) {
    const int32_t page = of(from)[i];
    ++owners_[page];
    table_[to * per_slot_ + i] = page;
  }
}

int64_t Pages::own(int64_t slot) const {
  return std::count_if(of(slot), of(slot) + held(slot), [&](int32_t page) { return owners_[page] == 1; });
}

// A page without an owner: the preferred one, so that a sequence lies in one piece, or any other. One that was in use
// goes before one whose memory is untouched. There are as many as all sequences may have.
int32_t Pages::take(int64_t preferred) {
  int64_t page = preferred;
  if (owners_[page] || (!seen_[page] && spare() > 0)) {
    const bool seen = spare() > 0;
    for (page = 0; owners_[page] || (seen && !seen_[page]);) ++page;
  }
  owners_[page] = 1;
  ++used_;
  if (!seen_[page]) ++touched_;
  seen_[page] = true;
  reach_ = std::max(reach_, page % per_slot_ + 1);
  return static_cast<int32_t>(page);
}

void Pages::release(int32_t page) {
  if (--owners_[page] == 0) --used_;
}

}  // namespace kaoken
