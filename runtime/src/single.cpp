// What a runtime with KAOKEN_SINGLE_THREADED has instead of team.cpp, share.cpp, crowd.cpp, machine.cpp and arena.cpp:
// it needs neither threads nor files of the system, and no memory but the C++ library's where the caller gives none.
#include <limits>
#include <new>

#include "arena.h"
#include "kaoken/pass.h"
#include "machine.h"

namespace kaoken {

void barrier(const Worker &) {}

int default_threads() { return 1; }

double available_memory(const std::string &, const std::string &, const std::string &) {
  return std::numeric_limits<double>::infinity();
}

Arena::Arena(size_t bytes, void *given)
    : data_(given ? given : ::operator new(bytes, std::align_val_t(kAlignment))), bytes_(bytes), own_(!given) {}

Arena::~Arena() {
  if (own_) ::operator delete(data_, std::align_val_t(kAlignment));
}

}  // namespace kaoken
