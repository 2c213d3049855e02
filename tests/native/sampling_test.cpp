// The choice of tokens from given logits, against a reference that sorts in double precision. Run under each sanitizer.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

KAOKEN_DECLARE_MODEL(first);

namespace {

const kaoken_model_api *const api = kaoken_model_first();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kDraws = 512;
int failures = 0;

void require(bool condition, const std::string &what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  ++failures;
}

using Logits = std::vector<float>;

kaoken_generation_options sampled(float temperature, int64_t top_k, float top_p) {
  kaoken_generation_options options = {};
  options.do_sample = 1;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.seed = 7;
  return options;
}

std::string text(const kaoken_generation_options &options) {
  return "temperature " + std::to_string(options.temperature) + ", top_k " + std::to_string(options.top_k) +
         ", top_p " + std::to_string(options.top_p);
}

// A session of the bundled model, for its team and its ISA.
class Choosing {
 public:
  explicit Choosing(int threads, const char *isa = nullptr) {
    const kaoken_session_options options = {sizeof options, 1, threads, isa, nullptr, 0, 0};
    require(api->session_create(&options, &handle_) == KAOKEN_OK, "session_create");
  }
  ~Choosing() { api->session_destroy(handle_); }

  // Of one row, at the positions from 0 on.
  std::vector<int64_t> many(const Logits &logits, const kaoken_generation_options &options) {
    kaoken::Session &session = *reinterpret_cast<kaoken::Session *>(handle_);
    kaoken::Sampler sampler(options, 1, static_cast<int64_t>(logits.size()), session.threads());
    std::vector<int64_t> ids;
    for (int64_t position = 0; position < kDraws; ++position) {
      Logits copy = logits;
      std::vector<kaoken::Sampler::Token> tokens = {{0, position, -1}};
      sampler.choose(session, copy.data(), tokens);
      ids.push_back(tokens[0].id);
    }
    return ids;
  }

  std::vector<int64_t> operator()(Logits logits, int64_t batch, const kaoken_generation_options &options,
                                  int64_t position = 0, std::vector<bool> finished = {}) {
    kaoken::Session &session = *reinterpret_cast<kaoken::Session *>(handle_);
    const int64_t vocab_size = static_cast<int64_t>(logits.size()) / batch;
    kaoken::Sampler sampler(options, batch, vocab_size, session.threads());
    finished.resize(static_cast<size_t>(batch), false);
    std::vector<kaoken::Sampler::Token> tokens;
    Logits open;  // those of the rows that have not finished
    for (size_t row = 0; row < finished.size(); ++row) {
      if (finished[row]) continue;
      tokens.push_back({row, position, -1});
      const auto begin = logits.begin() + static_cast<int64_t>(row) * vocab_size;
      open.insert(open.end(), begin, begin + vocab_size);
    }
    sampler.choose(session, open.data(), tokens);
    std::vector<int64_t> ids(finished.size(), -1);
    for (const auto &token : tokens) ids[token.row] = token.id;
    return ids;
  }

 private:
  kaoken_session *handle_ = nullptr;
};

// The probability of each token, by sorting.
std::vector<double> probabilities(const Logits &logits, const kaoken_generation_options &options) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](size_t i) { return std::isnan(logits[i]) ? -kInfinity : logits[i]; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return value(a) > value(b); });
  size_t kept = order.size();
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < kept) {
    const float least = value(order[static_cast<size_t>(options.top_k) - 1]);
    kept = static_cast<size_t>(options.top_k);
    while (kept < order.size() && value(order[kept]) == least) ++kept;
  }
  std::vector<double> weights(logits.size(), 0);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    const double distance = static_cast<double>(value(order[i])) - value(order[0]);
    total += weights[order[i]] = std::exp(distance / options.temperature);
  }
  double before = 0;
  for (size_t i = 0; i < kept; ++i) {
    double &weight = weights[order[i]];
    if (i > 0 && before >= static_cast<double>(options.top_p) * total) weight = 0;
    before += weight;
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double &weight : weights) weight /= sum;
  return weights;
}

// Draws at many positions, counted where they fall on the distribution function: each sixteenth of it is as likely as
// another. A token on a border counts in parts. Right draws fail at one seed in millions.
void require_distribution(const std::vector<int64_t> &tokens, const std::vector<double> &probability,
                          const std::string &what) {
  constexpr int parts = 16;
  std::vector<double> until(probability.size());
  std::partial_sum(probability.begin(), probability.end(), until.begin());
  double counts[parts] = {};
  int excluded = 0;
  for (const int64_t token : tokens) {
    const double width = probability[static_cast<size_t>(token)], end = until[static_cast<size_t>(token)];
    excluded += width == 0;
    for (int i = 0; i < parts && width > 0; ++i) {
      const double low = std::max(end - width, static_cast<double>(i) / parts);
      const double high = std::min(end, static_cast<double>(i + 1) / parts);
      if (high > low) counts[i] += (high - low) / width;
    }
  }
  require(excluded <= 1, what + ": excluded tokens are drawn");  // one may be a rounding from the border
  const double expected = static_cast<double>(tokens.size()) / parts;
  double statistic = 0;
  for (const double count : counts) statistic += (count - expected) * (count - expected) / expected;
  require(statistic < 15 + 7 * std::sqrt(30.0) + 10, what + ": chi-square " + std::to_string(statistic));
}

Logits normal(size_t count, float deviation, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, deviation);
  Logits logits(count);
  for (float &logit : logits) logit = distribution(random);
  return logits;
}

void test_uniform_is_philox() {
  // The known answers of the paper's library for Philox4x32-10, of which the first two words are taken.
  const auto expected = [](uint64_t first, uint64_t second) {
    return static_cast<double>((first << 32 | second) >> 11) * 0x1p-53;
  };
  require(kaoken::uniform(0, 0, 0, 0) == expected(0x6627e8d5, 0xe169c58d), "zeros");
  require(kaoken::uniform(~0ull, ~0ull, ~0u, ~0u) == expected(0x408f276d, 0x41c83b0e), "ones");
  require(kaoken::uniform(0x299f31d0a4093822, 0x0370734413198a2e, 0x243f6a88, 0x85a308d3) ==
              expected(0xd16cfe09, 0x94fdcceb),
          "pi");
}

void test_draws_follow_the_definition() {
  struct Case {
    const char *name;
    Logits logits;
  };
  std::vector<Case> cases = {{"wide", normal(3000, 3, 1)},    {"narrow", normal(3000, 0.02f, 2)},
                             {"small", normal(67, 1, 3)},     {"one", {0.5f}},
                             {"flat", Logits(2000, 1.25f)},   {"rising", Logits(3000)},
                             {"outlier", normal(1000, 1, 4)}, {"holes", normal(1000, 1, 5)},
                             {"rounded", normal(3000, 3, 6)}};
  for (size_t i = 0; i < cases[5].logits.size(); ++i) cases[5].logits[i] = static_cast<float>(i) * 1e-3f;
  cases[6].logits[999] = 3e38f;
  cases[6].logits[0] = -3e38f;
  for (size_t i = 0; i < 1000; i += 3) cases[7].logits[i] = i % 2 ? kNaN : -kInfinity;
  for (float &logit : cases[8].logits) logit = std::nearbyint(logit * 8) / 8;
  Choosing choosing(1);
  for (const Case &each : cases) {
    for (const float temperature : {0.5f, 100.0f}) {
      for (const int64_t top_k : {0, 1, 50, 700}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 1e-6f}) {
          const kaoken_generation_options options = sampled(temperature, top_k, top_p);
          require_distribution(choosing.many(each.logits, options), probabilities(each.logits, options),
                               std::string(each.name) + ", " + text(options));
        }
      }
    }
  }
}

void test_tokens_do_not_depend_on_threads_or_company() {
  constexpr int64_t batch = 5;
  Logits logits;
  for (unsigned row = 0; row < batch; ++row) {
    const Logits one = normal(50257, 2, 10 + row);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  Choosing alone(1), four(4);
  for (const auto &options :
       {sampled(1, 0, 1), sampled(0.7f, 50, 0.9f), sampled(1.3f, 0, 0.95f), sampled(1, 9000, 1)}) {
    const std::vector<int64_t> expected = alone(logits, batch, options, 12);
    require(expected == four(logits, batch, options, 12), "threads: " + text(options));
    std::vector<bool> finished = {true, false, true, true, false};
    const std::vector<int64_t> some = four(logits, batch, options, 12, finished);
    require(some[1] == expected[1] && some[4] == expected[4] && some[0] == -1, "company: " + text(options));
    require(kaoken::uniform(7, 1, 12, 0) != kaoken::uniform(7, 0, 12, 0), "rows draw for themselves");
  }
}

void test_infinity_wins_and_nan_does_not() {
  Choosing choosing(2);
  kaoken_generation_options greedy = {};
  for (const auto &options :
       {greedy, sampled(1, 0, 1), sampled(1, 50, 1), sampled(2, 0, 0.5f), sampled(1, 2000, 0.9f)}) {
    for (const size_t at : {size_t{0}, size_t{63}, size_t{64}, size_t{2998}}) {
      Logits logits = normal(3000, 1, 20);
      logits[at] = logits[2999] = kInfinity;
      logits[5] = kNaN;
      logits[7] = -kInfinity;
      require(choosing(logits, 1, options)[0] == static_cast<int64_t>(at), "the first infinity: " + text(options));
      Logits single(3000, kNaN);
      single[at] = -1e30f;
      require(choosing(single, 1, options)[0] == static_cast<int64_t>(at), "the only number: " + text(options));
    }
    Logits nothing(6000, 0);
    std::fill(nothing.begin() + 3000, nothing.end(), kNaN);
    std::string message;
    try {
      choosing(nothing, 2, options, 9);
    } catch (const std::exception &error) {
      message = error.what();
    }
    require(message.find("sequence 1 at position 9") != std::string::npos, "nothing but NaN: " + message);
  }
}

void test_greedy_takes_the_first_of_the_largest() {
  Choosing choosing(3);
  const kaoken_generation_options greedy = {};
  for (const size_t vocab_size : {1, 15, 64, 65, 1000, 50257}) {
    Logits logits = normal(vocab_size, 1, 30);
    for (float &logit : logits) logit = std::nearbyint(logit * 4) / 4;
    require(choosing(logits, 1, greedy)[0] == std::max_element(logits.begin(), logits.end()) - logits.begin(),
            "greedy of " + std::to_string(vocab_size));
  }
}

}  // namespace

int main() {
  test_uniform_is_philox();
  test_draws_follow_the_definition();
  test_tokens_do_not_depend_on_threads_or_company();
  test_infinity_wins_and_nan_does_not();
  test_greedy_takes_the_first_of_the_largest();
  std::fprintf(stderr, "%d checks failed\n", failures);
  return failures ? 1 : 0;
}
