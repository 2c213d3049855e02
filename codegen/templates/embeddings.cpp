//% from "arrays.inc" import arrays with context
// GEN(note)
// From: GEN(units | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void embeddings(Pass &pass, const Worker &worker) {
//% for unit in units
GEN(arrays(unit))
//% endfor
  const GEN(kinds[table.shards[0].dtype])::Matrix tokens[] = {
//% for shard in table.shards
      {GEN(shard.arrays | names)},
//% endfor
  };
  embed<GEN(kinds[table.shards[0].dtype]), n_embd, GEN(table.shard_rows)>(pass, worker, GEN("positions" if packed.positions else "nullptr"), tokens);
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
