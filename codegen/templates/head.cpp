//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void head(Pass &pass, const Worker &worker) {
  if (pass.outputs.rows == 0) return;
GEN(arrays(unit))
  using head_type = GEN(kinds[table.slices[0].dtype]);
  constexpr int64_t slice_panels = GEN(table.slice_rows // panel);
  OwnRow<head_type, GEN(width)> row;
  const head_type::Inputs x = normed<GEN(norms[norm.kind])>(pass, worker, row, GEN(norm.epsilon | float32), GEN(ln_f_weight), GEN(ln_f_bias));
//% for slice in table.slices
  linear<head_type, GEN(width), GEN((slice.rows | round_up) // panel)>(
      worker, x, pass.batch.rows, {GEN(slice.arrays | names)},
      StoreLogits<GEN(graph.vocabulary)>{pass.output, GEN(loop.index0) * slice_panels, GEN(head_bias)},
      GEN(nexts[slice.name] | default("nullptr")));
//% endfor
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
