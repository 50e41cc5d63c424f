#include "shared_memory.h"

#include <cstdio>
#include <cstring>

namespace stal::emulator {

namespace {

bool Knows(int lane, const Knowledge& knows, int other, Moment moment) {
  return lane == other || knows.seen->at[other] >= moment;
}

bool KnowsProduct(int lane, const Knowledge& knows, int warp, Moment moment) {
  if (lane / kWarpLanes == warp && knows.products_done >= moment) return true;
  return knows.seen->at[kMaxLanes + warp] >= moment;
}

}  // namespace

std::string Hex(uint64_t x) {
  char text[24];
  std::snprintf(text, sizeof(text), "%#llx", static_cast<unsigned long long>(x));
  return text;
}

std::string LaneName(int lane) {
  return "lane " + std::to_string(lane) + " (warp " + std::to_string(lane / kWarpLanes) + ")";
}

void SharedMemory::Reset(uint32_t bytes, uint8_t pattern) {
  data_.assign(bytes, pattern);
  history_.assign(bytes, Byte{});
  lines_.assign(bytes / kLine + 1, Line{});
  readers_.clear();
}

std::string SharedMemory::Place(uint32_t address) const {
  return "shared address " + Hex(address) + " (byte " + std::to_string(address - kSharedBase) + ")";
}

std::string SharedMemory::OutOfBounds(uint32_t address, uint32_t bytes) const {
  const uint64_t first = address, end = first + bytes;
  if (first < kSharedBase || end > uint64_t{kSharedBase} + data_.size()) {
    return "out of bounds: " + std::to_string(bytes) + " bytes at shared address " + Hex(address) +
           ", which has " + Hex(kSharedBase) + " to " + Hex(kSharedBase + data_.size());
  }
  if (address % bytes != 0) {
    return "misaligned: " + std::to_string(bytes) + " bytes at shared address " + Hex(address);
  }
  return "";
}

std::string SharedMemory::Load(int lane, const Knowledge& knows, uint32_t address, void* to,
                               uint32_t bytes) {
  const std::string said = OutOfBounds(address, bytes);
  if (!said.empty()) return said;
  const uint32_t first = address - kSharedBase;
  for (uint32_t i = first; i < first + bytes; ++i) {
    Byte& byte = history_[i];
    switch (byte.state) {
      case State::kUnwritten:
        return "uninitialised: nobody wrote " + Place(kSharedBase + i);
      case State::kBarrier:
        return Place(kSharedBase + i) + " belongs to an mbarrier";
      case State::kCopying:
        return "the cp.async of " + LaneName(byte.writer) + " to " + Place(kSharedBase + i) +
               " has not been waited for";
      case State::kAtomic:
      case State::kWritten:
        if (!Knows(lane, knows, byte.writer, byte.written)) {
          return "not published: no barrier between the write of " + LaneName(byte.writer) +
                 " to " + Place(kSharedBase + i) + " and this read";
        }
    }
    if (byte.reader == kMany) {
      readers_[i].push_back({lane, knows.now});
    } else if (byte.reader < 0 || Knows(lane, knows, byte.reader, byte.read)) {
      byte.reader = static_cast<int16_t>(lane);
      byte.read = knows.now;
    } else {
      readers_[i] = {{byte.reader, byte.read}, {lane, knows.now}};
      byte.reader = kMany;
    }
  }
  std::memcpy(to, &data_[first], bytes);
  return "";
}

// from: the new values, where equal ones written by two lanes are no race; or null.
std::string SharedMemory::CheckWrite(int lane, const Knowledge& knows, uint32_t address,
                                     uint32_t bytes, const void* from) {
  const std::string said = OutOfBounds(address, bytes);
  if (!said.empty()) return said;
  const uint32_t first = address - kSharedBase;
  const uint8_t* const values = static_cast<const uint8_t*>(from);
  for (uint32_t i = first; i < first + bytes; ++i) {
    const Byte& byte = history_[i];
    const auto unread = [&](int reader) {
      return "written too early: no barrier between the read of " + LaneName(reader) + " from " +
             Place(kSharedBase + i) + " and this write";
    };
    switch (byte.state) {
      case State::kUnwritten:
        continue;
      case State::kBarrier:
        return Place(kSharedBase + i) + " belongs to an mbarrier";
      case State::kCopying:
        return "the cp.async of " + LaneName(byte.writer) + " to " + Place(kSharedBase + i) +
               " has not been waited for";
      case State::kAtomic:
      case State::kWritten:
        if (!Knows(lane, knows, byte.writer, byte.written) &&
            (values == nullptr || values[i - first] != data_[i])) {
          return "two writers: no barrier between the write of " + LaneName(byte.writer) + " to " +
                 Place(kSharedBase + i) + " and this one of another value";
        }
    }
    if (byte.reader == kMany) {
      for (const Reader& reader : readers_[i]) {
        if (!Knows(lane, knows, reader.lane, reader.moment)) return unread(reader.lane);
      }
    } else if (byte.reader >= 0 && !Knows(lane, knows, byte.reader, byte.read)) {
      return unread(byte.reader);
    }
  }
  for (uint32_t line = first / kLine; line * kLine < first + bytes; ++line) {
    for (int warp = 0; warp < kMaxWarps; ++warp) {
      if (!KnowsProduct(lane, knows, warp, lines_[line].products[warp])) {
        return "written too early: a wgmma of warp " + std::to_string(warp) + " may still read " +
               Place(kSharedBase + line * kLine) + ", no wait and barrier before this write";
      }
    }
  }
  return "";
}

void SharedMemory::MarkWritten(int lane, Moment moment, uint32_t address, uint32_t bytes,
                               State state) {
  const uint32_t first = address - kSharedBase;
  for (uint32_t i = first; i < first + bytes; ++i) {
    Byte& byte = history_[i];
    if (byte.reader == kMany) readers_.erase(i);
    byte.writer = static_cast<int16_t>(lane);
    byte.written = moment;
    byte.reader = -1;
    byte.state = state;
  }
  for (uint32_t line = first / kLine; line * kLine < first + bytes; ++line) {
    ++lines_[line].version;
  }
}

std::string SharedMemory::Store(int lane, const Knowledge& knows, uint32_t address,
                                const void* from, uint32_t bytes) {
  const std::string said = CheckWrite(lane, knows, address, bytes, from);
  if (!said.empty()) return said;
  MarkWritten(lane, knows.now, address, bytes, State::kWritten);
  std::memcpy(&data_[address - kSharedBase], from, bytes);
  return "";
}

std::string SharedMemory::AtomicAdd(int lane, const Knowledge& knows, uint32_t address,
                                    uint32_t value, uint32_t* before) {
  std::string said = OutOfBounds(address, 4);
  if (!said.empty()) return said;
  const uint32_t first = address - kSharedBase;
  if (history_[first].state == State::kUnwritten) {
    return "uninitialised: nobody wrote " + Place(address);
  }
  if (history_[first].state != State::kAtomic) {
    said = CheckWrite(lane, knows, address, 4, nullptr);
    if (!said.empty()) return said;
  }
  std::memcpy(before, &data_[first], 4);
  const uint32_t after = *before + value;
  MarkWritten(lane, knows.now, address, 4, State::kAtomic);
  std::memcpy(&data_[first], &after, 4);
  return "";
}

std::string SharedMemory::BeginCopy(int lane, const Knowledge& knows, uint32_t address) {
  const std::string said = CheckWrite(lane, knows, address, kLine, nullptr);
  if (!said.empty()) return said;
  MarkWritten(lane, knows.now, address, kLine, State::kCopying);
  return "";
}

void SharedMemory::Land(int lane, const Knowledge& knows, uint32_t address, const void* from) {
  MarkWritten(lane, knows.now, address, kLine, State::kWritten);
  std::memcpy(&data_[address - kSharedBase], from, kLine);
}

std::string SharedMemory::MakeBarrier(int lane, const Knowledge& knows, uint32_t address) {
  const std::string said = CheckWrite(lane, knows, address, 8, nullptr);
  if (!said.empty()) return said;
  MarkWritten(lane, knows.now, address, 8, State::kBarrier);
  return "";
}

std::string SharedMemory::ReadFactor(uint32_t address, int warpgroup, const Clock& fenced,
                                     const std::array<Moment, kMaxWarps>& products, void* to) {
  const std::string said = OutOfBounds(address, kLine);
  if (!said.empty()) return said;
  const uint32_t first = address - kSharedBase;
  Line& line = lines_[first / kLine];
  if (line.checked[warpgroup] != line.version) {
    for (uint32_t i = first; i < first + kLine; ++i) {
      const Byte& byte = history_[i];
      if (byte.state == State::kUnwritten) continue;
      if (byte.state == State::kBarrier) {
        return Place(kSharedBase + i) + " belongs to an mbarrier";
      }
      if (byte.state == State::kCopying) {
        return "the cp.async of " + LaneName(byte.writer) + " to " + Place(kSharedBase + i) +
               " has not been waited for";
      }
      if (fenced.at[byte.writer] < byte.written) {
        return "no fence.proxy.async and barrier between the write of " + LaneName(byte.writer) +
               " to " + Place(kSharedBase + i) + " and this wgmma";
      }
    }
    line.checked[warpgroup] = line.version;
  }
  for (int warp = 4 * warpgroup; warp < 4 * warpgroup + 4; ++warp) {
    line.products[warp] = products[warp];
  }
  std::memcpy(to, &data_[first], kLine);
  return "";
}

}  // namespace stal::emulator
