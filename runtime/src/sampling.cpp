#include "sampling.h"

#include <string.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "errors.h"

namespace kaoken {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t blocks(int64_t count) { return (count + kSampleBlock - 1) / kSampleBlock; }

// A row's block of a worker's share.
int64_t boundary(int64_t blocks, int index, int count) { return blocks * index / count; }

double total(const float *sums, int64_t count) {
  double sum = 0;
  for (int64_t block = 0; block < blocks(count); ++block) sum += sums[block];
  return sum;
}

}  // namespace

double uniform(uint64_t seed, uint64_t row, uint32_t position, uint32_t attempt) {
  uint32_t key[] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t x[] = {position, attempt, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xd2511f53} * x[0], odd = uint64_t{0xcd9e8d57} * x[2];
    const uint32_t next[] = {static_cast<uint32_t>(odd >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(odd),
                             static_cast<uint32_t>(even >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(even)};
    std::copy(next, next + 4, x);
    key[0] += 0x9e3779b9;
    key[1] += 0xbb67ae85;
  }
  return static_cast<double>((uint64_t{x[0]} << 32 | x[1]) >> 11) * 0x1p-53;
}

// A few candidates of a row, and room to look for them.
struct Sampler::Scratch {
  explicit Scratch(int64_t vocab_size)
      : tokens(new int32_t[static_cast<size_t>(vocab_size)]),
        weights(new float[static_cast<size_t>(vocab_size)]),
        spare(new float[static_cast<size_t>(vocab_size)]) {}

  const std::unique_ptr<int32_t[]> tokens;
  const std::unique_ptr<float[]> weights, spare;
};

Sampler::Sampler(const kaoken_generation_options &options, int64_t batch, int64_t vocab_size, int workers)
    : vocab_size_(vocab_size),
      blocks_(blocks(vocab_size)),
      do_sample_(options.do_sample != 0),
      scale_(std::min(1 / options.temperature, std::numeric_limits<float>::max() / 2)),
      top_k_(options.top_k >= vocab_size ? 0 : options.top_k),
      top_p_(options.top_p),
      seed_(options.seed),
      few_(top_k_ > 0 && top_k_ <= blocks_),
      rows_(static_cast<size_t>(batch)),
      maxima_(rows_.size() * static_cast<size_t>(blocks_)),
      sums_(do_sample_ ? maxima_.size() : 0) {
  for (int64_t i = 0; few_ && i < std::min<int64_t>(workers, batch); ++i) {
    scratch_.push_back(std::make_unique<Scratch>(vocab_size));
  }
}

Sampler::~Sampler() = default;

void Sampler::choose(Session &session, float *logits, std::vector<Token> &tokens) {
  open_ = 0;
  for (const Token &token : tokens) {
    const size_t block = open_ * static_cast<size_t>(blocks_);
    rows_[open_] = {logits + static_cast<int64_t>(open_) * vocab_size_,
                    maxima_.data() + block,
                    do_sample_ ? sums_.data() + block : nullptr,
                    token.row,
                    static_cast<uint32_t>(token.position),
                    0,
                    0};
    ++open_;
  }
  struct Job {
    Sampler &sampler;
    const SamplingCode &code;
  } job = {*this, session.sampling()};
  session.compute(
      [](void *context, const Worker &worker) {
        const Job &job = *static_cast<Job *>(context);
        job.sampler.work(job.code, worker);
      },
      &job);
  const Row *row = rows_.data();
  for (Token &token : tokens) {
    if (row->largest == -kInfinity) {
      throw Error(KAOKEN_INTERNAL, "no logit of sequence " + std::to_string(token.row) + " at position " +
                                       std::to_string(token.position) +
                                       " is a number: the model's arithmetic overflowed; check the checkpoint for "
                                       "infinities and NaN");
    }
    token.id = (row++)->token;
  }
}

// Each worker passes over the part of the vocabulary whose logits it has computed, then over whole rows in turn.
void Sampler::work(const SamplingCode &code, const Worker &worker) {
  const int64_t first = boundary(blocks_, worker.index, worker.count);
  const int64_t end = boundary(blocks_, worker.index + 1, worker.count);
  const size_t own = static_cast<size_t>(worker.index), step = static_cast<size_t>(worker.count);
  for (size_t i = 0; i < open_; ++i) code.block_maxima(rows_[i].logits, vocab_size_, first, end, rows_[i].maxima);
  barrier(worker);
  for (size_t i = own; i < open_; i += step) {
    if (!decided(rows_[i]) && few_) draw_from_few(code, rows_[i], *scratch_[own]);
  }
  if (!do_sample_ || few_) return;
  barrier(worker);
  for (size_t i = 0; i < open_; ++i) {
    Row &row = rows_[i];
    if (std::isfinite(row.largest)) code.weigh(row.logits, vocab_size_, first, end, row.largest, scale_, row.sums);
  }
  barrier(worker);
  for (size_t i = own; i < open_; i += step) {
    if (std::isfinite(rows_[i].largest)) draw_from_all(code, rows_[i]);
  }
}

// Finds the largest logit; whether that alone decides.
bool Sampler::decided(Row &row) const {
  const float *largest = std::max_element(row.maxima, row.maxima + blocks_);
  row.largest = *largest;
  if (do_sample_ && std::isfinite(row.largest)) return false;
  const float *logit = row.logits + (largest - row.maxima) * kSampleBlock;
  while (*logit != row.largest && logit + 1 < row.logits + vocab_size_) ++logit;
  row.token = logit - row.logits;
  return true;
}

// The k-th largest of the blocks' maxima is a bound that at least k logits reach, all of them in k blocks.
void Sampler::draw_from_few(const SamplingCode &code, Row &row, Scratch &scratch) const {
  const auto kth_largest = [&](const float *values, int64_t count) {
    float *copy = scratch.spare.get();
    std::copy(values, values + count, copy);
    std::nth_element(copy, copy + top_k_ - 1, copy + count, std::greater<float>());
    return copy[top_k_ - 1];
  };
  const float bound = kth_largest(row.maxima, blocks_);
  int64_t count = 0;
  for (int64_t block = 0; block < blocks_; ++block) {
    if (row.maxima[block] < bound) continue;
    for (int64_t i = block * kSampleBlock; i < std::min((block + 1) * kSampleBlock, vocab_size_); ++i) {
      if (!(row.logits[i] >= bound)) continue;
      scratch.tokens[count] = static_cast<int32_t>(i);
      scratch.weights[count++] = row.logits[i];
    }
  }
  if (count > top_k_) {
    const float least = kth_largest(scratch.weights.get(), count);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (scratch.weights[i] < least) continue;
      scratch.tokens[kept] = scratch.tokens[i];
      scratch.weights[kept++] = scratch.weights[i];
    }
    count = kept;
  }
  code.weigh(scratch.weights.get(), count, 0, blocks(count), row.largest, scale_, row.sums);
  row.token = scratch.tokens[draw(code, row, scratch.weights.get(), count)];
}

void Sampler::draw_from_all(const SamplingCode &code, Row &row) const {
  if (top_k_ > 0) code.keep(row.logits, vocab_size_, 0, blocks_, kth_largest_weight(code, row.logits), row.sums);
  row.token = draw(code, row, row.logits, vocab_size_);
}

// A number that just the top_k largest weights reach, and those that equal the last of them; by bisection of its bits.
float Sampler::kth_largest_weight(const SamplingCode &code, const float *weights) const {
  const auto as_float = [](uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  };
  uint32_t reached = 0, missed = 0x3f800001;  // the bits of 0, and of what follows 1
  while (missed - reached > 1) {
    const uint32_t middle = reached + (missed - reached) / 2;
    const int64_t count = code.count(weights, vocab_size_, as_float(middle));
    if (count == top_k_) return as_float(middle);
    (count > top_k_ ? reached : missed) = middle;
  }
  return as_float(reached);
}

// Draws from weights [count], whose sums by block are the row's, until a token is among the largest that together reach
// top_p. One that is not is taken out with all that come behind it by size, and by number where they are equal: what is
// left still holds those that are wanted, each as likely beside the others as before.
int64_t Sampler::draw(const SamplingCode &code, const Row &row, float *weights, int64_t count) const {
  const double limit = top_p_ * total(row.sums, count);
  for (uint32_t attempt = 0;; ++attempt) {
    const int64_t token = pick(row, weights, count, uniform(seed_, row.number, row.position, attempt));
    if (top_p_ >= 1) return token;
    const float weight = weights[token];
    const int64_t block = token / kSampleBlock, end = std::min((block + 1) * kSampleBlock, count);
    for (int64_t i = token; i < end; ++i) weights[i] = weights[i] > weight ? weights[i] : 0;
    code.keep(weights, count, 0, block + 1, weight, row.sums);
    code.keep(weights, count, block + 1, blocks(count), std::nextafter(weight, 2.0f), row.sums);
    if (total(row.sums, count) < limit) return token;
  }
}

// The token at `uniform` of the sum of all weights.
int64_t Sampler::pick(const Row &row, const float *weights, int64_t count, double uniform) const {
  double target = uniform * total(row.sums, count);
  int64_t block = 0, last = 0;  // of those that weigh anything, where rounding leads past all of them
  for (int64_t i = 0; i < blocks(count); ++i) {
    if (row.sums[i] == 0) continue;
    block = i;
    if (target < row.sums[i]) break;
    target -= row.sums[i];
  }
  for (int64_t i = block * kSampleBlock; i < std::min((block + 1) * kSampleBlock, count); ++i) {
    if (weights[i] == 0) continue;
    last = i;
    target -= weights[i];
    if (target < 0) break;
  }
  return last;
}

}  // namespace kaoken
