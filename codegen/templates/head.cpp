//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN([unit] | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void head(Pass &pass, const Worker &worker) {
  if (pass.outputs.rows == 0) return;
GEN(arrays(unit))
//% if head.pooling
  pool<GEN(width)GEN(poolings)>(pass, worker);
//% endif
//% for layer, matrix in head.layers | zip(packed.head.layers)
//% set norm = layer.norm
  head_layer<GEN(matrix | kind), GEN(matrix.depth), GEN(matrix.rows), GEN((layer.activation or "no") ~ "_activation"), GEN(norms[norm.kind] if norm else "NoNorm")>(
      pass, worker, {GEN(matrix | value), GEN(matrix.name)_bias, GEN(nexts[matrix.name] | default("nullptr"))}, GEN((norm.epsilon if norm else 0.0) | float32), GEN(layer_norms[loop.index0]));
//% endfor
//% if table
  using head_type = GEN(kinds[table.slices[0].dtype]);
  constexpr int64_t slice_panels = GEN(table.slice_rows // panel);
  OwnRow<head_type, GEN(depth)> row;
//% if graph.decoder
  const head_type::Input *x = normed<GEN(norms[norm.kind])>(pass, worker, row, GEN(norm.epsilon | float32), GEN(ln_f_weight), GEN(ln_f_bias));
//% else
  const head_type::Input *x = converted(pass, worker, row, pass.hidden);
//% endif
//% for slice in table.slices
  linear<head_type, GEN(depth), GEN((slice.rows | round_up) // panel)>(
      worker, x, pass.batch.rows, {GEN(slice.arrays | names)},
      StoreLogits<GEN(graph.output_width)>{pass.output, GEN(loop.index0) * slice_panels, GEN(head_bias)},
      GEN(nexts[slice.name] | default("nullptr")));
//% endfor
//% else
  store_rows<GEN(graph.output_width), GEN(head.normalize | lower)>(pass, worker);
//% endif
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
