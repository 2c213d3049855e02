// GEN(note)
//
// What the files of this model share: its shape, its blobs (each pointer is filled by a *_weights.cpp), its units.
#pragma once

#include "embedding.h"
#include "sublayers/mlp.h"
#include "sublayers/self_attention.h"

extern "C" {
//% for unit in packed.units
//% for blob in unit.blobs
extern const char *const kaoken_GEN(name)_GEN(blob.name);
//% endfor
//% endfor
}

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

constexpr int64_t vocab_size = GEN(graph.vocabulary);
constexpr int64_t n_embd = GEN(graph.width);
using CacheType = CacheGEN(kinds[packed.types.cache]);

void embeddings(Pass &pass, const Worker &worker);
//% for block in packed.blocks
void GEN(block.unit.name)(Pass &pass, const Worker &worker);
//% endfor
void head(Pass &pass, const Worker &worker);

void forward(Pass &pass, const Worker &worker);
extern const SamplingCode sampling;

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
