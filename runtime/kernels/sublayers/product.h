// The products of a sublayer: matrices of any kind, with what belongs to them.
#pragma once

#include "exploded.h"
#include "inputs.h"

namespace kaoken::KAOKEN_ISA {

// A matrix, its bias, and where a worker goes on reading behind its share of it, or null.
template <class Kind>
struct Product {
  typename Kind::Matrix matrix;
  const float *bias;
  const char *next;
};

// What becomes of a sublayer's last product before the residual stream takes it: nothing, or a norm of its rows.
struct NoBranch {
  static constexpr bool kNone = true;
};
template <class Norm>
struct NormedBranch {
  static constexpr bool kNone = false;
  NormVectors norm;
  float epsilon;

  // The residual stream += the norm of rows [rows][Width padded], which are overwritten. Workers divide the rows.
  template <int64_t Width>
  KAOKEN_MEMBER void add_rows(const Pass &pass, const Worker &worker, float *rows) const {
    constexpr int64_t stride = round_up(Width, kLanes);
    const Share mine = share(pass.batch.rows, worker);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      float *x = rows + row * stride, *hidden = pass.hidden + row * stride;
      Norm::template apply<Width>(x, x, epsilon, norm.weight, norm.bias);
      for (int64_t i = 0; i < stride; i += kLanes) store(hidden + i, add(load(hidden + i), load(x + i)));
    }
  }
};

// The residual stream += x W^T + bias or the branch's norm of it, of rows [rows][Depth padded] as they are. A norm
// needs whole rows, so the product then goes to pass.qkv, which nobody needs behind attention, and takes a barrier.
template <class Kind, int64_t Depth, int64_t Width, class Branch = NoBranch>
KAOKEN_INLINE void add_product(const Pass &pass, const Worker &worker, const float *x, const Product<Kind> &product,
                               const Branch &branch = {}) {
  constexpr int64_t stride = round_up(Width, kLanes);
  OwnRow<Kind, Depth> row;
  if constexpr (Branch::kNone) {
    linear<Kind, Depth, stride / kLanes>(worker, converted(pass, worker, row, x), pass.batch.rows, product.matrix,
                                         AddResidual<stride>{pass.hidden, product.bias}, product.next);
  } else {
    linear<Kind, Depth, stride / kLanes>(worker, converted(pass, worker, row, x), pass.batch.rows, product.matrix,
                                         Store<no_activation, stride>{pass.qkv, product.bias}, product.next);
    barrier(worker);
    branch.template add_rows<Width>(pass, worker, pass.qkv);
  }
}

}  // namespace kaoken::KAOKEN_ISA
