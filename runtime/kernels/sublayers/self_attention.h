// x += out(attention(query, key, value of norm(x))), each position seeing itself and those before it.
#pragma once

#include "attention.h"
#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// Traits has kWidth, kEpsilon, kHeads, kHeadDim, the types of the KV cache (Cache) and of the matrices (Qkv, Out), and
// kLast, for the last block: behind its keys and values only the rows that logits are asked of go on. Where none are,
// the pass is over, and this returns false.
template <class Traits>
KAOKEN_INLINE bool self_attention(Pass &pass, const Worker &worker, int64_t cache_before,
                                  const Product<typename Traits::Qkv> &qkv, const Product<typename Traits::Out> &out) {
  using Qkv = typename Traits::Qkv;
  constexpr int64_t width = Traits::kHeads * round_up(Traits::kHeadDim, kPanel);
  const BlockCache<typename Traits::Cache, Traits::kHeads, Traits::kHeadDim> cache(pass, cache_before);
  const StoreQueryKeyValue<width> store_qkv = {pass.qkv, qkv.bias};

  OwnRow<Qkv, Traits::kWidth> row;
  const typename Qkv::Inputs x = normed(pass, worker, row, Traits::kEpsilon);
  // The strips of code are in no order of heads, so their workers wait for each other.
  const HeadPart part = Qkv::kExploded ? HeadPart{{0, Traits::kHeads}, worker} : head_part<Traits::kHeads>(worker);
  if constexpr (Qkv::kExploded) {
    linear<Qkv, Traits::kWidth, 3 * width / kPanel>(worker, x, rows(pass), qkv.matrix, store_qkv);
  } else {
    project_keys_and_values<Qkv, Traits::kWidth>(worker, x, rows(pass), qkv.matrix, store_qkv);
    if (!Traits::kLast) project<Qkv, Traits::kWidth>(kQueries, worker, x, rows(pass), qkv.matrix, store_qkv, qkv.next);
  }
  barrier(part.worker);
  extend_cache(pass, part, cache);

  if constexpr (Traits::kLast) {
    if (pass.logits_which == KAOKEN_LOGITS_NONE) return false;
    keep_last_positions<Qkv, Traits::kWidth, round_up(Traits::kWidth, kPanel), width>(pass, worker);
    if constexpr (!Qkv::kExploded) {
      project<Qkv, Traits::kWidth>(kQueries, worker, x, rows(pass), qkv.matrix, store_qkv, qkv.next);
      barrier(part.worker);
    }
  }

  attention(pass, part, cache);
  barrier(worker);
  add_product<typename Traits::Out, width, Traits::kWidth>(pass, worker, pass.attended, out);
  barrier(worker);
  return true;
}

}  // namespace kaoken::KAOKEN_ISA
