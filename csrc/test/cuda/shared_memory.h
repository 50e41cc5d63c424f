// The shared memory of one block, with the history of every byte.
//
// A byte knows who wrote it and who has read it since. An access is refused, with a message that
// names both lanes, where the order of the two is left to chance: no barrier between them. Products
// (wgmma) read through the asynchronous proxy, to which other writes are visible only behind a
// fence.proxy.async. What nobody wrote holds a pattern from the seed: NaN, or something large.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "clock.h"

namespace stal::emulator {

// Of the window in which shared addresses lie. The first 1024 bytes belong to the system.
constexpr uint32_t kSharedBase = 1024;
constexpr uint32_t kMaxSharedBytes = 232448;

class SharedMemory {
 public:
  void Reset(uint32_t bytes, uint8_t pattern);

  uint32_t bytes() const { return static_cast<uint32_t>(data_.size()); }

  // "" or what is wrong. lane and its knowledge are those of the one who accesses.
  std::string Load(int lane, const Knowledge& knows, uint32_t address, void* to, uint32_t bytes);
  std::string Store(int lane, const Knowledge& knows, uint32_t address, const void* from,
                    uint32_t bytes);
  // An atomic addition to 32 bits; atomic operations on one word are no race.
  std::string AtomicAdd(int lane, const Knowledge& knows, uint32_t address, uint32_t value,
                        uint32_t* before);

  // A copy in 16-byte pieces that is under way: nobody may touch the bytes until it has landed.
  std::string BeginCopy(int lane, const Knowledge& knows, uint32_t address);
  void Land(int lane, const Knowledge& knows, uint32_t address, const void* from);

  // Bytes that from now on belong to an mbarrier.
  std::string MakeBarrier(int lane, const Knowledge& knows, uint32_t address);

  // 16 bytes of a factor, read by the warps of a warpgroup in their product of the moment that
  // `products` names by warp. `fenced`: what all lanes that take part know of.
  std::string ReadFactor(uint32_t address, int warpgroup, const Clock& fenced,
                         const std::array<Moment, kMaxWarps>& products, void* to);

 private:
  enum class State : uint8_t { kUnwritten, kWritten, kAtomic, kCopying, kBarrier };
  struct Byte {
    Moment written = 0, read = 0;
    int16_t writer = -1, reader = -1;  // reader: the only one since the write, or kMany
    State state = State::kUnwritten;
  };
  static constexpr int16_t kMany = -2;
  struct Reader {
    int lane;
    Moment moment;
  };
  static constexpr uint32_t kLine = 16;  // bytes of the smallest piece that a product reads
  struct Line {
    uint32_t version = 1;
    std::array<uint32_t, kMaxLanes / kWarpgroupLanes> checked = {};  // version, by warpgroup
    std::array<Moment, kMaxWarps> products = {};                     // last that read it, by warp
  };

  std::string OutOfBounds(uint32_t address, uint32_t bytes) const;
  std::string CheckWrite(int lane, const Knowledge& knows, uint32_t address, uint32_t bytes,
                         const void* from);
  void MarkWritten(int lane, Moment moment, uint32_t address, uint32_t bytes, State state);
  std::string Place(uint32_t address) const;

  std::vector<uint8_t> data_;
  std::vector<Byte> history_;
  std::vector<Line> lines_;
  std::unordered_map<uint32_t, std::vector<Reader>> readers_;  // by offset, where there are many
};

std::string LaneName(int lane);
std::string Hex(uint64_t x);

}  // namespace stal::emulator
