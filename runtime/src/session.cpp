#include "session.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "errors.h"
#include "machine.h"

namespace kaoken {
namespace {

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Bytes of scratch for each row of a pass.
int64_t scratch_bytes(const Model &model) {
  const int64_t floats = model.hidden_width + 4 * model.attention_width + model.inner_width;
  return floats * static_cast<int64_t>(sizeof(float)) + model.input_bytes + static_cast<int64_t>(sizeof(RowScale));
}

size_t arena_bytes(const Model &model, int64_t batch, int64_t capacity, int64_t rows) {
  const double bytes =
      static_cast<double>(batch) * capacity * model.cache_bytes + static_cast<double>(rows) * scratch_bytes(model);
  if (bytes > static_cast<double>(std::numeric_limits<int64_t>::max() / 2)) throw std::bad_alloc();
  return static_cast<size_t>(batch * capacity * model.cache_bytes + rows * scratch_bytes(model));
}

int64_t checked_batch(int64_t batch) {
  constexpr int64_t most = 1 << 20;
  if (batch >= 1 && batch <= most) return batch;
  throw Error(KAOKEN_INVALID_ARGUMENT,
              "batch is " + std::to_string(batch) + "; it must be from 1 to " + std::to_string(most));
}

int checked_threads(int threads) {
  if (threads == 0) return default_threads();
  if (threads >= 1 && threads <= kMaxThreads) return threads;
  throw Error(KAOKEN_INVALID_ARGUMENT, "threads is " + std::to_string(threads) + "; it must be from 1 to " +
                                           std::to_string(kMaxThreads) + ", or 0 for the default");
}

}  // namespace

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

constexpr double kUncheckedMemory = 64 << 20;  // bytes that are taken without a look at what the machine has
constexpr size_t kLargestKept = 32 << 20;      // bytes that stay as they are: offering them takes longer than 100 us
constexpr size_t kLargestSpare = 256 << 20;    // bytes

std::string in_gib(double bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.1f GiB", bytes / (1 << 30));
  return text;
}

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

Arena::Arena(size_t bytes) : data_(spare.take()), bytes_(bytes) {
  if (data_ && Spare::bytes(data_) == bytes) return;
  Spare::release(data_);
  data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Arena::~Arena() {
  if (bytes_ <= kLargestKept || (bytes_ <= kLargestSpare && offer(data_, bytes_))) {
    spare.put(data_, bytes_);
  } else {
    munmap(data_, bytes_);
  }
}

Session::Session(const Model &model, int64_t batch, int threads, const char *isa)
    : model_(model),
      choice_(choose_code(model, isa)),
      batch_(checked_batch(batch)),
      capacity_(round_up(model.info.n_positions, kAttentionTile)),
      pass_rows_(std::max(kPassRows, batch)),
      pass_ids_(static_cast<size_t>(pass_rows_)),
      arena_(arena_bytes(model, batch, capacity_, pass_rows_)),
      team_(checked_threads(threads)) {}

void Session::rewind(int64_t length) {
  if (length < 0 || length > length_) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "cannot rewind to " + std::to_string(length) +
                                             " positions: the session holds " + std::to_string(length_));
  }
  length_ = length;
}

void Session::check_memory(int64_t count, int64_t rows) const {
  const int64_t positions = round_up(std::min(length_ + count, model_.info.n_positions), kAttentionTile);
  double row = static_cast<double>(rows) * model_.info.vocab_size * sizeof(float);
  row += static_cast<double>(std::max<int64_t>(positions - touched_, 0)) * model_.cache_bytes;
  double bytes = row * batch_;
  if (touched_ == 0) bytes += static_cast<double>(std::min(pass_rows_, batch_ * count)) * scratch_bytes(model_);
  if (bytes <= kUncheckedMemory) return;
  const double available = available_memory();
  if (bytes <= available) return;
  throw Error(KAOKEN_OUT_OF_MEMORY, "a batch of " + std::to_string(batch_) + " with " +
                                        std::to_string(length_ + count) + " positions needs " + in_gib(bytes) +
                                        " more, and " + in_gib(available) +
                                        " are available; use a smaller batch or shorter sequences");
}

void Session::append(const int64_t *ids, int64_t count, int32_t which, float *logits, bool fresh) {
  check(ids, count, which, logits);
  check_memory(count, !fresh || which == KAOKEN_LOGITS_NONE ? 0 : which == KAOKEN_LOGITS_ALL ? count : 1);
  touched_ = std::max(touched_, round_up(length_ + count, kAttentionTile));
  const int64_t vocab_size = model_.info.vocab_size;
  const int64_t step = std::max<int64_t>(1, pass_rows_ / batch_);
  Pass pass = lay_out();
  for (int64_t done = 0; done < count; done += pass.count) {
    pass.past = length_;
    pass.count = std::min(step, count - done);
    for (int64_t row = 0; row < batch_ * pass.count; ++row) {
      pass_ids_[row] = static_cast<int32_t>(ids[row / pass.count * count + done + row % pass.count]);
    }
    const bool last = done + pass.count == count;
    pass.logits_which = which == KAOKEN_LOGITS_LAST && !last ? KAOKEN_LOGITS_NONE : which;
    pass.logits_stride = which == KAOKEN_LOGITS_ALL ? count * vocab_size : vocab_size;
    pass.logits = which == KAOKEN_LOGITS_ALL ? logits + done * vocab_size : logits;
    run(pass);
    length_ += pass.count;
  }
}

void Session::check(const int64_t *ids, int64_t count, int32_t which, const float *logits) const {
  if (count < 1) throw Error(KAOKEN_INVALID_ARGUMENT, "no token ids were given; give at least one");
  if (!ids) throw Error(KAOKEN_INVALID_ARGUMENT, "ids is null");
  if (which < KAOKEN_LOGITS_NONE || which > KAOKEN_LOGITS_ALL) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "which is " + std::to_string(which) + "; it must be a KAOKEN_LOGITS_ value");
  }
  if (which != KAOKEN_LOGITS_NONE && !logits) throw Error(KAOKEN_INVALID_ARGUMENT, "logits is null");
  if (count > model_.info.n_positions - length_) {
    throw Error(KAOKEN_CONTEXT_FULL, std::to_string(count) + " tokens behind " + std::to_string(length_) +
                                         " pass the model's " + std::to_string(model_.info.n_positions) +
                                         " positions; give fewer, or start a new session");
  }
  for (int64_t i = 0; i < batch_ * count; ++i) {
    if (ids[i] >= 0 && ids[i] < model_.info.vocab_size) continue;
    throw Error(KAOKEN_TOKEN_OUT_OF_RANGE, "token id " + std::to_string(ids[i]) + " at sequence " +
                                               std::to_string(i / count) + ", position " + std::to_string(i % count) +
                                               " is outside the vocabulary, 0 to " +
                                               std::to_string(model_.info.vocab_size - 1));
  }
}

// The arena: the cache, then the rows of a pass. Each part is a multiple of kAlignment.
Pass Session::lay_out() const {
  Pass pass = {};
  pass.batch = batch_;
  pass.positions = capacity_;
  pass.ids = pass_ids_.data();
  pass.executed_isa = "";
  pass.cache = arena_.data();
  pass.inputs = static_cast<char *>(pass.cache) + batch_ * capacity_ * model_.cache_bytes;
  pass.hidden = reinterpret_cast<float *>(static_cast<char *>(pass.inputs) + pass_rows_ * model_.input_bytes);
  pass.qkv = pass.hidden + pass_rows_ * model_.hidden_width;
  pass.attended = pass.qkv + 3 * pass_rows_ * model_.attention_width;
  pass.inner = pass.attended + pass_rows_ * model_.attention_width;
  pass.input_scales = reinterpret_cast<RowScale *>(pass.inner + pass_rows_ * model_.inner_width);
  return pass;
}

void Session::run(Pass &pass) {
  struct Job {
    const Code &code;
    Pass &pass;
  } job = {choice_.code, pass};
  compute(
      [](void *context, const Worker &worker) {
        const Job &job = *static_cast<Job *>(context);
        job.code.forward(job.pass, worker);
      },
      &job);
  executed_isa_ = pass.executed_isa;
}

}  // namespace kaoken
