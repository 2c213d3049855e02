// The generation loop, with the meanings of transformers' GenerationMixin.generate.
#pragma once

#include <vector>

#include "sampling.h"
#include "session.h"

namespace kaoken {

class Generation {
 public:
  // Appends a prompt to each of the session's sequences, ids [the sum of lengths [batch]]. The session must outlive
  // this. Raises Error.
  Generation(Session &session, const int64_t *ids, std::vector<int64_t> lengths,
             const kaoken_generation_options &options);

  // Writes the next token of each sequence; returns whether they were the last. Raises Error after that, and for good
  // where logits hold no number.
  bool next(int64_t *tokens);

 private:
  bool has_finished(const Sampler::Token &token) const;

  Session &session_;
  int64_t left_;  // tokens of the longest sequence still to come
  const std::vector<int64_t> eos_;
  const int64_t pad_;
  Sampler sampler_;
  std::vector<float> logits_;
  std::vector<Sampler::Token> tokens_;          // of the sequences that have not finished, chosen by the last call
  std::vector<int64_t> slots_, lengths_, ids_;  // what is appended
  bool pending_ = false;                        // whether the tokens are still to be appended to the session
};

}  // namespace kaoken
