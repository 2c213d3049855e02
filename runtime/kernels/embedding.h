// hidden = projection(norm(token + position + token type embedding)), or as much of that as a model has.
#pragma once

#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// Tables of rows of [Width padded]; null where there is none.
struct EmbeddingTables {
  const float *positions;
  const float *types;
  const float *norm_weight, *norm_bias;
};

// `slices` are the table of tokens as the panels of a matrix of Kind, SliceRows tokens each: a tied embedding is in the
// library once, so the lookup gathers from the head's panels. Workers divide the rows, which go to `out`,
// [rows][Width padded], or where that is null to the residual stream.
template <class Kind, class Norm, int64_t Width, int64_t SliceRows>
KAOKEN_INLINE void embed(const Pass &pass, const Worker &worker, const EmbeddingTables &tables, float epsilon,
                         const typename Kind::Matrix *slices, float *out = nullptr) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share rows = share(pass.batch.rows, worker);
  const Sequence *sequence = pass.batch.sequences;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    while (row >= sequence->row + sequence->count) ++sequence;
    const int64_t token = pass.ids[row];
    const typename Kind::Matrix &slice = slices[token / SliceRows];
    float *hidden = (out ? out : pass.hidden) + row * stride;
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

// hidden = x W^T + bias of the rows [Depth padded] that embed() has left in pass.inner.
template <class Kind, int64_t Depth, int64_t Width>
KAOKEN_INLINE void project(const Pass &pass, const Worker &worker, const Product<Kind> &product) {
  barrier(worker);
  OwnRow<Kind, Depth> row;
  linear<Kind, Depth, round_up(Width, kPanel) / kPanel>(
      worker, converted(pass, worker, row, pass.inner), pass.batch.rows, product.matrix,
      Store<no_activation, round_up(Width, kPanel)>{pass.hidden, product.bias});
}

}  // namespace kaoken::KAOKEN_ISA
