//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void GEN(unit.name)(Pass &pass, const Worker &worker) {
//% if not stack.prefix
  if (pass.outputs.rows == 0) return;
//% endif
GEN(arrays(unit))
  const NormVectors norm = {output_norm_weight, GEN("output_norm_bias" if norm.bias else "nullptr")};
//% if graph.head and not stack.prefix
  if (!pass.hidden_states) return norm_outputs<GEN(norms[norm.kind]), GEN(stack.stack.width)>(pass, worker, GEN(norm.epsilon | float32), norm);
//% endif
  GEN("norm_outputs" if stack.prefix else "store_outputs")<GEN(norms[norm.kind]), GEN(stack.stack.width)>(pass, worker, GEN(norm.epsilon | float32), norm);
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
