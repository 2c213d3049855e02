// How often the workers of a team wait for each other in a pass of the bundled model, which has six blocks of eight
// heads: each worker's part is run by itself, with a barrier that only counts.
#include <cstdio>
#include <vector>

#include "kaoken/pass.h"

namespace {

int64_t waits;

constexpr int64_t kBlocks = 6, kPositions = 256, kPages = kPositions / kaoken::kPage, kWidth = 256, kInner = 1024,
                  kVocabulary = 257;

// What one worker of `workers` waits for in a pass of `count` positions of each of `batch` sequences.
struct Expected {
  int workers;
  int64_t batch, count;
  int32_t logits;
  int64_t float32, int8;
};

}  // namespace

void kaoken::barrier(const kaoken::Worker &worker) { waits += worker.count > 1; }

namespace kaoken::scalar {
namespace model_second {
void forward(Pass &pass, const Worker &worker);
}
namespace model_integer {
void forward(Pass &pass, const Worker &worker);
}
}  // namespace kaoken::scalar

namespace {

int64_t count_waits(void (*forward)(kaoken::Pass &, const kaoken::Worker &), const Expected &expected) {
  const auto rows = static_cast<size_t>(expected.batch * expected.count);
  std::vector<int32_t> ids(rows);
  const size_t floats = rows * (kWidth + 3 * kWidth + kWidth + kInner + kInner + kVocabulary) + 64;
  std::vector<float> memory(floats + static_cast<size_t>(expected.batch * kBlocks * kPositions * 2 * kWidth));
  std::vector<kaoken::RowScale> scales(rows);
  auto *next = reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const auto take = [&next](size_t count) {
    float *taken = next;
    next += count;
    return taken;
  };
  const int64_t all = expected.logits == KAOKEN_LOGITS_ALL ? expected.count : 1;
  const int64_t outputs = expected.logits == KAOKEN_LOGITS_NONE ? 0 : all;
  std::vector<int32_t> pages(static_cast<size_t>(expected.batch * kPages));
  std::vector<kaoken::Sequence> sequences, kept_sequences;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < expected.batch; ++i) {
    const int32_t *own = pages.data() + i * kPages;
    for (int64_t page = 0; page < kPages; ++page) pages[static_cast<size_t>(i * kPages + page)] = i * kPages + page;
    sequences.push_back({i * expected.count, expected.count, 0, expected.count, own, 0, nullptr});
    kept_sequences.push_back({i * outputs, outputs, expected.count - outputs, expected.count, own, 0, nullptr});
    for (int64_t row = expected.count - outputs; row < expected.count; ++row) kept.push_back(i * expected.count + row);
  }
  kaoken::Pass pass = {};
  pass.batch = {expected.batch * expected.count, expected.batch, sequences.data()};
  pass.outputs = {expected.batch * outputs, expected.batch, kept_sequences.data()};
  pass.kept = kept.data();
  pass.ids = ids.data();
  pass.hidden = take(rows * kWidth);
  pass.qkv = take(rows * 3 * kWidth);
  pass.attended = take(rows * kWidth);
  pass.inner = take(rows * kInner);
  pass.inputs = take(rows * kInner);
  pass.cache = {take(static_cast<size_t>(expected.batch * kBlocks * kPositions * 2 * kWidth)),
                kBlocks * kaoken::kPage * 2 * kWidth * static_cast<int64_t>(sizeof(float))};
  pass.output = take(rows * kVocabulary);
  pass.input_scales = scales.data();
  waits = 0;
  forward(pass, {0, expected.workers, nullptr});
  return waits;
}

}  // namespace

int main() {
  const Expected table[] = {
      {2, 1, 1, KAOKEN_LOGITS_LAST, 25, 25},  {3, 1, 1, KAOKEN_LOGITS_LAST, 32, 32},
      {2, 4, 1, KAOKEN_LOGITS_LAST, 38, 50},  {3, 4, 1, KAOKEN_LOGITS_LAST, 45, 57},
      {2, 1, 24, KAOKEN_LOGITS_LAST, 38, 48}, {3, 1, 24, KAOKEN_LOGITS_LAST, 50, 60},
      {2, 2, 24, KAOKEN_LOGITS_ALL, 38, 50},  {3, 2, 24, KAOKEN_LOGITS_ALL, 51, 63},
      {2, 1, 24, KAOKEN_LOGITS_NONE, 32, 42}, {3, 1, 24, KAOKEN_LOGITS_NONE, 43, 53},
  };
  int failures = 0;
  for (const Expected &each : table) {
    const int64_t float32 = count_waits(kaoken::scalar::model_second::forward, each);
    const int64_t int8 = count_waits(kaoken::scalar::model_integer::forward, each);
    if (float32 == each.float32 && int8 == each.int8) continue;
    ++failures;
    std::printf("%d workers, %lld x %lld, logits %d: %lld and %lld barriers where %lld and %lld were expected\n",
                each.workers, static_cast<long long>(each.batch), static_cast<long long>(each.count), each.logits,
                static_cast<long long>(float32), static_cast<long long>(int8), static_cast<long long>(each.float32),
                static_cast<long long>(each.int8));
  }
  return failures ? 1 : 0;
}
