// y = epilogue(x W^T) over packed panels, for one row as for hundreds.
#pragma once

#include "functions.h"
#include "kaoken/pass.h"
#include "tile.h"

namespace kaoken::KAOKEN_ISA {

static_assert(kLanes == kPanel, "a panel is one Vec wide");

// A worker's share of n things: [begin, end).
struct Share {
  int64_t begin, end;
};
KAOKEN_INLINE Share share(int64_t n, const Worker &worker) {
  return {n * worker.index / worker.count, n * (worker.index + 1) / worker.count};
}

// Every row against the panels [panel, end), `Panels` at a time while that many are left, then one at a time.
template <int Rows, int Panels, int64_t Depth, class Epilogue>
KAOKEN_INLINE void linear_panels(const float *x, int64_t rows, const float *w, Share panels, const Epilogue &epilogue) {
  constexpr int64_t x_stride = round_up(Depth, kLanes);
  constexpr int64_t w_stride = Depth * kLanes;
  alignas(kAlignment) float sums[Rows * Panels * kLanes];
  int64_t panel = panels.begin;
  for (; panel + Panels <= panels.end; panel += Panels) {
    for (int64_t row = 0, done; row < rows; row += done) {
      done = largest_tile<Rows, Panels>(rows - row, x + row * x_stride, x_stride, w + panel * w_stride, w_stride, Depth,
                                        sums, Panels * kLanes);
      for (int64_t i = 0; i < done * Panels; ++i) {
        epilogue(row + i / Panels, panel + i % Panels, load(sums + i * kLanes));
      }
    }
  }
  if constexpr (Panels > 1) linear_panels<Rows, 1, Depth>(x, rows, w, {panel, panels.end}, epilogue);
}

// x: [rows][Depth padded]; w: [Panels][Depth][16] (codegen/layout.py). The epilogue is called once for each row and
// panel with the 16 finished sums. Workers divide the panels; the caller puts a barrier behind it.
template <int64_t Depth, int64_t Panels, class Epilogue>
void linear(const Worker &worker, const float *x, int64_t rows, const float *w, const Epilogue &epilogue) {
  const Share panels = share(Panels, worker);
  if (rows == 1) {
    linear_panels<1, kStreamPanels, Depth>(x, rows, w, panels, epilogue);
  } else {
    linear_panels<kTileRows, kTilePanels, Depth>(x, rows, w, panels, epilogue);
  }
}

// out[row][:] = Activation(sum + bias)
template <class Activation, int64_t Width>
struct Store {
  float *out;
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    store(out + row * Width + panel * kLanes, Activation::apply(add(sum, load(bias + panel * kLanes))));
  }
};

// hidden[row][:] += sum + bias
template <int64_t Width>
struct AddResidual {
  float *hidden;
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    float *out = hidden + row * Width + panel * kLanes;
    store(out, add(load(out), add(sum, load(bias + panel * kLanes))));
  }
};

// Logits of the panels from `first` on, cut at the vocabulary's end. `bias` is null where the head has none.
template <int64_t Vocabulary>
struct StoreLogits {
  const Pass &pass;
  int64_t first;
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t per_sequence = pass.logits_which == KAOKEN_LOGITS_ALL ? pass.count : 1;
    const int64_t token = (first + panel) * kLanes;
    float *out = pass.logits + row / per_sequence * pass.logits_stride + row % per_sequence * Vocabulary + token;
    if (bias) sum = add(sum, load(bias + token));
    if (token + kLanes <= Vocabulary) return store(out, sum);
    float lanes[kLanes];
    store(lanes, sum);
    for (int64_t lane = 0; token + lane < Vocabulary; ++lane) out[lane] = lanes[lane];
  }
};

}  // namespace kaoken::KAOKEN_ISA
