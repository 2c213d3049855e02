// x += down(activation(up(norm(x)))) or, with a gate, down(activation(gate(norm(x))) * up(norm(x))).
#pragma once

#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

// The inputs `x` -> pass.inner; the caller puts a barrier behind it. Traits has kWidth, kInner, the Activation, and the
// type of the matrix (Up). With kGated a panel of the gate and one of what it gates follow each other in `up`, in
// turns.
template <class Traits>
KAOKEN_INLINE void project_up(const Pass &pass, const Worker &worker, const typename Traits::Up::Input *x,
                              const Product<typename Traits::Up> &up) {
  using Up = typename Traits::Up;
  constexpr int64_t stride = round_up(Traits::kInner, kPanel);
  if constexpr (Traits::kGated) {
    linear<Up, Traits::kWidth, 2 * stride / kPanel, 2>(
        worker, x, pass.batch.rows, up.matrix, StoreGated<typename Traits::Activation, stride>{pass.inner, up.bias},
        up.next);
  } else {
    linear<Up, Traits::kWidth, stride / kPanel>(worker, x, pass.batch.rows, up.matrix,
                                                Store<typename Traits::Activation, stride>{pass.inner, up.bias},
                                                up.next);
  }
}

// Traits has what entered() and project_up() ask for, and the type of the other matrix (Down).
template <class Traits, class Branch = NoBranch>
KAOKEN_INLINE void mlp(Pass &pass, const Worker &worker, const NormVectors &norm,
                       const Product<typename Traits::Up> &up, const Product<typename Traits::Down> &down,
                       const Branch &branch = {}) {
  OwnRow<typename Traits::Up, Traits::kWidth> row;
  project_up<Traits>(pass, worker, entered<Traits>(pass, worker, row, norm), up);
  barrier(worker);
  add_product<typename Traits::Down, Traits::kInner, Traits::kWidth>(pass, worker, pass.inner, down, branch);
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA
