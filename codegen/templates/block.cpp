//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void GEN(unit.name)(Pass &pass, const Worker &worker) {
  constexpr int64_t n_head = GEN(block.n_head);
  constexpr int64_t head_dim = GEN(block.head_dim);
  constexpr int64_t n_inner = GEN(block.n_inner);
  constexpr int64_t attention_width = n_head * round_up(head_dim, kPanel);
  constexpr int64_t inner_width = round_up(n_inner, kPanel);
  constexpr int64_t cache_before = GEN(cache_before);
GEN(arrays(unit))
  const int64_t rows = pass.batch * pass.count;
  const Cache<n_head, head_dim> cache = block_cache<n_head, head_dim>(pass, cache_before);

  layer_norm_rows<n_embd>(pass, worker, layer_norm_epsilon);
  barrier(worker);
  linear<n_embd, 3 * attention_width / kPanel>(worker, pass.normed, rows, c_attn_weight,
                                               StoreQueryKeyValue<n_head, head_dim>{pass, cache, query_bias});
  barrier(worker);
  attention<n_head, head_dim>(pass, worker, cache);
  barrier(worker);
  linear<attention_width, hidden_width / kPanel>(worker, pass.attended, rows, attn_c_proj_weight,
                                                 AddResidual<hidden_width>{pass.hidden, attn_c_proj_bias});
  barrier(worker);

  layer_norm_rows<n_embd>(pass, worker, layer_norm_epsilon);
  barrier(worker);
  linear<n_embd, inner_width / kPanel>(worker, pass.normed, rows, c_fc_weight,
                                       Store<GEN(activation)_activation, inner_width>{pass.inner, c_fc_bias});
  barrier(worker);
  linear<n_inner, hidden_width / kPanel>(worker, pass.inner, rows, mlp_c_proj_weight,
                                         AddResidual<hidden_width>{pass.hidden, mlp_c_proj_bias});
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
