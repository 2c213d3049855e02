// x += out(attention(query, key, value of norm(x))).
#pragma once

#include "relative.h"
#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// A worker's own copy of a lone row of queries, keys and values, on its stack, where a Scheme norms whole rows.
template <class Scheme>
struct OwnHeads {
  static constexpr int64_t kStride = Scheme::Layout::kStride;
  static constexpr bool kSmall = kStride * sizeof(float) <= 1 << 16;
  alignas(kAlignment) float values[kSmall ? kStride : 1];
};

// Norms of all queries, of all keys, or of both, in place; returns where the rows are then. They read what all workers
// have projected, so a barrier stands in front. Of several rows each is normed by one worker, which takes a barrier
// behind it, too. A lone row is copied and normed by each worker for itself.
template <class Scheme, bool Queries, bool Keys>
KAOKEN_INLINE float *norm_rows(const Pass &pass, const Worker &worker, OwnHeads<Scheme> &own,
                               const typename Scheme::Rotary &rotary) {
  using Heads = typename Scheme::Layout;
  barrier(worker);
  const bool lone = own.kSmall && pass.batch.rows == 1;
  const Share mine = lone ? Share{0, 1} : share(pass.batch.rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const float *from = pass.qkv + row * Heads::kStride;
    float *to = lone ? own.values : pass.qkv + row * Heads::kStride;
    if constexpr (Queries) rotary.template norm_queries<Heads::kKeys>(from, to);
    if constexpr (Keys) {
      rotary.template norm_keys<Heads::kValues - Heads::kKeys>(from + Heads::kKeys, to + Heads::kKeys);
      for (int64_t i = Heads::kValues; lone && i < Heads::kStride; i += kLanes) store(to + i, load(from + i));
    }
  }
  if (lone) return own.values;
  barrier(worker);
  return pass.qkv;
}

// The pass with other queries, keys and values; workers share a pass, so that each has to change a copy.
KAOKEN_INLINE Pass with_heads(Pass pass, float *qkv) {
  pass.qkv = qkv;
  return pass;
}

// From the inputs `x` to pass.attended; the caller puts a barrier behind it. Traits has a Scheme, the types of the
// matrices (Qkv, Out), and kLast, for the last block: behind its keys and values only the rows that outputs are asked
// of go on. Where none are, the pass is over, and this returns false. `beside` is called behind the queries'
// projection, for rows that go on.
template <class Traits, class Beside>
KAOKEN_INLINE bool attend(Pass &pass, const Worker &worker, int64_t cache_before, const typename Traits::Qkv::Input *x,
                          const Product<typename Traits::Qkv> &qkv, const typename Traits::Scheme::Rotary &rotary,
                          const typename Traits::Scheme::Bias &bias, const Beside &beside) {
  using Qkv = typename Traits::Qkv;
  using Scheme = typename Traits::Scheme;
  using Heads = typename Scheme::Layout;
  constexpr int64_t width = Traits::kWidth;
  const CacheOf<Scheme> cache(Scheme::kKeepsWindow ? pass.window : pass.cache, cache_before);
  constexpr bool biased_keys = !Scheme::Rotary::kNone || Scheme::Bias::kBiasedKeys;
  constexpr bool norms_rows = Scheme::Rotary::kNormsRows, has_queries = !Traits::kLast || Qkv::kExploded;
  [[maybe_unused]] OwnHeads<Scheme> own_heads;
  [[maybe_unused]] float *heads = nullptr;  // where they are behind their norms
  const StoreQueryKeyValue<Heads, biased_keys ? Heads::kValues : Heads::kKeys> store_qkv = {pass.qkv, qkv.bias};

  // The strips of code are in no order of heads, so their workers wait for each other.
  const HeadShare own = Qkv::kExploded ? HeadShare{{0, Heads::kGroups}, worker} : head_share<Heads::kGroups>(worker);
  if constexpr (Qkv::kExploded) {
    linear<Qkv, width, Heads::kStride / kPanel>(worker, x, pass.batch.rows, qkv.matrix, store_qkv);
  } else {
    project_keys_and_values<Heads, Qkv, width>(worker, x, pass.batch.rows, qkv.matrix, store_qkv);
    if (!Traits::kLast) {
      project_queries<Heads, Qkv, width>(worker, x, pass.batch.rows, qkv.matrix, store_qkv, qkv.next);
    }
  }
  if (!Traits::kLast) beside();
  if constexpr (norms_rows) {
    heads = norm_rows<Scheme, has_queries, true>(pass, worker, own_heads, rotary);
    extend_cache<Scheme>(with_heads(pass, heads), own, cache, rotary);
  } else {
    barrier(own.worker);
    extend_cache<Scheme>(pass, own, cache, rotary);
  }

  if constexpr (Traits::kLast) {
    if (pass.outputs.rows == 0) return false;
    keep_outputs<Heads, Qkv, width, round_up(width, kPanel)>(pass, worker);
    if constexpr (!Qkv::kExploded) {
      project_queries<Heads, Qkv, width>(worker, x, pass.batch.rows, qkv.matrix, store_qkv, qkv.next);
    }
    beside();
    if constexpr (norms_rows && !Qkv::kExploded) {
      heads = norm_rows<Scheme, true, false>(pass, worker, own_heads, rotary);
    } else if constexpr (!Qkv::kExploded) {
      barrier(own.worker);
    }
  }

  wait_for_cache<Scheme>(pass, own);
  if constexpr (Scheme::Bias::kRelative) {
    relative_attention<Scheme>(pass, own, cache, bias);
  } else if constexpr (norms_rows) {
    attention<Scheme>(with_heads(pass, heads), own, cache, rotary, bias);
  } else {
    attention<Scheme>(pass, own, cache, rotary, bias);
  }
  return true;
}

// Traits has what attend() and entered() ask for. Returns false where the pass is over.
template <class Traits, class Branch = NoBranch>
KAOKEN_INLINE bool self_attention(Pass &pass, const Worker &worker, int64_t cache_before, const NormVectors &norm,
                                  const Product<typename Traits::Qkv> &qkv, const Product<typename Traits::Out> &out,
                                  const typename Traits::Scheme::Rotary &rotary,
                                  const typename Traits::Scheme::Bias &bias, const Branch &branch = {}) {
  OwnRow<typename Traits::Qkv, Traits::kWidth> row;
  const typename Traits::Qkv::Input *x = entered<Traits>(pass, worker, row, norm);
  if (!attend<Traits>(pass, worker, cache_before, x, qkv, rotary, bias, [] {})) return false;
  barrier(worker);
  add_product<typename Traits::Out, Traits::Scheme::Layout::kKeys, Traits::kWidth>(pass, worker, pass.attended, out,
                                                                                   branch);
  barrier(worker);
  return true;
}

}  // namespace kaoken::KAOKEN_ISA
