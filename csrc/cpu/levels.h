// The instruction levels, best first, and what keeps each from running here. Last, and never the
// first that runs, are the models of levels whose instructions few machines have.
#pragma once

#include <string>
#include <vector>

#include "cpu/call.h"

namespace stal {

struct Level {
  const char* name;
  const Kernels* kernels;  // null: the compiler could not build it
  std::string why_not;     // empty: it runs on this machine
};

const std::vector<Level>& Levels();

}  // namespace stal
