#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace kaoken {
namespace {

// The memory of a session that has ended, for the next one of its size: its pages are there already. Its first bytes
// say how large it is; of a large one the system may take the rest back.
class Spare {
 public:
  ~Spare() { release(take()); }
  void *take() { return data_.exchange(nullptr); }
  void put(void *data, size_t bytes) {
    *static_cast<size_t *>(data) = bytes;
    release(data_.exchange(data));
  }
  static size_t bytes(const void *data) { return *static_cast<const size_t *>(data); }
  static void release(void *data) {
    if (data) munmap(data, bytes(data));
  }

 private:
  std::atomic<void *> data_{nullptr};
} spare;

constexpr size_t kLargestKept = 32 << 20;    // bytes that stay as they are: offering them takes longer than 100 us
constexpr size_t kLargestSpare = 256 << 20;  // bytes

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
  if (given || (data_ && Spare::bytes(data_) == bytes)) return;
  Spare::release(data_);
  data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Arena::~Arena() {
  if (!own_) return;
  if (bytes_ <= kLargestKept || (bytes_ <= kLargestSpare && offer(data_, bytes_))) {
    spare.put(data_, bytes_);
  } else {
    munmap(data_, bytes_);
  }
}

}  // namespace kaoken
