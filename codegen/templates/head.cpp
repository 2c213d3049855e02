//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void head(Pass &pass, const Worker &worker) {
  if (pass.logits_which == KAOKEN_LOGITS_NONE) return;
GEN(arrays(unit))
  constexpr int64_t shard_panels = GEN(table.shard_rows // panel);
  const int64_t rows = final_norm<n_embd>(pass, worker, layer_norm_epsilon, GEN(ln_f_weight), GEN(ln_f_bias));
  barrier(worker);
//% for shard in table.shards
  linear<n_embd, GEN(shard.size // panel // spec.n_embd)>(
      worker, pass.normed, rows, GEN(shard.name),
      StoreLogits<vocab_size>{pass, GEN(loop.index0) * shard_panels, GEN(head_bias)});
//% endfor
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
