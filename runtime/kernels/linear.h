// y = epilogue(x W^T) over packed panels, for one row as for hundreds.
#pragma once

#include "exploded.h"
#include "functions.h"
#include "kinds.h"
#include "share.h"

namespace kaoken::KAOKEN_ISA {

template <class Kind, int64_t Depth>
KAOKEN_INLINE const char *panel_address(const typename Kind::Matrix &w, int64_t panel) {
  return reinterpret_cast<const char *>(w.weights) + panel * Kind::panel_bytes(Depth);
}

// Where a worker will begin to read a matrix of so many panels: what linear() calls `next`.
KAOKEN_INLINE const char *own_share(const Worker &worker, const char *weights, int64_t panels, int64_t panel_bytes) {
  return weights + share(panels, worker).begin * panel_bytes;
}

// One row against the panels, `Panels` at a time while that many are left, then one at a time.
template <class Kind, int Panels, int64_t Depth, class Epilogue>
KAOKEN_INLINE void stream_panels(const typename Kind::Input *x, const typename Kind::Matrix &w, Share panels,
                                 const Epilogue &epilogue, const char *next) {
  alignas(kAlignment) typename Kind::Element sums[Panels * kLanes];
  int64_t panel = panels.begin;
  for (; panel + Panels <= panels.end; panel += Panels) {
    const bool more = panel + Panels < panels.end;
    Kind::template stream<Panels>(x, w, panel, Depth, sums,
                                  more ? panel_address<Kind, Depth>(w, panel + Panels) : next);
    for (int64_t p = 0; p < Panels; ++p) {
      epilogue(0, panel + p, Kind::finish(sums + p * kLanes, w, panel + p));
    }
  }
  if constexpr (Panels > 1) stream_panels<Kind, 1, Depth>(x, w, {panel, panels.end}, epilogue, next);
}

// The same for many rows: the weights of a few panels serve a block of rows before the next are read.
template <class Kind, int Panels, int64_t Depth, class Epilogue>
KAOKEN_INLINE void block_panels(const typename Kind::Input *x, int64_t rows, const typename Kind::Matrix &w,
                                Share panels, const Epilogue &epilogue, const char *next) {
  alignas(kAlignment) typename Kind::Element sums[kRowBlock * Panels * kLanes];
  int64_t panel = panels.begin;
  for (; panel + Panels <= panels.end; panel += Panels) {
    const char *after = panel + Panels < panels.end ? panel_address<Kind, Depth>(w, panel + Panels) : next;
    for (int64_t first = 0; first < rows; first += kRowBlock) {
      const int64_t count = rows - first < kRowBlock ? rows - first : kRowBlock;
      Kind::template block<Panels>(x + first * Kind::row_stride(Depth), count, w, panel, Depth, sums,
                                   first == 0 ? after : nullptr);
      for (int64_t i = 0; i < count * Panels; ++i) {
        const int64_t row = first + i / Panels, at = panel + i % Panels;
        epilogue(row, at, Kind::finish(sums + i * kLanes, w, at));
      }
    }
  }
  if constexpr (Panels > 1) block_panels<Kind, 1, Depth>(x, rows, w, {panel, panels.end}, epilogue, next);
}

// x: [rows][Depth padded]. The epilogue is called once for each row and panel with the 16 finished sums. `next` is what
// this worker will read after the panels, or null.
template <class Kind, int64_t Depth, class Epilogue>
void multiply(const typename Kind::Input *x, int64_t rows, const typename Kind::Matrix &w, Share panels,
              const Epilogue &epilogue, const char *next) {
  if (rows == 1) {
    stream_panels<Kind, Kind::kStreamPanels, Depth>(x, w, panels, epilogue, next);
  } else {
    block_panels<Kind, Kind::kTilePanels, Depth>(x, rows, w, panels, epilogue, next);
  }
}

// The same with all of a matrix of any kind, [Panels] panels that workers divide, Together at a time; the caller puts a
// barrier behind it.
template <class Kind, int64_t Depth, int64_t Panels, int64_t Together = 1, class Epilogue>
KAOKEN_INLINE void linear(const Worker &worker, const typename Kind::Input *x, int64_t rows,
                          const typename Kind::Matrix &w, const Epilogue &epilogue, const char *next = nullptr) {
  if constexpr (Kind::kExploded) {
    run_strips<Kind, Depth>(worker, x, rows, w, epilogue);
  } else {
    const Share mine = share(Panels / Together, worker);
    multiply<Kind, Depth>(x, rows, w, {mine.begin * Together, mine.end * Together}, epilogue, next);
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

// The panels of a gate and of what it gates in turns: out[row][:] = Activation(gate + bias) * (sum + bias). A worker
// has both of a pair, in this order.
template <class Activation, int64_t Width>
struct StoreGated {
  float *out;
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    float *to = out + row * Width + panel / 2 * kLanes;
    sum = add(sum, load(bias + panel * kLanes));
    store(to, panel % 2 == 0 ? Activation::apply(sum) : mul(load(to), sum));
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
  float *logits;  // [rows][Vocabulary]
  int64_t first;
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t token = (first + panel) * kLanes;
    float *out = logits + row * Vocabulary + token;
    if (bias) sum = add(sum, load(bias + token));
    if (token + kLanes <= Vocabulary) return store(out, sum);
    float lanes[kLanes];
    store(lanes, sum);
    for (int64_t lane = 0; token + lane < Vocabulary; ++lane) out[lane] = lanes[lane];
  }
};

}  // namespace kaoken::KAOKEN_ISA
