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

// The residual stream += x W^T + bias, of rows [rows][Depth padded] as they are.
template <class Kind, int64_t Depth, int64_t Width>
KAOKEN_INLINE void add_product(const Pass &pass, const Worker &worker, const float *x, const Product<Kind> &product) {
  constexpr int64_t stride = round_up(Width, kLanes);
  OwnRow<Kind, Depth> row;
  linear<Kind, Depth, stride / kLanes>(worker, converted(pass, worker, row, x), pass.batch.rows, product.matrix,
                                       AddResidual<stride>{pass.hidden, product.bias}, product.next);
}

}  // namespace kaoken::KAOKEN_ISA
