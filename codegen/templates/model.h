// GEN(note)
//
// What the files of this model share: its shape, its blobs (each pointer is filled by a *_weights.cpp), its units.
#pragma once

#include "embedding.h"
//% if graph.head and not graph.decoder
#include "head.h"
//% endif
#include "sublayers/cross_attention.h"
#include "sublayers/mlp.h"
#include "sublayers/outputs.h"
//% if packed.parallel
#include "sublayers/parallel.h"
//% endif
#include "sublayers/self_attention.h"

extern "C" {
//% for unit in packed.units
//% for blob in unit.blobs
extern const char *const kaoken_GEN(name)_GEN(blob.name);
//% endfor
//% endfor
}

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

using CacheType = CacheGEN(kinds[packed.types.cache]);

//% for unit in packed.units
void GEN(unit.name)(Pass &pass, const Worker &worker);
//% endfor
//% for block in packed.blocks if block.key_value
void GEN(block.unit.name)_source(Pass &pass, const Worker &worker);
//% endfor
GEN("")
void forward(Pass &pass, const Worker &worker);
//% if packed.stacks | length > 1
void encode(Pass &pass, const Worker &worker);
//% endif
extern const SamplingCode sampling;

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
