//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

//% if packed_block.matrices | selectattr("shards") | list
#include "exploded.h"
//% endif
#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

//% for matrix in packed_block.matrices
//% for strip in matrix.strips
void GEN(strip.name)(const float *x, float *sums);
//% endfor
//% endfor
void GEN(unit.name)(Pass &pass, const Worker &worker) {
  constexpr int64_t n_head = GEN(attention.body.heads);
  constexpr int64_t head_dim = GEN(attention.body.head_dim);
  constexpr int64_t n_inner = GEN(mlp.body.inner);
  constexpr int64_t attention_width = n_head * round_up(head_dim, kPanel);
  constexpr int64_t inner_width = round_up(n_inner, kPanel);
  constexpr int64_t cache_before = GEN(cache_before);
GEN(arrays(unit))
//% for matrix in packed_block.matrices
//% if matrix.shards
  using GEN(matrix.name)_type = Exploded;
  static constexpr Strip GEN(matrix.name)_strips[] = {
//% for strip in matrix.strips
      {GEN(strip.name), GEN(strip.first), GEN(strip.panels)},
//% endfor
  };
  const Exploded::Matrix GEN(matrix.name) = {GEN(matrix.name)_strips, GEN(matrix.strips | length)};
//% else
  using GEN(matrix.name)_type = GEN(kinds[matrix.dtype]);
  const GEN(matrix.name)_type::Matrix GEN(matrix.name) = {GEN(matrix.arrays | names)};
//% endif
//% endfor
  const BlockCache<CacheType, n_head, head_dim> cache(pass, cache_before);
  static_assert(cache.kHeadBytes * n_head == GEN(cache_bytes));

  OwnRow<c_attn_type, n_embd> c_attn_row;
  const c_attn_type::Inputs x = normed(pass, worker, c_attn_row, GEN(attention.before.epsilon | float32));
  const StoreQueryKeyValue<attention_width> store_qkv = {pass.qkv, query_bias};
//% if packed_block.c_attn.shards
  const HeadPart part = {{0, n_head}, worker};
  exploded<c_attn_type, n_embd, 3 * attention_width / kPanel>(worker, x, rows(pass), c_attn, store_qkv);
//% else
  const HeadPart part = head_part<n_head>(worker);
  project_keys_and_values<c_attn_type, n_embd>(worker, x, rows(pass), c_attn, store_qkv);
//% if not last
  project<c_attn_type, n_embd>(kQueries, worker, x, rows(pass), c_attn, store_qkv, GEN(nexts.c_attn));
//% endif
//% endif
  barrier(part.worker);
  extend_cache(pass, part, cache);
//% if last
  if (pass.logits_which == KAOKEN_LOGITS_NONE) return;
  keep_last_positions<c_attn_type, n_embd, hidden_width, attention_width>(pass, worker);
//% if not packed_block.c_attn.shards
  project<c_attn_type, n_embd>(kQueries, worker, x, rows(pass), c_attn, store_qkv, GEN(nexts.c_attn));
  barrier(part.worker);
//% endif
//% endif
  attention(pass, part, cache);
  barrier(worker);
  OwnRow<attn_c_proj_type, attention_width> attn_c_proj_row;
  GEN(packed_block.attn_c_proj | product)<attn_c_proj_type, attention_width, hidden_width / kPanel>(
      worker, converted(pass, worker, attn_c_proj_row, pass.attended), rows(pass), attn_c_proj,
      AddResidual<hidden_width>{pass.hidden, attn_c_proj_bias}, GEN(nexts.attn_c_proj));
  barrier(worker);

  OwnRow<c_fc_type, n_embd> c_fc_row;
  GEN(packed_block.c_fc | product)<c_fc_type, n_embd, inner_width / kPanel>(
      worker, normed(pass, worker, c_fc_row, GEN(mlp.before.epsilon | float32)), rows(pass), c_fc,
      Store<GEN(mlp.body.activation)_activation, inner_width>{pass.inner, c_fc_bias}, GEN(nexts.c_fc));
  barrier(worker);
  OwnRow<mlp_c_proj_type, n_inner> mlp_c_proj_row;
  GEN(packed_block.mlp_c_proj | product)<mlp_c_proj_type, n_inner, hidden_width / kPanel>(
      worker, converted(pass, worker, mlp_c_proj_row, pass.inner), rows(pass), mlp_c_proj,
      AddResidual<hidden_width>{pass.hidden, mlp_c_proj_bias}, GEN(nexts.mlp_c_proj));
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
