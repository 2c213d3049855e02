// A KV cache for a batch of sequences, the scratch memory of a pass, and the team that runs it.
#pragma once

#include <string>
#include <vector>

#include "isa.h"
#include "kaoken/pass.h"
#include "team.h"

namespace kaoken {

// Memory from the system, page by page as it is touched. What is in it is anything: the last session's may be used
// again.
class Arena {
 public:
  explicit Arena(size_t bytes);
  ~Arena();
  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;
  void *data() const { return data_; }

 private:
  void *data_;
  size_t bytes_;
};

class Session {
 public:
  // `isa` null: KAOKEN_ISA, else the best that this machine has. Raises Error.
  Session(const Model &model, int64_t batch, int threads, const char *isa);

  // Appends ids [batch, count] to every sequence and writes the logits that `which` asks for (kaoken.h). Everything is
  // checked before anything changes. Raises Error.
  // `fresh` logits are memory that may not have been touched yet.
  void append(const int64_t *ids, int64_t count, int32_t which, float *logits, bool fresh = true);
  void rewind(int64_t length);

  // Raises Error where the memory is not available for `count` more positions and for the logits of `rows` of them.
  void check_memory(int64_t count, int64_t rows) const;

  // Runs task(context, worker) on as many workers as the process has free, this thread being one of them.
  void compute(void (*task)(void *context, const Worker &worker), void *context) { team_.run(task, context); }

  const Model &model() const { return model_; }
  int64_t batch() const { return batch_; }
  int64_t length() const { return length_; }
  int threads() const { return team_.size(); }
  const SamplingCode &sampling() const { return *choice_.code.sampling; }
  const char *isa() const { return choice_.code.isa; }
  const char *isa_reason() const { return choice_.reason.c_str(); }
  const char *executed_isa() const { return executed_isa_; }

 private:
  void check(const int64_t *ids, int64_t count, int32_t which, const float *logits) const;
  Pass lay_out() const;
  void run(Pass &pass);

  const Model &model_;
  const Choice choice_;
  const int64_t batch_;
  const int64_t capacity_;  // cache positions, a multiple of kAttentionTile
  const int64_t pass_rows_;
  int64_t length_ = 0;
  int64_t touched_ = 0;  // positions whose memory is in use
  const char *executed_isa_ = "";
  std::vector<int32_t> pass_ids_;
  Arena arena_;
  Team team_;
};

}  // namespace kaoken
