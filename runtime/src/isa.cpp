#include "isa.h"

#include <stdlib.h>

#include <sstream>

#include "cpu.h"
#include "errors.h"

namespace kaoken {
namespace {

// "a, b": what the code needs and this machine lacks; "" where it runs.
std::string missing_features(const Code &code) {
  std::istringstream features(code.features);
  std::string missing, feature;
  while (features >> feature) {
    if (!cpu_has(feature)) missing += (missing.empty() ? "" : ", ") + feature;
  }
  return missing;
}

const Code *find_code(const Model &model, const std::string &isa) {
  for (int32_t i = 0; i < model.code_count; ++i) {
    if (isa == model.codes[i].isa && model.codes[i].forward) return &model.codes[i];
  }
  return nullptr;
}

Choice best_code(const Model &model) {
  std::string better;  // why the better ones do not run
  for (int32_t i = model.code_count; i-- > 0;) {
    const Code &code = model.codes[i];
    const std::string missing = missing_features(code);
    if (code.forward && missing.empty()) {
      return {code, std::string(code.isa) + ": " + (better.empty() ? "nothing is better for this model" : better)};
    }
    better += std::string(better.empty() ? "" : "; ") + code.isa;
    better += missing.empty() ? " was not baked in" : " needs " + missing + ", which this machine lacks";
  }
  throw Error(KAOKEN_UNSUPPORTED_ISA, std::string("this library holds code for ") + model.info.isas +
                                          ", and this machine has none of it; bake the model again with isa=portable");
}

}  // namespace

Choice choose_code(const Model &model, const char *isa) {
  const char *origin = "isa";
  if (!isa) {
    isa = getenv("KAOKEN_ISA");
    origin = "KAOKEN_ISA";
  }
  if (!isa || !*isa) return best_code(model);
  const Code *code = find_code(model, isa);
  if (!code) {
    throw Error(KAOKEN_UNSUPPORTED_ISA, std::string(origin) + " is \"" + isa + "\", but this library holds code for " +
                                            model.info.isas + "; choose one of those, or bake the model for it");
  }
  const std::string missing = missing_features(*code);
  if (!missing.empty()) {
    throw Error(KAOKEN_UNSUPPORTED_ISA, std::string(origin) + " is \"" + isa + "\", which needs " + missing +
                                            ", and this machine lacks it; unset it to use the best that it has");
  }
  return {*code, std::string(isa) + ": " + origin + " asks for it"};
}

}  // namespace kaoken
