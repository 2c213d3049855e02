#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>

namespace kaoken {
namespace {

// The memory of a session that has ended, for the next one of its size: its pages are there already. Of much the system
// may take all but the beginning back.
class Spare {
 public:
  struct Header {  // its first bytes
    size_t bytes, touched;
  };
  ~Spare() { release(take()); }
  void *take() { return data_.exchange(nullptr); }
  void put(void *data, const Header &sizes) {
    header(data) = sizes;
    release(data_.exchange(data));
  }
  static Header &header(void *data) { return *static_cast<Header *>(data); }
  static void release(void *data) {
    if (data) munmap(data, header(data).bytes);
  }

 private:
  std::atomic<void *> data_{nullptr};
} spare;

// Touched bytes.
constexpr size_t kLargestKept = 32 << 20;  // that stay as they are: offering them takes longer than 100 us
constexpr size_t kLargestSpare = 256 << 20;

// Whether the system agrees to take the pages back when it needs them.
bool offer(void *data, size_t bytes) {
#if defined(MADV_FREE)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes > page && madvise(static_cast<char *>(data) + page, bytes - page, MADV_FREE) == 0;
#else
  return false;
#endif
}

}  // namespace

Arena::Arena(size_t bytes, void *given) : data_(given ? given : spare.take()), bytes_(bytes), own_(!given) {
  if (given) return;
  if (data_ && Spare::header(data_).bytes == bytes) {
    before_ = Spare::header(data_).touched;
    return;
  }
  Spare::release(data_);
  data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Arena::~Arena() {
  if (!own_) return;
  const size_t touched = std::max(before_, touched_);
  if (touched <= kLargestKept || (touched <= kLargestSpare && offer(data_, bytes_))) {
    spare.put(data_, {bytes_, touched});
  } else {
    munmap(data_, bytes_);
  }
}

}  // namespace kaoken
