// GEN(note)
// The schedule of one forward pass, run by every worker of a team.

#include "model.h"

#define KAOKEN_STRING_OF(x) #x
#define KAOKEN_STRING(x) KAOKEN_STRING_OF(x)

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

void forward(Pass &pass, const Worker &worker) {
  if (worker.index == 0) pass.executed_isa = KAOKEN_STRING(KAOKEN_ISA);
  embeddings(pass, worker);
  barrier(worker);
//% for block in packed.blocks
  GEN(block.unit.name)(pass, worker);
//% endfor
  head(pass, worker);
}

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
