// The runtime's exceptions, which become status codes and messages at the C ABI (api.cpp).
#pragma once

#include <stdexcept>
#include <string>

#include "kaoken/kaoken.h"

namespace kaoken {

class Error : public std::runtime_error {
 public:
  Error(kaoken_status status, const std::string &message) : std::runtime_error(message), status(status) {}
  const kaoken_status status;
};

}  // namespace kaoken
