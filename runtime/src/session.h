// A KV cache for a batch of sequences, the scratch memory of a pass, and the team that runs it.
#pragma once

#include <string>
#include <vector>

#include "arena.h"
#include "isa.h"
#include "kaoken/pass.h"
#include "pages.h"
#include "team.h"

namespace kaoken {

class Session {
 public:
  // Raises Error.
  Session(const Model &model, const kaoken_session_options &options);

  // Bytes of the arena that a session takes. Raises Error.
  static size_t bytes(const Model &model, const kaoken_session_options &options);

  // Appends tokens to sequences and writes the logits that are asked of (kaoken.h). Everything is checked before
  // anything changes. Raises Error. `fresh` logits are memory that may not have been touched yet.
  void step(const kaoken_step &step, bool fresh = true);
  // The same with ids [batch, count] and logits as `which` says.
  void append(const int64_t *ids, int64_t count, int32_t which, float *logits);

  // Reads texts with the encoder (kaoken.h). Everything is checked before anything changes. Raises Error.
  void encode(const kaoken_texts &texts);

  // Forgets all but the first `length` positions, of one sequence or of all: 0, or earliest() at least. Raises Error.
  void rewind(int64_t slot, int64_t length);
  void rewind(int64_t length);
  // Makes the sequence of one slot a copy of another's. Raises Error.
  void fork(int64_t from, int64_t to);

  // Raises Error where the memory is not available for each slot's new positions, lengths[i] of slots[i] and `more`,
  // and for `logits` rows of logits.
  void check_memory(const kaoken_step &step, int64_t more, int64_t logits) const;

  // Runs task(context, worker) on as many workers as the process has free, this thread being one of them.
  void compute(void (*task)(void *context, const Worker &worker), void *context) { team_.run(task, context); }

  const Model &model() const { return model_; }
  int64_t batch() const { return batch_; }
  int64_t positions() const { return positions_; }
  int64_t length() const;
  int64_t length(int64_t slot) const { return pages_.length(slot); }
  // The least length but 0 that a sequence can be rewound to: what a position behind it sees is still there.
  int64_t earliest(int64_t slot) const;
  int threads() const { return team_.size(); }
  const SamplingCode &sampling() const { return *choice_.code.sampling; }
  const char *isa() const { return choice_.code.isa; }
  const char *isa_reason() const { return choice_.reason.c_str(); }
  const char *executed_isa() const { return executed_isa_; }

 private:
  void check(const kaoken_step &step) const;
  void check(const kaoken_texts &texts) const;
  bool pools(const kaoken_texts &texts) const;
  void check_ids(const int64_t *ids, int64_t count, int64_t sequence) const;
  void check_memory(const kaoken_texts &texts) const;
  double scratch_needed(int64_t rows) const;
  size_t touched_bytes() const;
  void check_slot(int64_t slot) const;
  void check_rewind(int64_t slot, int64_t length) const;
  Pass lay_out() const;
  void add(Pass &pass, int64_t slot, int64_t count, int64_t outputs, const int64_t *ids);
  void ask(Pass &pass, const Sequence &sequence, int64_t position, int64_t count);
  void run(Pass &pass, void (*code)(Pass &pass, const Worker &worker));

  const Model &model_;
  const Choice choice_;
  const int64_t batch_;
  const int64_t positions_;  // that a sequence may have
  const int64_t pass_rows_;
  const char *executed_isa_ = "";
  int64_t touched_rows_ = 0;  // of the scratch memory
  // Of the pass at work, with room for the largest.
  std::vector<int32_t> ids_, types_;
  std::vector<int64_t> kept_;
  Arena arena_;
  Pages pages_, windows_, sources_;
  std::vector<int32_t> encoder_pages_;  // 0, 1, ...
  std::vector<Sequence> sequences_, outputs_;
  std::vector<int64_t> counts_, which_;  // what append() makes a step of
  Team team_;
};

}  // namespace kaoken
