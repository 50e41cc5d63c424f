// Permission to use the tile registers of AMX.
#pragma once

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stal {

// Asks for the tile registers, for this process and its children. False: the first tile
// instruction would end the process. Only x86-64 has them.
inline bool MayUseTiles() {
#if defined(__linux__)
  // They are 8 KB that Linux saves only for a process that has asked for them.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace stal
