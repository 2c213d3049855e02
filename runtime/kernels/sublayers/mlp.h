// x += down(activation(up(norm(x)))) or, with a gate, down(activation(gate(norm(x))) * up(norm(x))).
#pragma once

#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// Traits has what entered() asks for, kInner, the Activation, and the types of the matrices (Up, Down). With kGated a
// panel of the gate and one of what it gates follow each other in `up`, in turns.
template <class Traits>
KAOKEN_INLINE void mlp(Pass &pass, const Worker &worker, const NormVectors &norm,
                       const Product<typename Traits::Up> &up, const Product<typename Traits::Down> &down) {
  using Up = typename Traits::Up;
  constexpr int64_t stride = round_up(Traits::kInner, kPanel);
  OwnRow<Up, Traits::kWidth> row;
  const typename Up::Input *x = entered<Traits>(pass, worker, row, norm);
  if constexpr (Traits::kGated) {
    linear<Up, Traits::kWidth, 2 * stride / kPanel, 2>(
        worker, x, pass.batch.rows, up.matrix, StoreGated<typename Traits::Activation, stride>{pass.inner, up.bias},
        up.next);
  } else {
    linear<Up, Traits::kWidth, stride / kPanel>(worker, x, pass.batch.rows, up.matrix,
                                                Store<typename Traits::Activation, stride>{pass.inner, up.bias},
                                                up.next);
  }
  barrier(worker);
  add_product<typename Traits::Down, Traits::kInner, Traits::kWidth>(pass, worker, pass.inner, down);
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA
