// Nothing is allocated on the decode path: this program counts what passes through malloc. Sanitizers have a malloc of
// their own, under which it only runs the same calls.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kaoken/kaoken.h"

KAOKEN_DECLARE_MODEL(first);
KAOKEN_DECLARE_MODEL(t5_float32);

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define KAOKEN_COUNTS 1
#endif

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

}  // namespace

#if KAOKEN_COUNTS
static void count() {
  if (counting) ++allocations;
}

// operator new of libstdc++ comes by here too.
extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t items, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
  count();
  return __libc_malloc(size);
}
void *calloc(size_t items, size_t size) {
  count();
  return __libc_calloc(items, size);
}
void *realloc(void *old, size_t size) {
  count();
  return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void **result, size_t alignment, size_t size) {
  count();
  *result = __libc_memalign(alignment, size);
  return 0;
}
}
#endif

namespace {

const kaoken_model_api *api = kaoken_model_first();
int failures = 0;

void require(bool condition, const char *what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s: %s\n", what, api->last_error());
  ++failures;
}

// Runs `step` twice to warm up, then counts over ten more.
template <class Step>
void require_no_allocation(const char *what, Step step) {
  for (int i = 0; i < 2; ++i) step();
  allocations = 0;
  counting = true;
  for (int i = 0; i < 10; ++i) step();
  counting = false;
  if (allocations) std::fprintf(stderr, "failed: %s allocates %d times in 10\n", what, allocations.load());
  failures += allocations != 0;
}

kaoken_session *make_session(int64_t batch, int threads) {
  const kaoken_session_options options = {sizeof options, batch, threads, nullptr, nullptr, 0, 0};
  kaoken_session *session = nullptr;
  require(api->session_create(&options, &session) == KAOKEN_OK, "session_create");
  if (api->info->kind == KAOKEN_ENCODER_DECODER) {
    const std::vector<int64_t> lengths(static_cast<size_t>(batch), 70), ids(static_cast<size_t>(70 * batch), 5);
    const kaoken_texts texts = {sizeof texts, batch, lengths.data(), ids.data(), nullptr, nullptr, 0, nullptr, nullptr};
    require_no_allocation("session_encode",
                          [&] { require(api->session_encode(session, &texts) == KAOKEN_OK, "encode"); });
  }
  return session;
}

void test_append(int64_t batch, int threads) {
  kaoken_session *session = make_session(batch, threads);
  const std::vector<int64_t> ids(static_cast<size_t>(batch), 7);
  std::vector<float> logits(static_cast<size_t>(batch * api->info->vocab_size));
  require_no_allocation("session_append", [&] {
    require(api->session_append(session, ids.data(), 1, KAOKEN_LOGITS_LAST, logits.data()) == KAOKEN_OK, "append");
  });
  require_no_allocation("session_rewind", [&] { require(api->session_rewind(session, 5) == KAOKEN_OK, "rewind"); });
  api->session_destroy(session);
}

void test_generation(const char *what, int64_t batch, const kaoken_generation_options &options) {
  kaoken_session *session = make_session(batch, 2);
  const std::vector<int64_t> prompt(static_cast<size_t>(3 * batch), 9);
  kaoken_generation *generation = nullptr;
  require(api->generation_create(session, prompt.data(), 3, &options, &generation) == KAOKEN_OK, what);
  std::vector<int64_t> tokens(static_cast<size_t>(batch));
  require_no_allocation(what, [&] {
    int32_t done = 0;
    require(api->generation_next(generation, tokens.data(), &done) == KAOKEN_OK, what);
  });
  api->generation_destroy(generation);
  api->session_destroy(session);
}

void test_generations(int64_t batch) {
  kaoken_generation_options options = {};
  options.size = sizeof options;
  options.max_new_tokens = 100;
  test_generation("greedy generation", batch, options);
  options.do_sample = 1;
  options.temperature = 1.2f;
  options.top_p = 1;
  options.seed = 3;
  test_generation("sampling", batch, options);
  options.top_k = 20;
  options.top_p = 0.9f;
  test_generation("sampling from the best", batch, options);
}

// That the counter counts.
void test_an_allocation_is_seen() {
  counting = true;
  delete new std::vector<int>(3);
  counting = false;
#if KAOKEN_COUNTS
  require(allocations == 2, "two allocations of a vector are seen");
#endif
}

}  // namespace

int main() {
  test_an_allocation_is_seen();
  for (const kaoken_model_api *model : {kaoken_model_first(), kaoken_model_t5_float32()}) {
    api = model;
    for (const int64_t batch : {1, 3}) {
      for (const int threads : {1, 2}) test_append(batch, threads);
      test_generations(batch);
    }
  }
  return failures ? 1 : 0;
}
