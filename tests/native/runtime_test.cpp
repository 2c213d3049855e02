// The runtime through its C ABI: errors, determinism, threads, fork, generation. Run under each sanitizer.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "crowd.h"
#include "kaoken/kaoken.h"
#include "machine.h"
#include "sampling.h"
#include "share.h"

KAOKEN_DECLARE_MODEL(first);
KAOKEN_DECLARE_MODEL(second);
KAOKEN_DECLARE_MODEL(narrow);
KAOKEN_DECLARE_MODEL(grouped);
KAOKEN_DECLARE_MODEL(bert_float32);
KAOKEN_DECLARE_MODEL(bert_int8);
KAOKEN_DECLARE_MODEL(masked_float32);
KAOKEN_DECLARE_MODEL(masked_int8);
KAOKEN_DECLARE_MODEL(classifier_float32);
KAOKEN_DECLARE_MODEL(classifier_int8);
KAOKEN_DECLARE_MODEL(t5_float32);
KAOKEN_DECLARE_MODEL(t5_int8);
KAOKEN_DECLARE_MODEL(gemma3_text_float32);
KAOKEN_DECLARE_MODEL(gemma3_text_int8);
KAOKEN_DECLARE_MODEL(windowed_float32);
KAOKEN_DECLARE_MODEL(windowed_int8);
KAOKEN_DECLARE_MODEL(gpt_neox_float32);
KAOKEN_DECLARE_MODEL(gpt_neox_int8);
KAOKEN_DECLARE_MODEL(olmo2_float32);
KAOKEN_DECLARE_MODEL(olmo2_int8);

namespace {

const kaoken_model_api *const api = kaoken_model_first();
int failures = 0;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                                  \
    }                                                                              \
  } while (0)

using Ids = std::vector<int64_t>;
using Logits = std::vector<float>;

Ids random_ids(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  Ids ids(static_cast<size_t>(count));
  for (int64_t &id : ids) id = static_cast<int64_t>(random() % static_cast<unsigned>(api->info->vocab_size));
  return ids;
}

// A session that destroys itself.
class Session {
 public:
  explicit Session(int64_t batch = 1, int threads = 2, const char *isa = nullptr, const kaoken_model_api *model = api)
      : model_(model) {
    const kaoken_session_options options = {sizeof options, batch, threads, isa, nullptr, 0, 0};
    status = model->session_create(&options, &handle);
  }
  ~Session() {
    if (handle) model_->session_destroy(handle);
  }
  Session(const Session &) = delete;

  Logits append(const Ids &ids, int64_t count) {
    const int64_t batch = static_cast<int64_t>(ids.size()) / count;
    Logits logits(static_cast<size_t>(batch * count * model_->info->vocab_size));
    CHECK(model_->session_append(handle, ids.data(), count, KAOKEN_LOGITS_ALL, logits.data()) == KAOKEN_OK);
    return logits;
  }

  kaoken_session *handle = nullptr;
  kaoken_status status;

 private:
  const kaoken_model_api *model_;
};

bool same_bits(const Logits &a, const Logits &b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Logits logits_of(const Ids &ids, int threads, const char *isa = nullptr) {
  Session session(1, threads, isa);
  return session.append(ids, static_cast<int64_t>(ids.size()));
}

kaoken_generation_options greedy(int64_t max_new_tokens) {
  kaoken_generation_options options = {};
  options.size = sizeof options;
  options.max_new_tokens = max_new_tokens;
  return options;
}

Ids generate(kaoken_session *session, const Ids &prompt, const kaoken_generation_options &options) {
  kaoken_generation *generation = nullptr;
  Ids tokens;
  CHECK(api->generation_create(session, prompt.data(), static_cast<int64_t>(prompt.size()), &options, &generation) ==
        KAOKEN_OK);
  for (int32_t done = 0; !done;) {
    tokens.push_back(-1);
    if (api->generation_next(generation, &tokens.back(), &done) != KAOKEN_OK) break;
  }
  api->generation_destroy(generation);
  return tokens;
}

bool message_has(const char *text) { return std::strstr(api->last_error(), text) != nullptr; }

void test_errors_are_reported_and_change_nothing() {
  kaoken_session *handle = nullptr;
  CHECK(api->session_create(nullptr, &handle) == KAOKEN_INVALID_ARGUMENT);
  kaoken_session_options options = {offsetof(kaoken_session_options, arena) - 1, 1, 1, nullptr, nullptr, 0, 0};
  CHECK(api->session_create(&options, &handle) == KAOKEN_INVALID_ARGUMENT && message_has("size"));
  CHECK(Session(0).status == KAOKEN_INVALID_ARGUMENT && message_has("batch"));
  CHECK(Session(1, -1).status == KAOKEN_INVALID_ARGUMENT && message_has("threads"));
  CHECK(Session(1, 1, "pentium").status == KAOKEN_UNSUPPORTED_ISA && message_has("pentium"));

  Session session;
  const Ids ids = random_ids(10, 1);
  Logits logits(static_cast<size_t>(api->info->vocab_size));
  session.append(ids, 10);
  Ids wrong = ids;
  wrong[7] = api->info->vocab_size;
  CHECK(api->session_append(session.handle, wrong.data(), 10, KAOKEN_LOGITS_LAST, logits.data()) ==
            KAOKEN_TOKEN_OUT_OF_RANGE &&
        message_has("position 7"));
  CHECK(api->session_append(session.handle, ids.data(), 0, KAOKEN_LOGITS_LAST, logits.data()) ==
        KAOKEN_INVALID_ARGUMENT);
  CHECK(api->session_append(session.handle, nullptr, 1, KAOKEN_LOGITS_LAST, logits.data()) == KAOKEN_INVALID_ARGUMENT);
  CHECK(api->session_append(session.handle, ids.data(), 1, 3, logits.data()) == KAOKEN_INVALID_ARGUMENT);
  CHECK(api->session_append(session.handle, ids.data(), 1, KAOKEN_LOGITS_LAST, nullptr) == KAOKEN_INVALID_ARGUMENT);
  CHECK(api->session_rewind(session.handle, 11) == KAOKEN_INVALID_ARGUMENT);
  const Ids many = random_ids(api->info->n_positions, 2);
  CHECK(api->session_append(session.handle, many.data(), api->info->n_positions, KAOKEN_LOGITS_NONE, nullptr) ==
        KAOKEN_CONTEXT_FULL);
  CHECK(api->session_length(session.handle) == 10);
}

void test_bits_do_not_depend_on_threads_batch_or_split() {
  const int64_t count = std::min<int64_t>(70, api->info->n_positions);
  const int64_t vocab = api->info->vocab_size;
  const Ids ids = random_ids(count, 3);
  const Logits expected = logits_of(ids, 1);
  for (int threads : {2, 3, 4}) CHECK(same_bits(expected, logits_of(ids, threads)));

  Session split;
  Logits pieces;
  for (int64_t start = 0, step = 1; start < count; start += step, step = 1 + start % 37) {
    step = std::min(step, count - start);
    const Logits piece = split.append(Ids(ids.begin() + start, ids.begin() + start + step), step);
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  CHECK(same_bits(expected, pieces));

  constexpr int64_t batch = 3;
  Ids rows = random_ids(batch * count, 4);
  std::copy(ids.begin(), ids.end(), rows.begin() + count);
  const Logits all = Session(batch).append(rows, count);
  CHECK(same_bits(expected, Logits(all.begin() + count * vocab, all.begin() + 2 * count * vocab)));
}

void test_rewind_forgets() {
  const Ids ids = random_ids(60, 5);
  Session session;
  session.append(random_ids(100, 6), 100);
  CHECK(api->session_rewind(session.handle, 0) == KAOKEN_OK);
  CHECK(same_bits(logits_of(ids, 2), session.append(ids, 60)));
}

void test_each_isa_runs_when_it_is_asked_for() {
  const std::string isas = api->info->isas;
  const Ids ids = random_ids(20, 7);
  const Logits expected = logits_of(ids, 1, "scalar");
  for (size_t start = 0; start < isas.size();
       start = isas.find(',', start) == std::string::npos ? isas.size() : isas.find(',', start) + 1) {
    const std::string isa = isas.substr(start, isas.find(',', start) - start);
    Session session(1, 2, isa.c_str());
    if (session.status == KAOKEN_UNSUPPORTED_ISA) {
      std::fprintf(stderr, "this machine lacks %s\n", isa.c_str());
      continue;
    }
    const Logits logits = session.append(ids, 20);
    CHECK(isa == api->session_isa(session.handle));
    CHECK(isa + ": isa asks for it" == api->session_isa_reason(session.handle));
    CHECK(isa == api->session_executed_isa(session.handle));
    for (size_t i = 0; i < logits.size(); ++i) CHECK(std::abs(logits[i] - expected[i]) < 1e-3f);
  }
}

void test_sessions_in_two_threads() {
  const Ids a = random_ids(90, 8), b = random_ids(90, 9);
  const Logits expected_a = logits_of(a, 2), expected_b = logits_of(b, 2);
  std::atomic<int> wrong{0};
  const auto work = [&](const Ids &ids, const Logits &expected) {
    for (int i = 0; i < 3; ++i) wrong += !same_bits(expected, logits_of(ids, 2));
  };
  std::thread other(work, a, expected_a);
  work(b, expected_b);
  other.join();
  CHECK(wrong == 0);
}

void test_two_models_in_one_program() {
  const kaoken_model_api *other = kaoken_model_second();
  CHECK(std::string(api->info->name) == "first" && std::string(other->info->name) == "second");
  const Ids ids = random_ids(30, 10);
  Session session(1, 2, "scalar", other);
  CHECK(same_bits(logits_of(ids, 2, "scalar"), session.append(ids, 30)));
}

// A prompt for two sequences by two threads, and position by position by three, in every instruction set of the library
// that this machine has.
void require_steps_like_a_prompt(const kaoken_model_api *model) {
  Ids ids = random_ids(2 * 70, 12);
  for (int64_t &id : ids) id %= model->info->vocab_size;
  std::istringstream isas(model->info->isas);
  for (std::string isa; std::getline(isas, isa, ',');) {
    Session whole(2, 2, isa.c_str(), model), split(2, 3, isa.c_str(), model);
    if (whole.status == KAOKEN_UNSUPPORTED_ISA) continue;
    const Logits expected = whole.append(ids, 70);
    const size_t vocabulary = static_cast<size_t>(model->info->vocab_size);
    for (size_t position = 0; position < 70; ++position) {
      const Logits step = split.append({ids[position], ids[70 + position]}, 1);
      for (size_t row = 0; row < 2; ++row) {
        CHECK(std::memcmp(&step[row * vocabulary], &expected[(row * 70 + position) * vocabulary],
                          vocabulary * sizeof(float)) == 0);
      }
    }
  }
}

// int4 and int8 matrices and an int8 cache.
void test_narrow_types_keep_their_bits() { require_steps_like_a_prompt(kaoken_model_narrow()); }

// A Llama whose three groups of heads come out even for three threads and not for two.
void test_grouped_heads_keep_their_bits() { require_steps_like_a_prompt(kaoken_model_grouped()); }

// What several workers compute is what one computes: a part of a prompt of which the last block goes on with one row, a
// part of which it goes on with none, rows by themselves, and several sequences with a row each.
void require_bits_of_one_worker(const kaoken_model_api *model) {
  const auto vocabulary = static_cast<size_t>(model->info->vocab_size);
  Ids ids = random_ids(2 * 75, 15);
  for (int64_t &id : ids) id %= model->info->vocab_size;
  Session alone(2, 1, nullptr, model);
  const Logits expected = alone.append(ids, 75);
  const auto check = [&](const Logits &found, size_t sequence, size_t position) {
    CHECK(std::memcmp(&found[0], &expected[(sequence * 75 + position) * vocabulary], vocabulary * sizeof(float)) == 0);
  };
  for (const int threads : {2, 3, 4}) {
    Session session(1, threads, nullptr, model), both(2, threads, nullptr, model);
    Logits logits(vocabulary);
    CHECK(model->session_append(session.handle, ids.data(), 40, KAOKEN_LOGITS_LAST, logits.data()) == KAOKEN_OK);
    check(logits, 0, 39);
    CHECK(model->session_append(session.handle, ids.data() + 40, 30, KAOKEN_LOGITS_NONE, nullptr) == KAOKEN_OK);
    for (size_t position = 70; position < 75; ++position) check(session.append({ids[position]}, 1), 0, position);
    CHECK(same_bits(both.append(ids, 75), expected));
  }
}

// Attention and MLP side by side, with norms that are one and, in int8, with two.
void test_parallel_sublayers_keep_their_bits() {
  for (const kaoken_model_api *model : {kaoken_model_gpt_neox_float32(), kaoken_model_gpt_neox_int8()}) {
    require_steps_like_a_prompt(model);
    require_bits_of_one_worker(model);
  }
}

// Norms of rows that all workers have made: of what sublayers add, and of all queries and all keys.
void test_norms_of_rows_keep_their_bits() {
  for (const kaoken_model_api *model : {kaoken_model_gemma3_text_float32(), kaoken_model_gemma3_text_int8(),
                                        kaoken_model_olmo2_float32(), kaoken_model_olmo2_int8()}) {
    require_steps_like_a_prompt(model);
    require_bits_of_one_worker(model);
  }
}

// Texts of many windows of 100 positions, of which pages are used again: splits, forks, and rewinds near and far.
void test_windows_keep_their_bits() {
  for (const kaoken_model_api *model : {kaoken_model_windowed_float32(), kaoken_model_windowed_int8()}) {
    constexpr int64_t count = 1200;
    const auto vocabulary = static_cast<size_t>(model->info->vocab_size);
    Ids ids = random_ids(count, 18);
    for (int64_t &id : ids) id %= model->info->vocab_size;
    const Logits expected = Session(1, 1, nullptr, model).append(ids, count);
    Session session(3, 2, nullptr, model);
    Logits logits(3 * vocabulary);
    // Appends the next positions of some slots, which have as many as slot 1.
    const auto go_on = [&](const Ids &slots, int64_t steps) {
      const int64_t begin = model->session_slot_length(session.handle, 1);
      const Ids lengths(slots.size(), steps);
      Ids next;
      for (size_t i = 0; i < slots.size(); ++i) next.insert(next.end(), &ids[begin], &ids[begin] + steps);
      const kaoken_step step = {
          sizeof step,  static_cast<int64_t>(slots.size()), slots.data(), lengths.data(), next.data(), nullptr,
          logits.data()};
      CHECK(model->session_step(session.handle, &step) == KAOKEN_OK);
      for (size_t i = 0; i < slots.size(); ++i) {
        CHECK(std::memcmp(&logits[i * vocabulary], &expected[static_cast<size_t>(begin + steps - 1) * vocabulary],
                          vocabulary * sizeof(float)) == 0);
      }
    };
    go_on({1}, 700);
    CHECK(model->session_fork(session.handle, 1, 0) == KAOKEN_OK);
    for (int64_t length = 700; length < 840; ++length) go_on({0, 1}, 1);
    CHECK(model->session_fork(session.handle, 0, 2) == KAOKEN_OK);
    go_on({0, 1, 2}, 360);
    CHECK(model->session_rewind(session.handle, 1200 - 512) == KAOKEN_OK);
    go_on({0, 1, 2}, 512);

    // 11 pages are kept of 19, so the first that is left begins at 512.
    const int64_t earliest = 512 + 99;
    CHECK(model->session_slot_earliest(session.handle, 1) == earliest);
    CHECK(model->session_slot_earliest(session.handle, 3) == -1);
    CHECK(model->session_slot_rewind(session.handle, 1, earliest - 1) == KAOKEN_INVALID_ARGUMENT);
    CHECK(std::strstr(model->last_error(), "rewind to 0 and append the text again"));
    CHECK(model->session_rewind(session.handle, earliest - 1) == KAOKEN_INVALID_ARGUMENT);
    CHECK(model->session_length(session.handle) == count);
    CHECK(model->session_rewind(session.handle, earliest) == KAOKEN_OK);
    go_on({0, 1, 2}, 90);
    CHECK(model->session_rewind(session.handle, 0) == KAOKEN_OK);
    CHECK(model->session_slot_earliest(session.handle, 1) == 0);
    go_on({0, 2}, count);

    size_t whole = 0, cut = 0, little = 0;
    kaoken_session_options options = {sizeof options, 8, 1, nullptr, nullptr, 0, 0};
    CHECK(model->session_size(&options, &whole) == KAOKEN_OK);
    options.n_positions = 11 * 64;
    CHECK(model->session_size(&options, &cut) == KAOKEN_OK);
    options.n_positions = 64;
    CHECK(model->session_size(&options, &little) == KAOKEN_OK);
    CHECK(whole == cut && little < cut);  // every block has a window
  }
}

void test_memory_of_an_ended_session_is_used_again() {
  const Ids ids = random_ids(2 * 30, 13);
  Logits expected;
  {
    Session session(2);
    expected = session.append(ids, 30);
  }
  {
    Session same(2), another(2);
    CHECK(same_bits(expected, same.append(ids, 30)));
    CHECK(same_bits(expected, another.append(ids, 30)));
  }
  Session single(1);
  CHECK(same_bits(Logits(expected.begin(), expected.begin() + static_cast<int64_t>(expected.size()) / 2),
                  single.append(Ids(ids.begin(), ids.begin() + 30), 30)));
}

// ThreadSanitizer does not follow a fork of several threads.
#if !defined(__SANITIZE_THREAD__)
void test_fork_while_another_thread_generates() {
  Session parents;
  const Ids ids = random_ids(40, 11);
  const Logits expected = parents.append(ids, 40);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) logits_of(ids, 2);
  });
  const pid_t child = fork();
  if (child == 0) {
    const bool fresh = same_bits(expected, logits_of(ids, 2));
    const bool inherited =
        api->session_rewind(parents.handle, 0) == KAOKEN_OK && same_bits(expected, parents.append(ids, 40));
    _exit(fresh && inherited ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  stop = true;
  busy.join();
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

void test_rounding_mode_is_ours_and_restored() {
  const Ids ids = random_ids(20, 12);
  const Logits expected = logits_of(ids, 2);
  std::fesetround(FE_UPWARD);
  const Logits upward = logits_of(ids, 2);
  CHECK(std::fegetround() == FE_UPWARD);
  std::fesetround(FE_TONEAREST);
  CHECK(same_bits(expected, upward));
}

void test_greedy_generation_takes_the_largest_logit() {
  const Ids prompt = random_ids(5, 13);
  Session session;
  Ids sequence = prompt;
  for (const int64_t token : generate(session.handle, prompt, greedy(12))) {
    const Logits logits = logits_of(sequence, 1);
    const auto last = logits.end() - api->info->vocab_size;
    CHECK(token == std::max_element(last, logits.end()) - last);
    sequence.push_back(token);
  }
  CHECK(sequence.size() == 17);
}

void test_generation_stops_at_eos_and_at_the_last_position() {
  const Ids prompt = random_ids(5, 14);
  Session first, second, third;
  const Ids tokens = generate(first.handle, prompt, greedy(20));
  kaoken_generation_options options = greedy(20);
  const int64_t eos = tokens[3];
  options.eos_token_ids = &eos;
  options.eos_count = 1;
  const Ids stopped = generate(second.handle, prompt, options);
  CHECK(stopped == Ids(tokens.begin(), std::find(tokens.begin(), tokens.end(), eos) + 1));

  const Ids longest = random_ids(api->info->n_positions - 3, 15);
  CHECK(generate(third.handle, longest, greedy(100)).size() == 3);
}

void test_a_seed_repeats_its_draws() {
  const Ids prompt = random_ids(5, 16);
  kaoken_generation_options options = greedy(30);
  options.do_sample = 1;
  options.temperature = 1.5f;
  options.top_k = 50;
  options.top_p = 0.9f;
  options.seed = 42;
  Session first, second, third;
  const Ids tokens = generate(first.handle, prompt, options);
  CHECK(tokens == generate(second.handle, prompt, options));
  options.seed = 43;
  CHECK(tokens != generate(third.handle, prompt, options));
}

void test_generation_options_are_checked() {
  Session session;
  const Ids prompt = random_ids(5, 17);
  kaoken_generation *generation = nullptr;
  const auto refused = [&](kaoken_generation_options options, const char *text) {
    CHECK(api->generation_create(session.handle, prompt.data(), 5, &options, &generation) == KAOKEN_INVALID_ARGUMENT);
    CHECK(message_has(text));
    CHECK(api->session_length(session.handle) == 0);
  };
  kaoken_generation_options options = greedy(0);
  refused(options, "max_new_tokens");
  options = greedy(1);
  options.do_sample = 1;
  refused(options, "temperature");
  options.temperature = 1;
  options.top_k = -1;
  refused(options, "top_k");
  options.top_k = 0;
  options.top_p = 1.5f;
  refused(options, "top_p");
}

void write_file(const std::filesystem::path &path, const char *text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

void test_cgroup_limits_are_read() {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / ("kaoken-" + std::to_string(getpid()));
  const auto processors = [&](const char *groups) {
    write_file(root / "cgroup", groups);
    return kaoken::cgroup_processors(root / "cgroup", root);
  };
  CHECK(processors("0::/a/b\n") == 0);
  write_file(root / "a/cpu.max", "250000 100000\n");
  write_file(root / "a/b/cpu.max", "max 100000\n");
  CHECK(processors("0::/a/b\n") == 3);
  CHECK(processors("0::/\n") == 0);
  write_file(root / "cpu/c/cpu.cfs_quota_us", "200000\n");
  write_file(root / "cpu/c/cpu.cfs_period_us", "100000\n");
  CHECK(processors("5:cpuset:/a\n4:cpu,cpuacct:/c/d\n") == 2);
  write_file(root / "cpu/c/cpu.cfs_quota_us", "-1\n");
  CHECK(processors("4:cpu,cpuacct:/c/d\n") == 0);
  std::filesystem::remove_all(root);
}

void test_available_memory_is_the_least_that_anything_leaves() {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / ("kaoken-" + std::to_string(getpid()));
  const auto available = [&](const char *groups) {
    write_file(root / "cgroup", groups);
    return kaoken::available_memory(root / "meminfo", root / "cgroup", root);
  };
  write_file(root / "meminfo", "MemTotal: 4000 kB\nMemFree: 100 kB\nMemAvailable:  3000 kB\n");
  CHECK(available("0::/a/b\n") == 3000 * 1024);
  write_file(root / "a/memory.max", "1000000\n");
  write_file(root / "a/memory.current", "700000\n");
  write_file(root / "a/memory.stat", "anon 5\ninactive_file 20000\nactive_file 25000\nslab_reclaimable 5000\n");
  write_file(root / "a/b/memory.max", "max\n");
  CHECK(available("0::/a/b\n") == 350000);
  write_file(root / "memory/c/memory.limit_in_bytes", "2000\n");
  write_file(root / "memory/c/memory.usage_in_bytes", "2500\n");
  CHECK(available("4:memory:/c/d\n") == 0);
  CHECK(available("4:cpu:/c\n") == 3000 * 1024);
  std::filesystem::remove_all(root);
  CHECK(std::isinf(available("0::/\n")));
  std::filesystem::remove_all(root);
}

void test_a_session_of_fewer_positions() {
  kaoken_session_options options = {sizeof options, 1, 1, nullptr, nullptr, 0, 0};
  size_t whole = 0, bytes = 0;
  CHECK(api->session_size(&options, &whole) == KAOKEN_OK);
  options.n_positions = 5;
  CHECK(api->session_size(&options, &bytes) == KAOKEN_OK && bytes < whole);
  kaoken_session *session = nullptr;
  CHECK(api->session_create(&options, &session) == KAOKEN_OK && api->session_positions(session) == 5);
  const Ids ids = random_ids(6, 31);
  CHECK(api->session_append(session, ids.data(), 6, KAOKEN_LOGITS_NONE, nullptr) == KAOKEN_CONTEXT_FULL);
  CHECK(message_has("6 tokens behind 0 pass the session's 5 positions"));
  CHECK(generate(session, {ids[0], ids[1]}, greedy(30)).size() == 3);
  api->session_destroy(session);
  for (const int64_t wrong : {int64_t{-1}, api->info->n_positions + 1}) {
    options.n_positions = wrong;
    CHECK(api->session_create(&options, &session) == KAOKEN_INVALID_ARGUMENT && message_has("it must be from 1 to"));
    CHECK(api->session_size(&options, &bytes) == KAOKEN_INVALID_ARGUMENT);
  }
}

void test_a_batch_that_memory_cannot_hold_is_refused_untouched() {
  constexpr int64_t batch = 1 << 20;
  Session session(batch);
#if defined(__SANITIZE_THREAD__)  // which cannot map so large an arena
  if (session.status == KAOKEN_OUT_OF_MEMORY) return;
#endif
  CHECK(session.status == KAOKEN_OK);
  const Ids ids = random_ids(batch, 18);
  float none = 0;  // of logits that memory cannot hold either, and that are not touched
  CHECK(api->session_append(session.handle, ids.data(), 1, KAOKEN_LOGITS_LAST, &none) == KAOKEN_OUT_OF_MEMORY);
  CHECK(api->session_append(session.handle, ids.data(), 1, KAOKEN_LOGITS_NONE, nullptr) == KAOKEN_OUT_OF_MEMORY);
  CHECK(message_has("a batch of 1048576 with 1 positions needs") && message_has("smaller batch"));
  kaoken_generation *generation = nullptr;
  const kaoken_generation_options options = greedy(30);
  CHECK(api->generation_create(session.handle, ids.data(), 1, &options, &generation) == KAOKEN_OUT_OF_MEMORY);
  CHECK(message_has("with 31 positions"));
  CHECK(api->session_length(session.handle) == 0);
}

void test_calls_share_the_cores() {
  using kaoken::ShareOfCores;
  static kaoken::Calls calls, others;
  kaoken::share_cores(&calls);
  auto first = std::make_unique<ShareOfCores>(8, 8);
  const ShareOfCores second(8, 8);
  CHECK(first->threads() == 8);
  CHECK(second.threads() == 1);  // its own: nothing is free
  first = nullptr;
  {
    const ShareOfCores third(8, 8), narrow(1, 8), fourth(8, 8);
    CHECK(third.threads() == 4);  // half, as there are two
    CHECK(narrow.threads() == 1);
    CHECK(fourth.threads() == 2);
  }
  kaoken::share_cores(&others);
  const ShareOfCores more_than_there_are(5, 2);
  CHECK(more_than_there_are.threads() == 5);
  CHECK((calls.now & 0xffff) == 1 && (others.now & 0xffff) == 5);
}

void test_a_crowd_is_noticed_and_forgotten() {
  constexpr int64_t ms = 1000000;
  kaoken::Crowd crowd;
  int64_t now = 0;
  const auto calls = [&](int count, int64_t computed, int64_t preemptions) {
    for (int i = 0; i < count && !crowd.is_here(now); ++i)
      crowd.observe(now += 10 * ms, 10 * ms, computed, preemptions);
  };
  calls(100, 10 * ms, 1);  // all of the time
  calls(100, 2 * ms, 0);   // waiting, but for no other process
  calls(1, 0, 5);          // once
  calls(100, 7 * ms, 3);   // a little
  CHECK(!crowd.is_here(now));
  for (int64_t pause = 100; pause < 5000; pause *= 2) {  // longer and longer
    const int64_t before = now;
    calls(100, 2 * ms, 3);
    CHECK(now - before <= 60 * ms);
    const int64_t end = now + std::min<int64_t>(pause, 1600) * ms;
    CHECK(crowd.is_here(end - 1) && !crowd.is_here(end));
    now = end;
  }
  calls(100, 10 * ms, 0);
  calls(100, 2 * ms, 3);
  CHECK(crowd.is_here(now + 99 * ms) && !crowd.is_here(now + 100 * ms));
}

void test_many_callers_keep_their_bits() {
  const Ids ids = random_ids(50, 19);
  const Logits expected = logits_of(ids, 1);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 3; ++i) wrong += !same_bits(expected, logits_of(ids, 3));
    });
  }
  for (std::thread &caller : callers) caller.join();
  CHECK(wrong == 0);
}

#if defined(__linux__)
std::set<std::vector<int>> processors_of_threads() {
  std::set<std::vector<int>> found;
  for (const auto &task : std::filesystem::directory_iterator("/proc/self/task")) {
    cpu_set_t set;
    if (sched_getaffinity(std::stoi(task.path().filename()), sizeof set, &set) != 0) continue;
    std::vector<int> processors;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) processors.push_back(i);
    }
    found.insert(processors);
  }
  return found;
}

void test_helpers_may_use_what_their_session_may() {
  const std::vector<int> allowed = kaoken::allowed_processors();
  if (allowed.size() < 2) return;
  Session session(1, 7);  // more than any test before has hired
  const Ids ids = random_ids(20, 20);
  std::thread([&] {
    kaoken::use_processors({allowed[0]});
    session.append(ids, 20);
  }).join();
  CHECK(processors_of_threads() == std::set<std::vector<int>>{allowed});
}
#endif

void test_hardware_threads_of_a_core_count_once() {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / ("kaoken-" + std::to_string(getpid()));
  const char *siblings[] = {"0,2\n", "1,3\n", "0,2\n", "1,3\n"};
  for (int i = 0; i < 4; ++i) {
    write_file(root / ("cpu" + std::to_string(i)) / "topology/thread_siblings_list", siblings[i]);
  }
  CHECK(kaoken::cores({0, 1, 2, 3}, root) == 2);
  CHECK(kaoken::cores({0, 2}, root) == 1);
  CHECK(kaoken::cores({7, 8}, root) == 2);  // nothing is known of them
  std::filesystem::remove_all(root);
}

Logits step(const kaoken_model_api *model, kaoken_session *session, const Ids &slots, const Ids &lengths,
            const Ids &ids) {
  Logits logits(ids.size() * static_cast<size_t>(model->info->vocab_size));
  const kaoken_step step = {
      sizeof step,  static_cast<int64_t>(slots.size()), slots.data(), lengths.data(), ids.data(), lengths.data(),
      logits.data()};
  CHECK(model->session_step(session, &step) == KAOKEN_OK);
  return logits;
}

// Slots that go on, go back and are copied: each holds what a session of its own would, in every kind of model.
void test_slots_keep_their_bits() {
  for (const kaoken_model_api *model : {api, kaoken_model_narrow(), kaoken_model_grouped()}) {
    for (int threads : {1, 2, 3}) {
      Session session(3, threads, nullptr, model);
      Ids ids = random_ids(40, 7);
      for (int64_t &id : ids) id %= model->info->vocab_size;
      step(model, session.handle, {0, 1, 2}, {20, 1, 7}, {ids.begin(), ids.begin() + 28});
      CHECK(model->session_fork(session.handle, 0, 1) == KAOKEN_OK);
      CHECK(model->session_slot_rewind(session.handle, 0, 3) == KAOKEN_OK);
      const Ids more = {1, 2, 3};
      const Logits found = step(model, session.handle, {0, 1}, {2, 1}, more);
      CHECK(model->session_slot_length(session.handle, 0) == 5 && model->session_slot_length(session.handle, 1) == 21);
      CHECK(model->session_slot_length(session.handle, 2) == 7 && model->session_length(session.handle) == 21);
      CHECK(model->session_slot_length(session.handle, 3) == -1 &&
            model->session_slot_length(session.handle, -1) == -1);

      const auto vocab_size = static_cast<int64_t>(model->info->vocab_size);
      Session first(1, 1, nullptr, model), second(1, 1, nullptr, model);
      first.append({ids.begin(), ids.begin() + 3}, 3);
      second.append({ids.begin(), ids.begin() + 20}, 20);
      CHECK(same_bits(first.append({1, 2}, 2), {found.begin(), found.begin() + 2 * vocab_size}));
      CHECK(same_bits(second.append({3}, 1), {found.begin() + 2 * vocab_size, found.end()}));
    }
  }
}

void test_steps_are_checked_and_change_nothing() {
  Session session(2);
  Logits logits(static_cast<size_t>(2 * api->info->vocab_size));
  const Ids ids = {1, 2, 3}, lengths = {1, 2}, none = {1, 0}, many = {2, 1}, swapped = {1, 0}, outside = {0, 2};
  const kaoken_step good = {sizeof good, 2, nullptr, lengths.data(), ids.data(), nullptr, logits.data()};
  const auto refused = [&](kaoken_step step, const char *message) {
    return api->session_step(session.handle, &step) == KAOKEN_INVALID_ARGUMENT && message_has(message);
  };
  kaoken_step step = good;
  CHECK(refused((step.size = sizeof step - 1, step), "size"));
  step = good;
  CHECK(refused((step.count = 3, step), "count") && refused((step.count = 0, step), "count"));
  step = good;
  CHECK(refused((step.slots = swapped.data(), step), "ascending"));
  CHECK(refused((step.slots = outside.data(), step), "no slot 2"));
  step = good;
  CHECK(refused((step.lengths = none.data(), step), "no token ids") && refused((step.lengths = nullptr, step), "null"));
  step = good;
  CHECK(refused((step.ids = nullptr, step), "ids is null"));
  step = good;
  CHECK(refused((step.outputs = many.data(), step), "outputs is 2"));
  step = good;
  CHECK(refused((step.logits = nullptr, step), "logits is null"));
  CHECK(api->session_step(session.handle, nullptr) == KAOKEN_INVALID_ARGUMENT && message_has("step is null"));
  CHECK(api->session_fork(session.handle, 0, 2) == KAOKEN_INVALID_ARGUMENT && message_has("no slot 2"));
  CHECK(api->session_slot_rewind(session.handle, 1, 1) == KAOKEN_INVALID_ARGUMENT && message_has("rewind to 1"));
  CHECK(api->session_length(session.handle) == 0);
  CHECK(api->session_step(session.handle, &good) == KAOKEN_OK && api->session_length(session.handle) == 2);
}

void test_ragged_generation_ends_each_by_itself() {
  const int64_t n_positions = api->info->n_positions;
  const Ids lengths = {3, n_positions - 2, n_positions};
  const Ids ids = random_ids(lengths[0] + lengths[1] + lengths[2], 9);
  Session session(3);
  kaoken_generation_options options = greedy(5);
  options.pad_token_id = -1;
  kaoken_generation *generation = nullptr;
  CHECK(api->generation_create_ragged(session.handle, ids.data(), lengths.data(), &options, &generation) == KAOKEN_OK);
  Ids found[3];
  for (int32_t done = 0; !done;) {
    int64_t tokens[3];
    CHECK(api->generation_next(generation, tokens, &done) == KAOKEN_OK);
    for (int row = 0; row < 3; ++row) found[row].push_back(tokens[row]);
  }
  api->generation_destroy(generation);
  Session alone;
  CHECK(found[0] == generate(alone.handle, {ids.begin(), ids.begin() + 3}, options));
  CHECK(found[1][1] >= 0 && found[1][2] == -1 && found[1].size() == 5);
  CHECK(found[2] == Ids(5, -1));
  CHECK(api->generation_create_ragged(session.handle, ids.data(), nullptr, &options, &generation) ==
            KAOKEN_INVALID_ARGUMENT &&
        message_has("lengths is null"));
}

// Ids of a model's vocabulary.
Ids ids_for(const kaoken_model_api *model, int64_t count, unsigned seed) {
  Ids ids = random_ids(count, seed);
  for (int64_t &id : ids) id %= model->info->vocab_size;
  return ids;
}

int64_t sum(const Ids &lengths) { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

// The outputs of texts, of an encoder; else nothing.
Logits encode(const kaoken_model_api *model, kaoken_session *session, const Ids &lengths, const Ids &ids) {
  const bool vectors = model->info->kind == KAOKEN_ENCODER;
  const size_t rows = vectors && model->info->pools ? lengths.size() : ids.size();
  Logits outputs(vectors ? rows * static_cast<size_t>(model->info->output_width) : 0);
  Ids types(ids.size());
  for (size_t i = 0; vectors && i < ids.size(); ++i) types[i] = ids[i] % model->info->token_types;
  const kaoken_texts texts = {sizeof texts,
                              static_cast<int64_t>(lengths.size()),
                              lengths.data(),
                              ids.data(),
                              vectors ? types.data() : nullptr,
                              vectors ? outputs.data() : nullptr,
                              0,
                              nullptr,
                              nullptr};
  CHECK(model->session_encode(session, &texts) == KAOKEN_OK);
  return outputs;
}

// Texts whose rows, and whose number, end passes; each gives what it gives alone, in a session that goes on.
void test_encoders_keep_their_bits() {
  Ids lengths = {1, 70, 3, 150, 64, 65, 2, 150};
  lengths.insert(lengths.end(), 70, 1);
  for (const kaoken_model_api *model :
       {kaoken_model_bert_float32(), kaoken_model_bert_int8(), kaoken_model_masked_float32(),
        kaoken_model_masked_int8(), kaoken_model_classifier_float32(), kaoken_model_classifier_int8()}) {
    const Ids ids = ids_for(model, sum(lengths), 30);
    Session alone(1, 1, nullptr, model);
    Logits expected;
    for (size_t i = 0, at = 0; i < lengths.size(); at += static_cast<size_t>(lengths[i++])) {
      const auto begin = ids.begin() + static_cast<int64_t>(at);
      const Logits vectors = encode(model, alone.handle, {lengths[i]}, {begin, begin + lengths[i]});
      expected.insert(expected.end(), vectors.begin(), vectors.end());
    }
    for (int threads : {1, 2, 3}) {
      Session session(1, threads, nullptr, model);
      for (int repeat = 0; repeat < 2; ++repeat) {
        CHECK(same_bits(encode(model, session.handle, {1}, {ids[0]}),
                        {expected.begin(), expected.begin() + model->info->output_width}));
        CHECK(same_bits(encode(model, session.handle, lengths, ids), expected));
      }
      CHECK(model->session_length(session.handle) == 0);
    }
  }
}

// Slots that attend to sources: decoded by three threads, copied, and with another source.
void test_sources_keep_their_bits() {
  for (const kaoken_model_api *model : {kaoken_model_t5_float32(), kaoken_model_t5_int8()}) {
    const Ids lengths = {70, 1, 150}, ids = ids_for(model, sum(lengths), 31), tokens = ids_for(model, 3 * 70, 32);
    const auto vocabulary = static_cast<int64_t>(model->info->vocab_size);
    Session whole(3, 1, nullptr, model);
    encode(model, whole.handle, lengths, ids);
    const Logits expected = whole.append(tokens, 70);
    const auto expected_of = [&](int64_t row, int64_t position) {
      const auto begin = expected.begin() + (row * 70 + position) * vocabulary;
      return Logits(begin, begin + vocabulary);
    };
    for (int threads : {1, 2, 3}) {
      Session split(3, threads, nullptr, model), moved(3, threads, nullptr, model);
      encode(model, split.handle, lengths, ids);
      for (int64_t position = 0; position < 70; ++position) {
        const Logits logits = split.append({tokens[position], tokens[70 + position], tokens[140 + position]}, 1);
        for (int64_t row = 0; row < 3; ++row) {
          const auto begin = logits.begin() + row * vocabulary;
          CHECK(same_bits({begin, begin + vocabulary}, expected_of(row, position)));
        }
      }
      // The last source goes to all, then the first to the first alone.
      encode(model, moved.handle, {1, 1, 150}, [&] {
        Ids others = {1, 2};
        others.insert(others.end(), ids.end() - 150, ids.end());
        return others;
      }());
      CHECK(model->session_fork(moved.handle, 2, 0) == KAOKEN_OK &&
            model->session_fork(moved.handle, 2, 1) == KAOKEN_OK);
      encode(model, moved.handle, {70}, {ids.begin(), ids.begin() + 70});
      const Logits logits = step(model, moved.handle, {0, 1, 2}, {1, 1, 1}, {tokens[0], tokens[140], tokens[140]});
      CHECK(same_bits({logits.begin(), logits.begin() + vocabulary}, expected_of(0, 0)));
      for (int64_t row = 1; row < 3; ++row) {
        const auto begin = logits.begin() + row * vocabulary;
        CHECK(same_bits({begin, begin + vocabulary}, expected_of(2, 0)));
      }
    }
  }
}

void test_generation_attends_to_sources() {
  for (const kaoken_model_api *model : {kaoken_model_t5_float32(), kaoken_model_t5_int8()}) {
    const Ids lengths = {70, 3}, ids = ids_for(model, 73, 33), start = {0, 0};
    Session session(2, 3, nullptr, model), alone(2, 1, nullptr, model);
    encode(model, session.handle, lengths, ids);
    encode(model, alone.handle, lengths, ids);
    kaoken_generation *generation = nullptr;
    const kaoken_generation_options options = greedy(1000);
    CHECK(model->generation_create(session.handle, start.data(), 1, &options, &generation) == KAOKEN_OK);
    Ids last = start;
    int64_t steps = 0;
    for (int32_t done = 0; !done; ++steps) {
      const Logits logits = alone.append(last, 1);
      int64_t tokens[2];
      CHECK(model->generation_next(generation, tokens, &done) == KAOKEN_OK);
      for (int64_t row = 0; row < 2; ++row) {
        const auto begin = logits.begin() + row * model->info->vocab_size, end = begin + model->info->vocab_size;
        CHECK(tokens[row] == std::max_element(begin, end) - begin);
        last[static_cast<size_t>(row)] = tokens[row];
      }
    }
    CHECK(steps == model->info->n_positions - 1);
    model->generation_destroy(generation);
  }
}

// An encoder, an encoder-decoder and a decoder side by side, each in sessions of its own.
void test_models_of_every_kind_compute_side_by_side() {
  const kaoken_model_api *bert = kaoken_model_bert_int8(), *t5 = kaoken_model_t5_int8();
  const Ids lengths = {1, 90, 1}, texts = ids_for(bert, sum(lengths), 34), ids = random_ids(60, 35);
  const auto vectors = [&](int threads) {
    Session session(1, threads, nullptr, bert);
    return encode(bert, session.handle, lengths, texts);
  };
  const auto decoded = [&](int threads) {
    Session session(3, threads, nullptr, t5);
    encode(t5, session.handle, lengths, texts);
    Logits last;
    for (int64_t position = 0; position < 8; ++position) last = session.append({position, 7, 3}, 1);
    return last;
  };
  const Logits expected[] = {vectors(1), decoded(1), logits_of(ids, 1)};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 3; ++i) {
        const int threads = 1 + (caller + i) % 3;
        wrong += !same_bits(expected[caller % 3], caller % 3 == 0   ? vectors(threads)
                                                  : caller % 3 == 1 ? decoded(threads)
                                                                    : logits_of(ids, threads));
      }
    });
  }
  for (std::thread &caller : callers) caller.join();
  CHECK(wrong == 0);
}

void test_texts_are_checked_and_change_nothing() {
  const kaoken_model_api *bert = kaoken_model_bert_float32(), *t5 = kaoken_model_t5_float32();
  Session encoder(2, 2, nullptr, bert), decoder(2, 2, nullptr, t5), causal(2);
  const kaoken_model_api *model = bert;
  kaoken_session *session = encoder.handle;
  const auto refused = [&](const kaoken_texts &texts, const char *message, kaoken_status status) {
    return model->session_encode(session, &texts) == status && std::strstr(model->last_error(), message) != nullptr;
  };
  const Ids ids = {1, 2, 3}, lengths = {1, 2}, none = {1, 0}, outside = {1, 2, 61}, types = {0, 1, 2};
  Logits outputs(3 * 48, 7.0f);
  const kaoken_texts good = {sizeof good, 2, lengths.data(), ids.data(), nullptr, outputs.data(), 0, nullptr, nullptr};
  const auto both = [&](const Ids &too_long) {
    kaoken_texts texts = good;
    CHECK(refused((texts.size = offsetof(kaoken_texts, hidden_states) - 1, texts), "texts.size",
                  KAOKEN_INVALID_ARGUMENT));
    texts = good;
    CHECK(refused((texts.count = 0, texts), "count is 0", KAOKEN_INVALID_ARGUMENT));
    texts = good;
    CHECK(refused((texts.lengths = nullptr, texts), "lengths is null", KAOKEN_INVALID_ARGUMENT));
    CHECK(refused((texts.lengths = none.data(), texts), "a text is empty", KAOKEN_INVALID_ARGUMENT));
    CHECK(refused((texts.lengths = too_long.data(), texts), "cut it", KAOKEN_CONTEXT_FULL));
    texts = good;
    CHECK(refused((texts.ids = nullptr, texts), "ids is null", KAOKEN_INVALID_ARGUMENT));
    CHECK(refused((texts.ids = outside.data(), texts), "token id 61", KAOKEN_TOKEN_OUT_OF_RANGE));
    CHECK(model->session_encode(session, nullptr) == KAOKEN_INVALID_ARGUMENT);
    CHECK(model->session_encode(nullptr, &good) == KAOKEN_INVALID_ARGUMENT);
  };
  both({1, 151});
  kaoken_texts texts = good;
  CHECK(refused((texts.outputs = nullptr, texts), "outputs is null", KAOKEN_INVALID_ARGUMENT));
  texts = good;
  CHECK(refused((texts.types = types.data(), texts), "token type 2 of text 1", KAOKEN_INVALID_ARGUMENT));
  CHECK(std::all_of(outputs.begin(), outputs.end(), [](float value) { return value == 7.0f; }));
  float logits[2 * 61];
  CHECK(bert->session_append(session, ids.data(), 1, KAOKEN_LOGITS_LAST, logits) == KAOKEN_INVALID_ARGUMENT);
  kaoken_generation *generation = nullptr;
  const kaoken_generation_options options = greedy(3);
  CHECK(bert->generation_create(session, ids.data(), 1, &options, &generation) == KAOKEN_INVALID_ARGUMENT);
  CHECK(std::strstr(bert->last_error(), "which generates nothing") && generation == nullptr);
  CHECK(bert->session_slot_rewind(session, 0, 0) == KAOKEN_OK && bert->session_fork(session, 0, 1) == KAOKEN_OK);
  CHECK(bert->session_length(session) == 0 && bert->session_slot_length(session, 1) == 0);

  model = t5;
  session = decoder.handle;
  CHECK(t5->session_append(session, ids.data(), 1, KAOKEN_LOGITS_LAST, logits) == KAOKEN_INVALID_ARGUMENT);
  CHECK(std::strstr(t5->last_error(), "slot 0 has no source"));
  CHECK(t5->generation_create(session, ids.data(), 1, &options, &generation) == KAOKEN_INVALID_ARGUMENT);
  CHECK(t5->session_encode(session, &good) == KAOKEN_OK);
  CHECK(t5->session_append(session, ids.data(), 1, KAOKEN_LOGITS_LAST, logits) == KAOKEN_OK);
  both({1, 151});
  texts = good;
  CHECK(refused((texts.count = 3, texts), "at most 2", KAOKEN_INVALID_ARGUMENT));
  CHECK(refused((texts.count = 2, texts.types = types.data(), texts), "no token types", KAOKEN_INVALID_ARGUMENT));
  CHECK(t5->session_length(session) == 1);
  CHECK(t5->session_encode(session, &good) == KAOKEN_OK && t5->session_length(session) == 0);

  CHECK(api->session_encode(causal.handle, &good) == KAOKEN_INVALID_ARGUMENT && message_has("which encodes no texts"));
}

struct Test {
  const char *name;
  void (*run)();
};

#define TEST(name) {#name, test_##name}
const Test tests[] = {
    TEST(errors_are_reported_and_change_nothing),
    TEST(bits_do_not_depend_on_threads_batch_or_split),
    TEST(rewind_forgets),
    TEST(each_isa_runs_when_it_is_asked_for),
    TEST(sessions_in_two_threads),
    TEST(two_models_in_one_program),
    TEST(narrow_types_keep_their_bits),
    TEST(grouped_heads_keep_their_bits),
    TEST(parallel_sublayers_keep_their_bits),
    TEST(norms_of_rows_keep_their_bits),
    TEST(windows_keep_their_bits),
    TEST(memory_of_an_ended_session_is_used_again),
#if !defined(__SANITIZE_THREAD__)
    TEST(fork_while_another_thread_generates),
#endif
    TEST(rounding_mode_is_ours_and_restored),
    TEST(greedy_generation_takes_the_largest_logit),
    TEST(generation_stops_at_eos_and_at_the_last_position),
    TEST(a_seed_repeats_its_draws),
    TEST(generation_options_are_checked),
    TEST(slots_keep_their_bits),
    TEST(steps_are_checked_and_change_nothing),
    TEST(ragged_generation_ends_each_by_itself),
    TEST(encoders_keep_their_bits),
    TEST(sources_keep_their_bits),
    TEST(generation_attends_to_sources),
    TEST(models_of_every_kind_compute_side_by_side),
    TEST(texts_are_checked_and_change_nothing),
    TEST(cgroup_limits_are_read),
    TEST(hardware_threads_of_a_core_count_once),
#if defined(__linux__)
    TEST(helpers_may_use_what_their_session_may),
#endif
    TEST(available_memory_is_the_least_that_anything_leaves),
    TEST(a_session_of_fewer_positions),
    TEST(a_batch_that_memory_cannot_hold_is_refused_untouched),
    TEST(calls_share_the_cores),
    TEST(a_crowd_is_noticed_and_forgotten),
    TEST(many_callers_keep_their_bits),
};

bool chosen(const Test &test, int argc, char **argv) {
  return argc == 1 ||
         std::any_of(argv + 1, argv + argc, [&](const char *name) { return !std::strcmp(name, test.name); });
}

}  // namespace

// runtime_test [NAME...]: the tests named, or all.
int main(int argc, char **argv) {
  int ran = 0;
  for (const Test &test : tests) {
    if (!chosen(test, argc, argv)) continue;
    test.run();
    ++ran;
  }
  std::fprintf(stderr, "%d tests, %d checks failed\n", ran, failures);
  return failures || ran < argc - 1 ? 1 : 0;
}
