// What the processor at hand can run.
#pragma once

#include <string>

namespace kaoken {

// Whether the processor has a feature and the system keeps its registers. Features are spelled as in cmake/isas.json;
// an unknown one counts as absent.
bool cpu_has(const std::string &feature);

}  // namespace kaoken
