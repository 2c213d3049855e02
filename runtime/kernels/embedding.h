// hidden = token embedding + position embedding, or the first alone.
#pragma once

#include "linear.h"

namespace kaoken::KAOKEN_ISA {

// positions: [n_positions][Width padded], or null. `shards` are the table of tokens as the panels of a matrix of Kind,
// ShardRows tokens each: a tied embedding is in the library once, so the lookup gathers from the head's panels.
// Workers divide the rows.
template <class Kind, int64_t Width, int64_t ShardRows>
KAOKEN_INLINE void embed(const Pass &pass, const Worker &worker, const float *positions,
                         const typename Kind::Matrix *shards) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share rows = share(pass.batch.rows, worker);
  const Sequence *sequence = pass.batch.sequences;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    while (row >= sequence->row + sequence->count) ++sequence;
    const int64_t token = pass.ids[row];
    const typename Kind::Matrix &shard = shards[token / ShardRows];
    float *hidden = pass.hidden + row * stride;
    const int64_t position = sequence->past + row - sequence->row;
    for (int64_t i = 0; i < stride; i += kLanes) {
      store(hidden + i, positions ? load(positions + position * stride + i) : broadcast(0.0f));
    }
    for (int64_t i = 0; i < Width; ++i) hidden[i] += Kind::weight(shard, Width, token % ShardRows, i);
  }
}

}  // namespace kaoken::KAOKEN_ISA
