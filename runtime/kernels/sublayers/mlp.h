// x += down(activation(up(norm(x)))).
#pragma once

#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// Traits has kWidth, kInner, kEpsilon, the Activation, and the types of the matrices (Up, Down).
template <class Traits>
KAOKEN_INLINE void mlp(Pass &pass, const Worker &worker, const Product<typename Traits::Up> &up,
                       const Product<typename Traits::Down> &down) {
  using Up = typename Traits::Up;
  constexpr int64_t stride = round_up(Traits::kInner, kPanel);
  OwnRow<Up, Traits::kWidth> row;
  linear<Up, Traits::kWidth, stride / kPanel>(worker, normed(pass, worker, row, Traits::kEpsilon), rows(pass),
                                              up.matrix,
                                              Store<typename Traits::Activation, stride>{pass.inner, up.bias}, up.next);
  barrier(worker);
  add_product<typename Traits::Down, Traits::kInner, Traits::kWidth>(pass, worker, pass.inner, down);
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA
