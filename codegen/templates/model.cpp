// GEN(note)
// The schedule of one forward pass, run by every worker of a team.

#include "model.h"
#include "sampling.h"

#define KAOKEN_STRING_OF(x) #x
#define KAOKEN_STRING(x) KAOKEN_STRING_OF(x)

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

const SamplingCode sampling = {block_maxima, weigh, count_from, keep};

void forward(Pass &pass, const Worker &worker) {
  if (worker.index == 0) pass.executed_isa = KAOKEN_STRING(KAOKEN_ISA);
  embeddings(pass, worker);
  barrier(worker);
//% for block in packed.blocks[:-1]
  GEN(block.unit.name)(pass, worker);
//% endfor
  Pass rest = pass;  // of the last block and what follows, which may have fewer rows to do
  GEN(packed.blocks[-1].unit.name)(rest, worker);
//% if packed.stacks[-1].outputs
  outputs(rest, worker);
//% endif
//% if packed.head
  GEN("if (!rest.hidden_states) " if packed.stacks[-1].outputs else "")head(rest, worker);
//% endif
}
//% for stack in packed.stacks[:-1]
GEN("")
void encode(Pass &pass, const Worker &worker) {
  if (worker.index == 0) pass.executed_isa = KAOKEN_STRING(KAOKEN_ISA);
  GEN(stack.embeddings.name)(pass, worker);
  barrier(worker);
//% for block in stack.blocks
  GEN(block.unit.name)(pass, worker);
//% endfor
  GEN(stack.prefix)outputs(pass, worker);
//% for block in packed.blocks
  GEN(block.unit.name)_source(pass, worker);
//% endfor
}
//% endfor
GEN("")
}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
