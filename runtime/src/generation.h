// The generation loop, with the meanings of transformers' GenerationMixin.generate.
#pragma once

#include <vector>

#include "sampling.h"
#include "session.h"

namespace kaoken {

class Generation {
 public:
  // Appends the prompt, ids [batch, count], to the session, which must outlive this. Raises Error.
  Generation(Session &session, const int64_t *ids, int64_t count, const kaoken_generation_options &options);

  // Writes the next token of each sequence; returns whether they were the last. Raises Error after that, and for good
  // where logits hold no number.
  bool next(int64_t *tokens);

 private:
  bool is_eos(int64_t token) const;

  Session &session_;
  int64_t left_;  // tokens of each sequence still to come
  const std::vector<int64_t> eos_;
  const int64_t pad_;
  Sampler sampler_;
  std::vector<float> logits_;
  std::vector<int64_t> tokens_;  // chosen by the last call
  bool pending_ = false;         // whether they are still to be appended to the session
  std::vector<bool> finished_;
};

}  // namespace kaoken
