// hidden = norm(token + position + token type embedding), or as much of that as a model has.
#pragma once

#include "linear.h"
#include "norm.h"

namespace kaoken::KAOKEN_ISA {

// Tables of rows of [Width padded]; null where there is none.
struct EmbeddingTables {
  const float *positions;
  const float *types;
  const float *norm_weight, *norm_bias;
};

// `slices` are the table of tokens as the panels of a matrix of Kind, SliceRows tokens each: a tied embedding is in the
// library once, so the lookup gathers from the head's panels. Workers divide the rows.
template <class Kind, class Norm, int64_t Width, int64_t SliceRows>
KAOKEN_INLINE void embed(const Pass &pass, const Worker &worker, const EmbeddingTables &tables, float epsilon,
                         const typename Kind::Matrix *slices) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share rows = share(pass.batch.rows, worker);
  const Sequence *sequence = pass.batch.sequences;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    while (row >= sequence->row + sequence->count) ++sequence;
    const int64_t token = pass.ids[row];
    const typename Kind::Matrix &slice = slices[token / SliceRows];
    float *hidden = pass.hidden + row * stride;
    const int64_t position = sequence->past + row - sequence->row;
    for (int64_t i = 0; i < stride; i += kLanes) {
      Vec sum = tables.positions ? load(tables.positions + position * stride + i) : broadcast(0.0f);
      if (tables.types) sum = add(sum, load(tables.types + pass.types[row] * stride + i));
      store(hidden + i, sum);
    }
    for (int64_t i = 0; i < Width; ++i) hidden[i] += Kind::weight(slice, Width, token % SliceRows, i);
    if constexpr (!Norm::kNone) {
      Norm::template apply<Width>(hidden, hidden, epsilon, tables.norm_weight, tables.norm_bias);
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
