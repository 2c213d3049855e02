//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN(units | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void embeddings(Pass &pass, const Worker &worker) {
//% for unit in units
GEN(arrays(unit))
//% endfor
  const float *const shards[] = {GEN(table.shards | names)};
  constexpr int64_t shard_rows = GEN(table.shard_rows);
  embed<n_embd>(pass, worker, positions, [&](int64_t token, float *hidden) {
//% if spec.tie_word_embeddings
    add_token_from_panels<n_embd, shard_rows / kPanel>(shards, token, hidden);
//% else
    add_token_from_rows<n_embd, shard_rows>(shards, token, hidden);
//% endif
  });
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
