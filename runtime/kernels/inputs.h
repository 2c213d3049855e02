// What a linear reads: rows of floats, normalized or as they are, in the type of its matrix.
//
// A lone row is prepared by every worker for itself, which costs less than meeting at a barrier; several are divided
// among the workers.
#pragma once

#include "linear.h"
#include "norm.h"

namespace kaoken::KAOKEN_ISA {

// A worker's own row, on its stack.
template <class Kind, int64_t Depth>
struct OwnRow {
  static constexpr int64_t kStride = Kind::row_stride(Depth);
  static constexpr bool kSmall = kStride * sizeof(typename Kind::Input) <= 1 << 16;
  alignas(kAlignment) typename Kind::Input values[kSmall ? kStride : 1];
};

// Calls fill(row, inputs) for each row, and returns what it filled.
template <class Kind, int64_t Depth, class Fill>
KAOKEN_INLINE const typename Kind::Input *fill_rows(const Pass &pass, const Worker &worker, int64_t rows,
                                                    OwnRow<Kind, Depth> &own, const Fill &fill) {
  if (rows == 1 && own.kSmall) {
    fill(0, own.values);
    return own.values;
  }
  auto *values = static_cast<typename Kind::Input *>(pass.inputs);
  const Share mine = share(rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    fill(row, values + row * own.kStride);
  }
  barrier(worker);
  return values;
}

// The normalized rows of the residual stream; weight and bias may be null.
template <class Norm, class Kind, int64_t Width>
KAOKEN_INLINE const typename Kind::Input *normed(const Pass &pass, const Worker &worker, OwnRow<Kind, Width> &own,
                                                 float epsilon, const float *weight = nullptr,
                                                 const float *bias = nullptr) {
  constexpr int64_t stride = round_up(Width, kLanes);
  return fill_rows<Kind, Width>(pass, worker, pass.batch.rows, own, [&](int64_t row, typename Kind::Input *inputs) {
    alignas(kAlignment) float normed[stride];
    Norm::template apply<Width>(pass.hidden + row * stride, normed, epsilon, weight, bias);
    Kind::template convert<Width>(normed, inputs);
  });
}

// The vectors of a norm; null where it is bare.
struct NormVectors {
  const float *weight = nullptr, *bias = nullptr;
};

// The same where the residual stream takes the result, as it does behind a post-norm. Each row is one worker's, a lone
// one too: others read what it writes.
template <class Norm, class Kind, int64_t Width>
KAOKEN_INLINE const typename Kind::Input *replaced(const Pass &pass, const Worker &worker, float epsilon,
                                                   const NormVectors &norm) {
  constexpr int64_t stride = round_up(Width, kLanes);
  auto *inputs = static_cast<typename Kind::Input *>(pass.inputs);
  const Share mine = share(pass.batch.rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    float *hidden = pass.hidden + row * stride;
    Norm::template apply<Width>(hidden, hidden, epsilon, norm.weight, norm.bias);
    if constexpr (!Kind::kFloatInputs) {
      Kind::template convert<Width>(hidden, inputs + row * Kind::row_stride(Width));
    }
  }
  barrier(worker);
  if constexpr (Kind::kFloatInputs) {
    return pass.hidden;
  } else {
    return inputs;
  }
}

// Rows as they are, [rows][Depth padded with zeros].
template <class Kind, int64_t Depth>
KAOKEN_INLINE const typename Kind::Input *converted(const Pass &pass, const Worker &worker, OwnRow<Kind, Depth> &own,
                                                    const float *x) {
  if constexpr (Kind::kFloatInputs) {
    return x;
  } else {
    return fill_rows<Kind, Depth>(pass, worker, pass.batch.rows, own, [&](int64_t row, typename Kind::Input *inputs) {
      Kind::template convert<Depth>(x + row * round_up(Depth, kLanes), inputs);
    });
  }
}

// What a sublayer reads of the residual stream. Traits has the kWidth of it, the Norm with its kEpsilon, and kReplaces.
template <class Traits, class Kind>
KAOKEN_INLINE const typename Kind::Input *entered(const Pass &pass, const Worker &worker,
                                                  OwnRow<Kind, Traits::kWidth> &own, const NormVectors &norm) {
  using Norm = typename Traits::Norm;
  if constexpr (Norm::kNone) {
    return converted<Kind, Traits::kWidth>(pass, worker, own, pass.hidden);
  } else if constexpr (Traits::kReplaces) {
    return replaced<Norm, Kind, Traits::kWidth>(pass, worker, Traits::kEpsilon, norm);
  } else {
    return normed<Norm, Kind, Traits::kWidth>(pass, worker, own, Traits::kEpsilon, norm.weight, norm.bias);
  }
}

}  // namespace kaoken::KAOKEN_ISA
