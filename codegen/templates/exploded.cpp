// GEN(note)
// From: GEN(file.sources | comment)

#include "linear.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {
//% for strip in file.strips

// Outputs GEN(strip.first * panel) to GEN((strip.first + strip.panels) * panel - 1), by GEN(strip.nonzeros) weights.
void GEN(strip.name)(const float *__restrict x, float *__restrict sums) {
//% if strip.vector
  alignas(kAlignment) static constexpr float weights[] = {
//% for _, _, values in strip.lines()
      GEN(values | floats),
//% endfor
  };
//% for p in range(strip.panels)
  Vec sGEN(p) = broadcast(0.0f);
//% endfor
//% for k, p, _ in strip.lines()
  sGEN(p) = fma(broadcast(x[GEN(k)]), load(weights + GEN(loop.index0) * kLanes), sGEN(p));
//% endfor
//% for p in range(strip.panels)
  store(sums + GEN(p) * kLanes, sGEN(p));
//% endfor
//% else
//% for outputs, products in strip.chains()
//% for output in outputs
  float sGEN(output) = 0;
//% endfor
//% for k, output, weight in products
  sGEN(output) = fma(x[GEN(k)], GEN(weight | float32), sGEN(output));
//% endfor
//% for output in outputs
  sums[GEN(output)] = sGEN(output);
//% endfor
  next_chains();
//% endfor
//% endif
}
//% endfor

}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
