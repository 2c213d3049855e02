// x += out(attention(query of norm(x), key and value of the source)), where an encoder has left keys and values.
#pragma once

#include "attention.h"
#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// Traits has a Scheme, what entered() asks for, and the types of the matrices (Query, Out).
template <class Traits>
KAOKEN_INLINE void cross_attention(Pass &pass, const Worker &worker, int64_t cache_before, const NormVectors &norm,
                                   const Product<typename Traits::Query> &query,
                                   const Product<typename Traits::Out> &out) {
  using Query = typename Traits::Query;
  using Scheme = typename Traits::Scheme;
  using Heads = typename Scheme::Layout;
  OwnRow<Query, Traits::kWidth> row;
  const typename Query::Input *x = entered<Traits>(pass, worker, row, norm);
  linear<Query, Traits::kWidth, Heads::kStride / kPanel, Heads::kDim / kPanel * Heads::kShared>(
      worker, x, pass.batch.rows, query.matrix, StoreQueryKeyValue<Heads, Heads::kStride>{pass.qkv, query.bias},
      query.next);
  const HeadShare own = Query::kExploded ? HeadShare{{0, Heads::kGroups}, worker} : head_share<Heads::kGroups>(worker);
  barrier(own.worker);
  attention<Scheme>(pass, own, CacheOf<Scheme>(pass.source, cache_before), {}, {});
  barrier(worker);
  add_product<typename Traits::Out, Heads::kKeys, Traits::kWidth>(pass, worker, pass.attended, out);
  barrier(worker);
}

// The keys and values of one block from the encoder's outputs, which are in the residual stream: once for each source.
// Traits has a Scheme, kWidth of the encoder, and the type of the matrix (KeyValue).
template <class Traits>
KAOKEN_INLINE void extend_source(Pass &pass, const Worker &worker, int64_t cache_before,
                                 const Product<typename Traits::KeyValue> &key_value) {
  using KeyValue = typename Traits::KeyValue;
  using Scheme = typename Traits::Scheme;
  using Heads = typename Scheme::Layout;
  OwnRow<KeyValue, Traits::kWidth> row;
  linear<KeyValue, Traits::kWidth, Heads::kStride / kPanel>(
      worker, converted<KeyValue, Traits::kWidth>(pass, worker, row, pass.hidden), pass.batch.rows, key_value.matrix,
      StoreQueryKeyValue<Heads, 0>{pass.qkv, nullptr}, key_value.next);
  barrier(worker);
  extend_cache<Scheme>(pass, {{0, Heads::kGroups}, worker}, CacheOf<Scheme>(pass.source, cache_before), {});
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA
