//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

struct GEN(unit.name)_attention {
  static constexpr int64_t kWidth = n_embd;
  using Layout = KAOKEN_ISA::Layout<GEN(attention.body.heads), GEN(attention.body.kv_heads), GEN(attention.body.dims)>;
  static constexpr Sees kSees = Sees::kPast;
  using Bias = NoBias;
  using Rotary = KAOKEN_ISA::GEN("Rotary" if attention.body.rotary else "NoRotary");
  using Norm = GEN(norms[attention.before.kind]);
  static constexpr float kEpsilon = GEN(attention.before.epsilon | float32);
  static constexpr bool kLast = GEN(last | lower);
  using Cache = CacheType;
  using Qkv = GEN(packed_block.qkv | kind);
  using Out = GEN(packed_block.out | kind);
};

struct GEN(unit.name)_mlp {
  static constexpr int64_t kWidth = n_embd, kInner = GEN(mlp.body.inner);
  static constexpr bool kGated = GEN((mlp.body.gate is not none) | lower);
  using Norm = GEN(norms[mlp.before.kind]);
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
//% if packed_block.rotary
GEN(arrays(rotary))
//% endif
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
  static_assert(CacheOf<GEN(unit.name)_attention>::kHeadBytes * GEN(attention.body.kv_heads) == GEN(cache_bytes));
  if (!self_attention<GEN(unit.name)_attention>(
          pass, worker, cache_before,
          {GEN(packed_block.qkv | value), qkv_bias, GEN(nexts.qkv)},
          {GEN(packed_block.out | value), out_bias, GEN(nexts.out)}, {GEN(packed_block.rotary.name if packed_block.rotary else "")}, {})) {
    return;
  }
  mlp<GEN(unit.name)_mlp>(
      pass, worker,
      {GEN(packed_block.up | value), up_bias, GEN(nexts.up)},
      {GEN(packed_block.down | value), down_bias, GEN(nexts.down)});
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
