// hidden = token embedding + position embedding.
#pragma once

#include "linear.h"

namespace kaoken::KAOKEN_ISA {

// Row `token` of a table stored as the head's panels, [shards][ShardPanels][Width][16]: a tied embedding is in the
// library once, so the lookup gathers one lane of a panel.
template <int64_t Width, int64_t ShardPanels>
KAOKEN_INLINE void add_token_from_panels(const float *const *shards, int64_t token, float *hidden) {
  const int64_t panel = token / kLanes;
  const float *lane = shards[panel / ShardPanels] + panel % ShardPanels * Width * kLanes + token % kLanes;
  for (int64_t i = 0; i < Width; ++i) hidden[i] += lane[i * kLanes];
}

// Row `token` of a table stored row by row, [shards][ShardRows][Width padded].
template <int64_t Width, int64_t ShardRows>
KAOKEN_INLINE void add_token_from_rows(const float *const *shards, int64_t token, float *hidden) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const float *row = shards[token / ShardRows] + token % ShardRows * stride;
  for (int64_t i = 0; i < Width; ++i) hidden[i] += row[i];
}

// positions: [n_positions][Width padded]. add_token(token, hidden) adds the token's row. Workers divide the rows.
template <int64_t Width, class AddToken>
KAOKEN_INLINE void embed(const Pass &pass, const Worker &worker, const float *positions, AddToken add_token) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share rows = share(pass.batch * pass.count, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float *position = positions + (pass.past + row % pass.count) * stride;
    float *hidden = pass.hidden + row * stride;
    for (int64_t i = 0; i < stride; i += kLanes) store(hidden + i, load(position + i));
    add_token(pass.ids[row], hidden);
  }
}

}  // namespace kaoken::KAOKEN_ISA
