// x += out(attention(query, key, value of norm(x))) + down(activation(up(norm(x)))): both branches read x as it was.
#pragma once

#include "sublayers/mlp.h"
#include "sublayers/self_attention.h"

namespace kaoken::KAOKEN_ISA {

// AttentionTraits are those of self_attention(), MlpTraits those of mlp() with kSharesInputs, which says that `up`
// reads what the queries, keys and values read. Returns false where the pass is over.
//
// Nobody writes to the residual stream before the barrier behind attention, so both branches can read it until then.
// Workers divide the panels of `out` and of `down` alike, so each adds to its own part of the stream.
template <class AttentionTraits, class MlpTraits>
KAOKEN_INLINE bool parallel(Pass &pass, const Worker &worker, int64_t cache_before, const NormVectors &attention_norm,
                            const Product<typename AttentionTraits::Qkv> &qkv,
                            const Product<typename AttentionTraits::Out> &out,
                            const typename AttentionTraits::Scheme::Rotary &rotary,
                            const typename AttentionTraits::Scheme::Bias &bias, const NormVectors &mlp_norm,
                            const Product<typename MlpTraits::Up> &up, const Product<typename MlpTraits::Down> &down) {
  using Qkv = typename AttentionTraits::Qkv;
  using Out = typename AttentionTraits::Out;
  using Up = typename MlpTraits::Up;
  using Down = typename MlpTraits::Down;
  constexpr int64_t width = AttentionTraits::kWidth;
  OwnRow<Qkv, width> row;
  const typename Qkv::Input *x = entered<AttentionTraits>(pass, worker, row, attention_norm);
  const auto project_beside = [&] {
    if constexpr (MlpTraits::kSharesInputs) {
      project_up<MlpTraits>(pass, worker, x, up);
    } else {
      OwnRow<Up, width> own;
      if (pass.batch.rows > 1 || !own.kSmall) barrier(worker);  // until all have read what lies in pass.inputs
      project_up<MlpTraits>(pass, worker, entered<MlpTraits>(pass, worker, own, mlp_norm), up);
    }
  };
  if (!attend<AttentionTraits>(pass, worker, cache_before, x, qkv, rotary, bias, project_beside)) return false;
  barrier(worker);
  add_product<Out, AttentionTraits::Scheme::Layout::kKeys, width>(pass, worker, pass.attended, out);
  constexpr bool converts = !Down::kFloatInputs, small = OwnRow<Down, MlpTraits::kInner>::kSmall;
  // Strips of code are not divided by panels, and inputs of both products lie in the same place.
  if (Out::kExploded || Down::kExploded || (converts && (pass.batch.rows > 1 || !small))) barrier(worker);
  add_product<Down, MlpTraits::kInner, width>(pass, worker, pass.inner, down);
  barrier(worker);
  return true;
}

}  // namespace kaoken::KAOKEN_ISA
