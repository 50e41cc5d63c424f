#include "block.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "fiber.h"

thread_local stal::emulator::Index threadIdx, blockIdx, gridDim;

namespace stal::emulator {

namespace {

// Of one SM; and what the compiler can be told to keep to.
constexpr int kRegisters = 65536, kMostRegisters = 255;

// Patterns for memory that nobody wrote: NaN in every format, and something large in each.
constexpr uint8_t kPatterns[] = {0xff, 0x5b};

// Instructions after which a block counts as one that never ends.
constexpr uint64_t kMostSteps = uint64_t{1} << 30;

// What lanes wait for. Compared by address.
constexpr char kMBarrier[] = "mbarrier", kNamedBarrier[] = "bar.sync",
               kRegistersFree[] = "registers of setmaxnreg.inc";

thread_local Block* current = nullptr;
// Their stacks are used again by the next block.
thread_local std::array<Fiber, kMaxLanes> fibers;

std::string Ranges(const std::vector<int>& lanes) {
  std::string text;
  for (size_t i = 0; i < lanes.size();) {
    size_t end = i + 1;
    while (end < lanes.size() && lanes[end] == lanes[end - 1] + 1) ++end;
    text += (text.empty() ? "" : ", ") + std::to_string(lanes[i]);
    if (end - i > 1) text += "-" + std::to_string(lanes[end - 1]);
    i = end;
  }
  return text;
}

}  // namespace

void Launch(const Grid& grid, const std::function<void()>& body) {
  if (grid.threads <= 0 || grid.threads > kMaxLanes || grid.threads % kWarpgroupLanes != 0) {
    throw Error("threads must be 128, 256, 384 or 512, got " + std::to_string(grid.threads));
  }
  if (grid.shared_bytes > kMaxSharedBytes) {
    throw Error("shared memory must have at most " + std::to_string(kMaxSharedBytes) +
                " bytes, got " + std::to_string(grid.shared_bytes));
  }
  std::vector<std::vector<bool>> written;
  for (const Range& range : grid.memory) written.emplace_back(range.writable ? range.bytes : 0);
  for (int block = 0; block < grid.blocks; ++block) Block(grid, block, &written).Run(body);
}

Block& Block::Current() { return *current; }

Block::Block(const Grid& grid, int index, std::vector<std::vector<bool>>* written)
    : grid_(grid),
      index_(index),
      threads_(grid.threads),
      random_(grid.seed * 0x9e3779b97f4a7c15 + index),
      written_(written) {
  shared_.Reset(grid.shared_bytes, kPatterns[Random() % 2]);
  const auto nothing = std::make_shared<const Clock>();
  for (Lane& lane : lanes_) lane.knows.seen = lane.knows.fenced = nothing;
  // What a block starts with: all that its launch leaves to each thread, in steps of 8.
  const int registers = std::min(kRegisters / threads_ / 8 * 8, kMostRegisters / 8 * 8);
  for (int warp = 0; warp < kMaxWarps; ++warp) {
    warps_[warp].meeting.first = warp * kWarpLanes;
    warps_[warp].meeting.size = kWarpLanes;
    warps_[warp].registers = registers;
  }
  for (size_t i = 0; i < warpgroups_.size(); ++i) {
    warpgroups_[i].first = static_cast<int>(i) * kWarpgroupLanes;
    warpgroups_[i].size = kWarpgroupLanes;
  }
}

uint64_t Block::Random() {
  uint64_t z = (random_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// ---- the order of lanes ----

void Block::RunBody() {
  try {
    (*body_)();
    Lane& lane = Running();
    if (!lane.copies.empty()) Fail("finished with a cp.async that it has not waited for");
    if (!lane.products.empty()) Fail("finished with a wgmma that it has not waited for");
  } catch (const std::exception& error) {
    error_ = error.what();
  }
  Running().state = State::kDone;
}

void Block::RunLane(int lane) {
  lane_ = lane;
  threadIdx.x = lane;
  fibers[lane].Resume();
}

bool Block::RunWarp(int warp) {
  bool ran = false;
  const bool backwards = Random() % 2;
  for (int i = 0; i < kWarpLanes; ++i) {
    const int lane = warp * kWarpLanes + (backwards ? kWarpLanes - 1 - i : i);
    if (lanes_[lane].state != State::kReady) continue;
    ran = true;
    RunLane(lane);
    if (!error_.empty()) throw Error(error_);
  }
  return ran;
}

void Block::Run(const std::function<void()>& body) {
  current = this;
  body_ = &body;
  blockIdx.x = index_;
  gridDim.x = grid_.blocks;
  for (int lane = 0; lane < threads_; ++lane) {
    fibers[lane].Start([](void* block) { static_cast<Block*>(block)->RunBody(); }, this);
  }
  const int warps = threads_ / kWarpLanes, warpgroups = warps / 4;
  // A warp by chance. By turns of the seed one warp, or one warpgroup, is slow: it runs only when
  // nobody else can; then a barrier that does not hold the others shows.
  const int turn = static_cast<int>(grid_.seed % (2 * (warps + warpgroups)));
  const auto slow = [&](int warp) {
    return turn < warps + warpgroups && (warp == turn || warp / 4 + warps == turn);
  };
  for (;;) {
    const int first = static_cast<int>(Random() % warps);
    bool found = false;
    for (int tried = 0; tried < 2 * warps && !found; ++tried) {
      const int warp = (first + tried) % warps;
      if (slow(warp) == (tried >= warps)) found = RunWarp(warp);
    }
    if (!found) break;
  }
  const auto done = [](const Lane& lane) { return lane.state == State::kDone; };
  if (!std::all_of(lanes_.begin(), lanes_.begin() + threads_, done)) throw Error(Deadlock());
  for (int warp = 0; warp < warps; ++warp) {
    const int first = warp / 4 * 4;
    if (warps_[warp].registers != warps_[first].registers) {
      throw Error("block " + std::to_string(index_) +
                  ": setmaxnreg must be the same in all warps of a warpgroup, got " +
                  std::to_string(warps_[first].registers) + " in warp " + std::to_string(first) +
                  " and " + std::to_string(warps_[warp].registers) + " in warp " +
                  std::to_string(warp));
    }
  }
}

void Block::Fail(const std::string& said) const {
  throw Error("block " + std::to_string(index_) + ", " + LaneName(lane_) + ": " + said);
}

void Block::Check(const char* what, const std::string& said) const {
  if (!said.empty()) Fail(std::string(what) + ": " + said);
}

std::string Block::Deadlock() const {
  std::map<Wait, std::vector<int>> waiting;
  std::vector<int> done;
  for (int lane = 0; lane < threads_; ++lane) {
    const State state = lanes_[lane].state;
    if (state == State::kDone) done.push_back(lane);
    if (state == State::kWaiting) waiting[lanes_[lane].wait].push_back(lane);
  }
  std::string said = "block " + std::to_string(index_) + ": deadlock";
  for (const auto& [wait, lanes] : waiting) {
    said += "; lanes " + Ranges(lanes) + " wait for " + wait.what;
    const auto mbarrier = mbarriers_.find(static_cast<uint32_t>(wait.about));
    if (wait.what == kMBarrier && mbarrier != mbarriers_.end()) {
      const MBarrier& barrier = mbarrier->second;
      said += " " + Hex(wait.about) + ", parity " + std::to_string(wait.detail) + ", in phase " +
              std::to_string(barrier.phase) + ", which lacks " + std::to_string(barrier.pending) +
              " of " + std::to_string(barrier.count) + " arrivals";
    } else if (wait.what == kNamedBarrier) {
      const NamedBarrier& barrier = barriers_[wait.about];
      said += " " + std::to_string(wait.about) + ", which has " + std::to_string(barrier.arrived) +
              " of " + std::to_string(barrier.expected) + " threads";
    }
  }
  if (!done.empty()) said += "; lanes " + Ranges(done) + " have finished";
  return said;
}

void Block::WaitFor(const Wait& wait) {
  Lane& lane = Running();
  lane.state = State::kWaiting;
  lane.wait = wait;
  Fiber::Leave();
}

void Block::Wake(const char* what, uint64_t about) {
  for (int i = 0; i < threads_; ++i) {
    Lane& lane = lanes_[i];
    if (lane.state == State::kWaiting && lane.wait.what == what && lane.wait.about == about) {
      lane.state = State::kReady;
    }
  }
}

void Block::Step() {
  if (++steps_ > kMostSteps) Fail("the block goes on and on");
  if (Random() % 64 == 0) Fiber::Leave();
}

void Block::Meet(Meeting* meeting, const char* what, uint64_t uniform, void* operand,
                 const std::function<void(int, void* const*)>& perform) {
  const int lane = lane_;
  if (meeting->arrived > 0 && (meeting->what != what || meeting->uniform != uniform)) {
    const bool same = meeting->what == what;
    Fail(std::string("divergent: it is at ") + what + " while others of its " +
         (meeting->size == kWarpLanes ? "warp" : "warpgroup") + " are at " + meeting->what +
         (same ? " with other operands" : ""));
  }
  meeting->what = what;
  meeting->uniform = uniform;
  meeting->operands[lane - meeting->first] = operand;
  if (++meeting->arrived < meeting->size) {
    WaitFor({what, static_cast<uint64_t>(meeting->first), 0});
    return;
  }
  meeting->arrived = 0;
  perform(meeting->first, meeting->operands.data());
  for (int i = meeting->first; i < meeting->first + meeting->size; ++i) {
    if (i != lane) lanes_[i].state = State::kReady;
  }
}

// ---- warps ----

namespace {

struct ShuffleOperand {
  uint64_t value;
  int lane;
  uint64_t result;
};

}  // namespace

uint64_t Block::Shuffle(uint64_t value, int lane) {
  ShuffleOperand operand = {value, lane, 0};
  Meet(&RunningWarp().meeting, "shuffle", 0, &operand, [](int, void* const* operands) {
    for (int i = 0; i < kWarpLanes; ++i) {
      ShuffleOperand& to = *static_cast<ShuffleOperand*>(operands[i]);
      to.result = static_cast<ShuffleOperand*>(operands[to.lane & (kWarpLanes - 1)])->value;
    }
  });
  return operand.result;
}

uint32_t Block::Ballot(bool value) {
  ShuffleOperand operand = {value, 0, 0};
  Meet(&RunningWarp().meeting, "ballot", 0, &operand, [](int, void* const* operands) {
    uint64_t bits = 0;
    for (int i = 0; i < kWarpLanes; ++i) {
      bits |= static_cast<ShuffleOperand*>(operands[i])->value << i;
    }
    for (int i = 0; i < kWarpLanes; ++i) static_cast<ShuffleOperand*>(operands[i])->result = bits;
  });
  return static_cast<uint32_t>(operand.result);
}

void Block::Acquire(int lane, const Gathered& gathered) {
  Knowledge& knows = lanes_[lane].knows;
  knows.seen = joiner_.Join(knows.seen, gathered.seen);
  knows.fenced = joiner_.Join(knows.fenced, gathered.fenced);
}

void Block::SyncWarp() {
  Meet(&RunningWarp().meeting, "syncwarp", 0, nullptr, [&](int first, void* const*) {
    Gathering gathering;
    for (int i = first; i < first + kWarpLanes; ++i) gathering.Add(i, lanes_[i].knows);
    const Gathered gathered = gathering.Finish();
    for (int i = first; i < first + kWarpLanes; ++i) {
      ++lanes_[i].knows.now;
      Acquire(i, gathered);
    }
  });
}

void Block::Barrier(int number, int threads) {
  if (number < 0 || number >= static_cast<int>(barriers_.size())) {
    Fail("bar.sync: the barrier must be 0 to 15, got " + std::to_string(number));
  }
  if (threads <= 0 || threads % kWarpLanes != 0 || threads > threads_) {
    Fail("bar.sync: threads must be whole warps of the block, got " + std::to_string(threads));
  }
  NamedBarrier& barrier = barriers_[number];
  const uint64_t generation = barrier.generation;
  const uint64_t uniform = static_cast<uint64_t>(number) << 32 | static_cast<uint32_t>(threads);
  Meet(&RunningWarp().meeting, "bar.sync of its warp", uniform, nullptr,
       [&](int first, void* const*) {
         if (barrier.arrived > 0 && barrier.expected != threads) {
           Fail("bar.sync " + std::to_string(number) + ": it expects " + std::to_string(threads) +
                " threads and those that wait expect " + std::to_string(barrier.expected));
         }
         barrier.expected = threads;
         barrier.arrived += kWarpLanes;
         for (int i = first; i < first + kWarpLanes; ++i) {
           barrier.gathering.Add(i, lanes_[i].knows);
           ++lanes_[i].knows.now;
         }
         if (barrier.arrived < threads) return;
         barrier.arrived = 0;
         barrier.last = barrier.gathering.Finish();
         ++barrier.generation;
         Wake(kNamedBarrier, number);
       });
  while (barrier.generation == generation) {
    WaitFor({kNamedBarrier, static_cast<uint64_t>(number), 0});
  }
  Acquire(lane_, barrier.last);
}

void Block::SetRegisters(int registers, bool up) {
  if (registers < 24 || registers > 256 || registers % 8 != 0) {
    Fail("setmaxnreg: registers must be a multiple of 8 from 24 to 256, got " +
         std::to_string(registers));
  }
  Warp& warp = RunningWarp();
  Meet(&warp.meeting, up ? "setmaxnreg.inc" : "setmaxnreg.dec", registers, nullptr,
       [&](int, void* const*) {
         if (up ? registers < warp.registers : registers > warp.registers) {
           Fail(std::string("setmaxnreg.") + (up ? "inc must not lower" : "dec must not raise") +
                " the registers, got " + std::to_string(registers) + " where there are " +
                std::to_string(warp.registers));
         }
         if (up) {
           warp.wanted = registers;
         } else {
           free_registers_ += (warp.registers - registers) * kWarpLanes;
           warp.registers = registers;
         }
         GrantRegisters();
       });
  while (warp.registers != registers) WaitFor({kRegistersFree, 0, 0});
}

void Block::GrantRegisters() {
  for (Warp& warp : warps_) {
    const int more = (warp.wanted - warp.registers) * kWarpLanes;
    if (warp.wanted == 0 || more > free_registers_) continue;
    free_registers_ -= more;
    warp.registers = warp.wanted;
    warp.wanted = 0;
  }
  Wake(kRegistersFree, 0);
}

// ---- memory ----

void Block::LoadShared(uint32_t from, void* to, uint32_t bytes) {
  Step();
  Check("load", shared_.Load(lane_, Running().knows, from, to, bytes));
}

void Block::StoreShared(uint32_t to, const void* from, uint32_t bytes) {
  Step();
  Check("store", shared_.Store(lane_, Running().knows, to, from, bytes));
}

uint32_t Block::AtomicAddShared(uint32_t at, uint32_t value) {
  Step();
  uint32_t before;
  Check("atomic add", shared_.AtomicAdd(lane_, Running().knows, at, value, &before));
  return before;
}

namespace {

struct MatrixOperand {
  uint32_t row;
  const uint32_t* registers;
};

}  // namespace

void Block::StoreMatrices(uint32_t to, const uint32_t* registers) {
  Step();
  MatrixOperand operand = {to, registers};
  Meet(&RunningWarp().meeting, "stmatrix", 0, &operand, [&](int, void* const* operands) {
    const auto of = [&](int lane) { return static_cast<const MatrixOperand*>(operands[lane]); };
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int row = 0; row < 8; ++row) {
        // Four lanes hold the row.
        std::array<uint32_t, 4> values;
        for (int i = 0; i < 4; ++i) values[i] = of(4 * row + i)->registers[matrix];
        Check("stmatrix", shared_.Store(lane_, Running().knows, of(8 * matrix + row)->row,
                                        values.data(), sizeof(values)));
      }
    }
  });
}

size_t Block::FindRange(const void* p, uint32_t bytes, const char* what) const {
  const uintptr_t first = reinterpret_cast<uintptr_t>(p);
  for (size_t i = 0; i < grid_.memory.size(); ++i) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(grid_.memory[i].data);
    if (first < begin || first + bytes > begin + grid_.memory[i].bytes) continue;
    if (first % bytes == 0) return i;
    Fail(std::string(what) + ": misaligned: " + std::to_string(bytes) + " bytes at byte " +
         std::to_string(first - begin) + " of " + grid_.memory[i].name + ", at " + Hex(first));
  }
  std::string nearest;
  for (const Range& range : grid_.memory) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(range.data);
    const intptr_t distance = static_cast<intptr_t>(first - begin);
    if (distance > -4096 && distance < static_cast<intptr_t>(range.bytes) + 4096) {
      nearest += ", byte " + std::to_string(distance) + " of " + range.name + ", which has " +
                 std::to_string(range.bytes);
    }
  }
  Fail(std::string(what) + ": out of bounds: " + std::to_string(bytes) + " bytes at " +
       Hex(first) + (nearest.empty() ? ", which is in no buffer" : nearest));
}

void Block::LoadGlobal(const void* from, void* to, uint32_t bytes) {
  Step();
  FindRange(from, bytes, "global load");
  std::memcpy(to, from, bytes);
}

void Block::StoreGlobal(void* to, const void* from, uint32_t bytes) {
  Step();
  const size_t range = FindRange(to, bytes, "global store");
  const Range& memory = grid_.memory[range];
  if (!memory.writable) Fail("global store: " + memory.name + " is an input");
  const size_t first = static_cast<char*>(to) - static_cast<const char*>(memory.data);
  for (size_t i = first; i < first + bytes; ++i) {
    if ((*written_)[range][i]) {
      Fail("global store: two writers: byte " + std::to_string(i) + " of " + memory.name +
           " has been written before");
    }
    (*written_)[range][i] = true;
  }
  std::memcpy(to, from, bytes);
}

void Block::CopyAsync(uint32_t to, const void* from, bool valid) {
  Step();
  Lane& lane = Running();
  if (valid) FindRange(from, 16, "cp.async");
  Check("cp.async", shared_.BeginCopy(lane_, lane.knows, to));
  lane.copies.push_back({to, from, valid, lane.copy_group});
}

void Block::CommitCopies() { ++Running().copy_group; }

void Block::WaitForCopies(int groups) {
  Step();
  Lane& lane = Running();
  const auto landed = [&](const Copy& copy) {
    if (copy.group >= lane.copy_group - groups) return false;
    const std::array<char, 16> zeros = {};
    shared_.Land(lane_, lane.knows, copy.to, copy.valid ? copy.from : zeros.data());
    return true;
  };
  lane.copies.erase(std::remove_if(lane.copies.begin(), lane.copies.end(), landed),
                    lane.copies.end());
}

void Block::FenceProxyAsync() {
  Step();
  Knowledge& knows = Running().knows;
  knows.fenced = knows.seen;
  knows.fenced_now = knows.now++;
}

// ---- mbarriers ----

void Block::InitBarrier(uint32_t address, int count) {
  Step();
  const Knowledge& knows = Running().knows;
  if (count <= 0) Fail("mbarrier.init: count must be positive, got " + std::to_string(count));
  Check("mbarrier.init", shared_.MakeBarrier(lane_, knows, address));
  MBarrier& barrier = mbarriers_[address];
  barrier.count = barrier.pending = count;
  barrier.maker = lane_;
  barrier.made = knows.now;
}

Block::MBarrier& Block::FindBarrier(uint32_t address, const char* what) {
  const auto found = mbarriers_.find(address);
  if (found == mbarriers_.end()) {
    Fail(std::string(what) + ": there is no mbarrier at " + Hex(address));
  }
  const MBarrier& barrier = found->second;
  const Knowledge& knows = Running().knows;
  if (barrier.maker != lane_ && knows.seen->at[barrier.maker] < barrier.made) {
    Fail(std::string(what) + ": not published: no barrier between the mbarrier.init of " +
         LaneName(barrier.maker) + " and this use of " + Hex(address));
  }
  return found->second;
}

void Block::Arrive(uint32_t address) {
  Step();
  MBarrier& barrier = FindBarrier(address, "mbarrier.arrive");
  Knowledge& knows = Running().knows;
  barrier.gathering.Add(lane_, knows);
  ++knows.now;
  if (--barrier.pending > 0) return;
  barrier.pending = barrier.count;
  barrier.last = barrier.gathering.Finish();
  ++barrier.phase;
  Wake(kMBarrier, address);
}

void Block::WaitForBarrier(uint32_t address, uint32_t parity) {
  Step();
  const MBarrier& barrier = FindBarrier(address, "mbarrier.try_wait");
  while ((barrier.phase & 1) == (parity & 1)) WaitFor({kMBarrier, address, parity & 1});
  if (barrier.phase > 0) Acquire(lane_, barrier.last);
}

}  // namespace stal::emulator
