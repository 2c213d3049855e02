// How often the workers of a team wait for each other in a pass of the bundled model, which has six blocks of eight
// heads, of a BERT and a T5 of two blocks of three, of a GPT-NeoX of two blocks of six, of a Gemma 3 of three blocks of
// four heads that share a key, and of an OLMo 2 of three blocks of six that share three: each worker's part is run by
// itself, with a barrier that only counts.
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "kaoken/pass.h"

namespace {

int64_t waits;

constexpr int64_t kBlocks = 6, kPositions = 256, kPages = kPositions / kaoken::kPage, kWidth = 256, kInner = 1024,
                  kVocabulary = 257, kSource = 70;

// What one worker of `workers` waits for in a pass of `count` positions of each of `batch` sequences.
struct Expected {
  int workers;
  int64_t batch, count;
  int32_t logits;
  int64_t float32, int8;
};

}  // namespace

void kaoken::barrier(const kaoken::Worker &worker) { waits += worker.count > 1; }

#define KAOKEN_PASS(model, function)                  \
  namespace kaoken::scalar::model_##model {           \
    void function(Pass & pass, const Worker &worker); \
  }
KAOKEN_PASS(second, forward)
KAOKEN_PASS(integer, forward)
KAOKEN_PASS(scalar_bert_float32, forward)
KAOKEN_PASS(scalar_bert_int8, forward)
KAOKEN_PASS(scalar_t5_float32, forward)
KAOKEN_PASS(scalar_t5_int8, forward)
KAOKEN_PASS(scalar_gemma3_text_float32, forward)
KAOKEN_PASS(scalar_gemma3_text_int8, forward)
KAOKEN_PASS(scalar_olmo2_float32, forward)
KAOKEN_PASS(scalar_olmo2_int8, forward)
KAOKEN_PASS(scalar_gpt_neox_float32, forward)
KAOKEN_PASS(scalar_gpt_neox_int8, forward)
KAOKEN_PASS(scalar_t5_float32, encode)
KAOKEN_PASS(scalar_t5_int8, encode)

namespace {

using Run = void (*)(kaoken::Pass &pass, const kaoken::Worker &worker);

// Memory for the largest of the models.
int64_t count_waits(Run run, const Expected &expected) {
  const auto rows = static_cast<size_t>(expected.batch * expected.count);
  const auto cache = static_cast<size_t>(expected.batch * kBlocks * kPositions * 2 * kWidth);
  constexpr int64_t page_bytes = kBlocks * kaoken::kPage * 2 * kWidth * static_cast<int64_t>(sizeof(float));
  std::vector<int32_t> ids(rows), types(rows);
  const size_t floats = rows * (kWidth + 3 * kWidth + kWidth + kInner + kInner + kVocabulary) + 64;
  std::vector<float> memory(floats + 2 * cache);
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
    sequences.push_back({i * expected.count, expected.count, 0, expected.count, own, kSource, own, own});
    kept_sequences.push_back({i * outputs, outputs, expected.count - outputs, expected.count, own, kSource, own, own});
    for (int64_t row = expected.count - outputs; row < expected.count; ++row) kept.push_back(i * expected.count + row);
  }
  kaoken::Pass pass = {};
  pass.batch = {expected.batch * expected.count, expected.batch, sequences.data()};
  pass.outputs = {expected.batch * outputs, expected.batch, kept_sequences.data()};
  pass.kept = kept.data();
  pass.ids = ids.data();
  pass.types = types.data();
  pass.hidden = take(rows * kWidth);
  pass.qkv = take(rows * 3 * kWidth);
  pass.attended = take(rows * kWidth);
  pass.inner = take(rows * kInner);
  pass.inputs = take(rows * kInner);
  pass.cache = pass.window = {take(cache), page_bytes};
  pass.source = {take(cache), page_bytes};
  pass.output = take(rows * kVocabulary);
  waits = 0;
  run(pass, {0, expected.workers, nullptr});
  return waits;
}

// Returns how many rows of a table are wrong.
int check(const char *what, Run float32, Run int8, std::initializer_list<Expected> table) {
  int failures = 0;
  for (const Expected &each : table) {
    const int64_t found = count_waits(float32, each), found_int8 = count_waits(int8, each);
    if (found == each.float32 && found_int8 == each.int8) continue;
    ++failures;
    std::printf("%s: %d workers, %lld x %lld, logits %d: %lld and %lld barriers where %lld and %lld were expected\n",
                what, each.workers, static_cast<long long>(each.batch), static_cast<long long>(each.count), each.logits,
                static_cast<long long>(found), static_cast<long long>(found_int8), static_cast<long long>(each.float32),
                static_cast<long long>(each.int8));
  }
  return failures;
}

}  // namespace

int main() {
  using namespace kaoken::scalar;
  const Run gemma = model_scalar_gemma3_text_float32::forward, gemma_int8 = model_scalar_gemma3_text_int8::forward;
  const Run olmo = model_scalar_olmo2_float32::forward, olmo_int8 = model_scalar_olmo2_int8::forward;
  const Run neox = model_scalar_gpt_neox_float32::forward, neox_int8 = model_scalar_gpt_neox_int8::forward;
  const int failures = check("GPT-2", model_second::forward, model_integer::forward,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_LAST, 25, 25},
                                 {3, 1, 1, KAOKEN_LOGITS_LAST, 32, 32},
                                 {2, 4, 1, KAOKEN_LOGITS_LAST, 38, 50},
                                 {3, 4, 1, KAOKEN_LOGITS_LAST, 45, 57},
                                 {2, 1, 24, KAOKEN_LOGITS_LAST, 38, 48},
                                 {3, 1, 24, KAOKEN_LOGITS_LAST, 50, 60},
                                 {2, 2, 24, KAOKEN_LOGITS_ALL, 38, 50},
                                 {3, 2, 24, KAOKEN_LOGITS_ALL, 51, 63},
                                 {2, 1, 24, KAOKEN_LOGITS_NONE, 32, 42},
                                 {3, 1, 24, KAOKEN_LOGITS_NONE, 43, 53},
                             }) +
                       check("an encoder", model_scalar_bert_float32::forward, model_scalar_bert_int8::forward,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_ALL, 15, 15},
                                 {3, 1, 1, KAOKEN_LOGITS_ALL, 12, 12},
                                 {2, 1, 24, KAOKEN_LOGITS_ALL, 17, 22},
                                 {3, 1, 24, KAOKEN_LOGITS_ALL, 12, 17},
                                 {2, 4, 1, KAOKEN_LOGITS_ALL, 15, 20},
                                 {3, 4, 24, KAOKEN_LOGITS_ALL, 12, 17},
                             }) +
                       check("sources", model_scalar_t5_float32::encode, model_scalar_t5_int8::encode,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_NONE, 16, 16},
                                 {3, 1, 1, KAOKEN_LOGITS_NONE, 14, 14},
                                 {2, 2, 24, KAOKEN_LOGITS_NONE, 22, 28},
                                 {3, 2, 24, KAOKEN_LOGITS_NONE, 18, 24},
                             }) +
                       check("a decoder with sources", model_scalar_t5_float32::forward, model_scalar_t5_int8::forward,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_LAST, 18, 18},
                                 {3, 1, 1, KAOKEN_LOGITS_LAST, 13, 13},
                                 {2, 4, 1, KAOKEN_LOGITS_LAST, 25, 31},
                                 {3, 4, 1, KAOKEN_LOGITS_LAST, 20, 26},
                                 {3, 1, 24, KAOKEN_LOGITS_LAST, 19, 22},
                                 {2, 1, 24, KAOKEN_LOGITS_NONE, 15, 18},
                             }) +
                       check("sublayers side by side", neox, neox_int8,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_LAST, 5, 5},
                                 {4, 1, 1, KAOKEN_LOGITS_LAST, 8, 8},
                                 {2, 4, 1, KAOKEN_LOGITS_LAST, 8, 18},
                                 {4, 4, 1, KAOKEN_LOGITS_LAST, 11, 21},
                                 {2, 2, 24, KAOKEN_LOGITS_ALL, 8, 18},
                                 {4, 2, 24, KAOKEN_LOGITS_ALL, 13, 23},
                                 {2, 1, 24, KAOKEN_LOGITS_LAST, 9, 14},
                                 {2, 1, 24, KAOKEN_LOGITS_NONE, 5, 10},
                             }) +
                       check("normed branches", gemma, gemma_int8,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_LAST, 26, 26},
                                 {2, 4, 1, KAOKEN_LOGITS_LAST, 33, 39},
                                 {2, 2, 24, KAOKEN_LOGITS_ALL, 33, 39},
                                 {2, 1, 24, KAOKEN_LOGITS_LAST, 33, 37},
                                 {3, 1, 24, KAOKEN_LOGITS_NONE, 23, 27},
                             }) +
                       check("norms of all heads", olmo, olmo_int8,
                             {
                                 {2, 1, 1, KAOKEN_LOGITS_LAST, 26, 26},
                                 {3, 1, 1, KAOKEN_LOGITS_LAST, 23, 23},
                                 {2, 4, 1, KAOKEN_LOGITS_LAST, 31, 43},
                                 {3, 4, 1, KAOKEN_LOGITS_LAST, 28, 40},
                                 {2, 2, 24, KAOKEN_LOGITS_ALL, 31, 43},
                                 {3, 1, 24, KAOKEN_LOGITS_LAST, 28, 37},
                                 {3, 1, 24, KAOKEN_LOGITS_NONE, 19, 28},
                             });
  return failures ? 1 : 0;
}
