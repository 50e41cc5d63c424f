// The instruction levels, best first, and what keeps each from running here.
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

// The names of all levels in the order that is best on a CPU of this vendor, as cpuid spells it; ""
// where there is no cpuid. Last, and never the first that runs, are the models of levels whose
// instructions few machines have.
std::vector<std::string> LevelOrder(const std::string& vendor);

}  // namespace stal
