#include "pages.h"

#include <string.h>

#include <algorithm>

namespace kaoken {

Pages::Pages(const Cache &cache, int64_t slots, int64_t limit, int64_t most)
    : cache_(cache),
      per_slot_(pages_of(limit)),
      most_(most),
      lengths_(static_cast<size_t>(slots)),
      firsts_(lengths_.size()),
      table_(slots * per_slot_),
      owners_(slots * most),
      seen_(slots * most) {}

int64_t Pages::needed(int64_t slot, int64_t count) const {
  const int64_t length = lengths_[slot];
  const bool copies = length % kPage && owners_[of(slot)[length / kPage]] > 1;
  const int64_t more = pages_of(length + count) - end(slot) + copies;
  if (more <= most_ - (end(slot) - first(slot))) return more;
  return std::min(more, most_ - own(slot));  // it takes its own pages again
}

void Pages::reserve(int64_t slot, int64_t count) {
  const int64_t length = lengths_[slot], end = pages_of(length + count);
  int32_t *pages = &table_[slot * per_slot_];
  for (int64_t &first = firsts_[slot]; first < end - most_; ++first) release(pages[first]);
  const int64_t last = length / kPage;
  if (length % kPage && owners_[pages[last]] > 1) {
    const int32_t copy = take(slot * most_ + last % most_);
    auto *memory = static_cast<char *>(cache_.memory);
    memcpy(memory + copy * cache_.page_bytes, memory + pages[last] * cache_.page_bytes,
           static_cast<size_t>(cache_.page_bytes));
    release(pages[last]);
    pages[last] = copy;
  }
  for (int64_t i = this->end(slot); i < end; ++i) pages[i] = take(slot * most_ + i % most_);
}

void Pages::rewind(int64_t slot, int64_t length) {
  const int64_t before = end(slot);
  lengths_[slot] = length;
  for (int64_t i = std::max(end(slot), first(slot)); i < before; ++i) release(of(slot)[i]);
  if (length == 0) firsts_[slot] = 0;
}

void Pages::fork(int64_t from, int64_t to) {
  if (from == to) return;
  rewind(to, 0);
  lengths_[to] = lengths_[from];
  firsts_[to] = firsts_[from];
  for (int64_t i = first(from); i < end(from); ++i) {
    const int32_t page = of(from)[i];
    ++owners_[page];
    table_[to * per_slot_ + i] = page;
  }
}

int64_t Pages::own(int64_t slot) const {
  return std::count_if(of(slot) + first(slot), of(slot) + end(slot), [&](int32_t page) { return owners_[page] == 1; });
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
  reach_ = std::max(reach_, page % most_ + 1);
  return static_cast<int32_t>(page);
}

void Pages::release(int32_t page) {
  if (--owners_[page] == 0) --used_;
}

}  // namespace kaoken
