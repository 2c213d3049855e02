// Which code of a model runs here, and why.
#pragma once

#include <string>

#include "kaoken/pass.h"

namespace kaoken {

struct Choice {
  const Code &code;
  std::string reason;  // one sentence for people, which begins with the ISA's name
};

// `isa` null: KAOKEN_ISA, else the best that this machine has. Raises Error.
Choice choose_code(const Model &model, const char *isa);

}  // namespace kaoken
