// How workers divide what there is to do.
#pragma once

#include "kaoken/pass.h"
#include "vector.h"

namespace kaoken::KAOKEN_ISA {

// A worker's share of n things: [begin, end).
struct Share {
  int64_t begin, end;
};
KAOKEN_INLINE Share share(int64_t n, const Worker &worker) {
  return {n * worker.index / worker.count, n * (worker.index + 1) / worker.count};
}

}  // namespace kaoken::KAOKEN_ISA
