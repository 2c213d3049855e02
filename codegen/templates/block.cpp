//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

struct GEN(unit.name)_attention {
  static constexpr int64_t kWidth = n_embd, kHeads = GEN(attention.body.heads), kHeadDim = GEN(attention.body.head_dim);
  static constexpr float kEpsilon = GEN(attention.before.epsilon | float32);
  static constexpr bool kLast = GEN(last | lower);
  using Cache = CacheType;
  using Qkv = GEN(packed_block.qkv | kind);
  using Out = GEN(packed_block.out | kind);
};

struct GEN(unit.name)_mlp {
  static constexpr int64_t kWidth = n_embd, kInner = GEN(mlp.body.inner);
  static constexpr float kEpsilon = GEN(mlp.before.epsilon | float32);
  using Activation = GEN(mlp.body.activation)_activation;
  using Up = GEN(packed_block.up | kind);
  using Down = GEN(packed_block.down | kind);
};

//% for matrix in packed_block.matrices
//% for strip in matrix.strips
void GEN(strip.name)(const float *x, float *sums);
//% endfor
//% endfor
void GEN(unit.name)(Pass &pass, const Worker &worker) {
  constexpr int64_t cache_before = GEN(cache_before);
GEN(arrays(unit))
//% for matrix in packed_block.matrices
//% if matrix.shards
  static constexpr Strip GEN(matrix.name)_strips[] = {
//% for strip in matrix.strips
      {GEN(strip.name), GEN(strip.first), GEN(strip.panels)},
//% endfor
  };
//% endif
//% endfor
  static_assert(BlockCache<CacheType, GEN(attention.body.heads), GEN(attention.body.head_dim)>::kHeadBytes *
                    GEN(attention.body.heads) == GEN(cache_bytes));
  if (!self_attention<GEN(unit.name)_attention>(
          pass, worker, cache_before,
          {GEN(packed_block.qkv | value), query_bias, GEN(nexts.qkv)},
          {GEN(packed_block.out | value), out_bias, GEN(nexts.out)})) {
    return;
  }
  mlp<GEN(unit.name)_mlp>(
      pass, worker,
      {GEN(packed_block.up | value), up_bias, GEN(nexts.up)},
      {GEN(packed_block.down | value), down_bias, GEN(nexts.down)});
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
