//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void GEN(unit.name)(Pass &pass, const Worker &worker) {
GEN(arrays(unit))
  GEN("norm_outputs" if stack.prefix else "store_outputs")<GEN(norms[norm.kind]), GEN(stack.stack.width)>(
      pass, worker, GEN(norm.epsilon | float32), {output_norm_weight, GEN("output_norm_bias" if norm.bias else "nullptr")});
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
