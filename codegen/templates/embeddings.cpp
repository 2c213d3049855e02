//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN(units | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void GEN(unit.name)(Pass &pass, const Worker &worker) {
//% for unit in units
GEN(arrays(unit))
//% endfor
  const GEN(kinds[table.slices[0].dtype])::Matrix tokens[] = {
//% for slice in table.slices
      {GEN(slice.arrays | names)},
//% endfor
  };
//% set vectors = ["positions", "types", "embeddings_norm_weight", "embeddings_norm_bias"]
//% set known = []
//% for vector in vectors if vector in stack.vectors
//% set _ = known.append(vector)
//% endfor
  const EmbeddingTables tables = {
//%- for vector in vectors
GEN(vector if vector in known else "nullptr")GEN(", " if not loop.last else "")
//%- endfor
};
  embed<GEN(kinds[table.slices[0].dtype]), GEN(norms[norm.kind] if norm else "NoNorm"), GEN(stack.stack.embeddings.width), GEN(table.slice_rows)>(pass, worker, tables, GEN((norm.epsilon if norm else 0.0) | float32), tokensGEN(", pass.inner" if stack.projection else ""));
//% if stack.projection
  project<GEN(stack.projection | kind), GEN(stack.projection.depth), GEN(stack.projection.rows)>(pass, worker, {GEN(stack.projection | value), projection_bias, nullptr});
//% endif
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
