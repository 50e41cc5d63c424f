// One block of a grid: up to 512 lanes as fibers, their barriers, shared memory and products.
//
// A lane runs until it waits for others, or gives way by chance; which warp goes on is drawn from
// the seed. What a GPU would punish, and what it would let pass by luck, ends the launch with an
// Error that says what happened where.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "clock.h"
#include "shared_memory.h"

namespace stal::emulator {

// threadIdx and the like.
struct Index {
  unsigned x;
};

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory of the GPU that a kernel may reach.
struct Range {
  const void* data;
  size_t bytes;
  bool writable;
  std::string name;
};

// One product of a warpgroup, as one lane issues it.
struct Product {
  float* d;
  int n;
  const uint32_t* a;  // in registers; null: in shared memory
  uint64_t a_descriptor, b_descriptor;
  bool accumulate, b_is_mn_major, is_bfloat16;
};

struct Grid {
  int blocks, threads;
  uint32_t shared_bytes;
  uint64_t seed;
  std::vector<Range> memory;
  std::vector<Product>* products = nullptr;  // gets what warpgroups multiply, in order
};

// Runs body() once in each lane of each block, one block after the other. Throws Error.
void Launch(const Grid& grid, const std::function<void()>& body);

class Block {
 public:
  // Of the lane that runs.
  static Block& Current();

  // written: for each range of the grid's memory, which bytes the grid has written.
  Block(const Grid& grid, int index, std::vector<std::vector<bool>>* written);
  void Run(const std::function<void()>& body);

  // ---- what a lane does ----

  // The value of the lane of its warp with this number.
  uint64_t Shuffle(uint64_t value, int lane);
  uint32_t Ballot(bool value);
  void SyncWarp();
  void Barrier(int barrier, int threads);
  void SetRegisters(int registers, bool up);

  void LoadShared(uint32_t from, void* to, uint32_t bytes);
  void StoreShared(uint32_t to, const void* from, uint32_t bytes);
  uint32_t AtomicAddShared(uint32_t at, uint32_t value);
  void StoreMatrices(uint32_t to, const uint32_t* registers);  // four
  void LoadGlobal(const void* from, void* to, uint32_t bytes);
  void StoreGlobal(void* to, const void* from, uint32_t bytes);

  void CopyAsync(uint32_t to, const void* from, bool valid);
  void CommitCopies();
  void WaitForCopies(int groups);
  void FenceProxyAsync();

  void InitBarrier(uint32_t barrier, int count);
  void Arrive(uint32_t barrier);
  void WaitForBarrier(uint32_t barrier, uint32_t parity);

  void FenceProducts();
  void Multiply(const Product& product);
  void CommitProducts();
  void WaitForProducts(int groups);

  int threads() const { return threads_; }

  [[noreturn]] void Fail(const std::string& said) const;

 private:
  enum class State { kReady, kWaiting, kDone };

  // What a lane waits for; words for the report of a deadlock.
  struct Wait {
    const char* what = nullptr;
    uint64_t about = 0, detail = 0;
    bool operator<(const Wait& other) const {
      return std::tie(what, about, detail) < std::tie(other.what, other.about, other.detail);
    }
  };

  struct Copy {
    uint32_t to;
    const void* from;
    bool valid;
    int group;
  };

  static constexpr int kMaxColumns = 256;
  struct InFlight {
    float* d;
    int n, group;
    Moment moment;  // of the warp's last product into d
    std::vector<std::pair<const uint32_t*, std::array<uint32_t, 4>>> factors;
    std::array<float, kMaxColumns / 2> values;
  };

  struct Lane {
    State state = State::kReady;
    Wait wait;
    Knowledge knows;
    std::vector<Copy> copies;
    int copy_group = 0;
    std::vector<InFlight> products;
    int product_group = 0;
    bool registers_fenced = false;
  };

  // Lanes that execute one instruction together.
  struct Meeting {
    int first = 0, size = 0, arrived = 0;
    const char* what = nullptr;
    uint64_t uniform = 0;
    std::array<void*, kWarpgroupLanes> operands = {};
  };

  struct NamedBarrier {
    int expected = 0, arrived = 0;
    uint64_t generation = 0;
    Gathering gathering;
    Gathered last;
  };

  struct MBarrier {
    int count = 0, pending = 0;
    uint64_t phase = 0;
    int maker = 0;
    Moment made = 0;
    Gathering gathering;
    Gathered last;
  };

  struct Warp {
    Meeting meeting;
    int registers = 0, wanted = 0;
    Moment products = 0;
  };

  Lane& Running() { return lanes_[lane_]; }
  Warp& RunningWarp() { return warps_[lane_ / kWarpLanes]; }
  void Check(const char* what, const std::string& said) const;

  // Until somebody calls Wake with the same words.
  void WaitFor(const Wait& wait);
  void Wake(const char* what, uint64_t about);
  // Begins an instruction; by chance others go first.
  void Step();
  void RunLane(int lane);
  // Its lanes that can go on, in either direction. False: there are none.
  bool RunWarp(int warp);
  void RunBody();
  std::string Deadlock() const;

  // The last lane to come calls perform(first lane, operands of all of them).
  void Meet(Meeting* meeting, const char* what, uint64_t uniform, void* operand,
            const std::function<void(int, void* const*)>& perform);

  void Acquire(int lane, const Gathered& gathered);
  MBarrier& FindBarrier(uint32_t address, const char* what);
  void GrantRegisters();
  void MultiplyAll(int first, void* const* operands);
  void CheckRegisters(int lane, const InFlight& product) const;
  InFlight* FindInFlight(Lane* lane, const float* d, int n);
  size_t FindRange(const void* p, uint32_t bytes, const char* what) const;
  uint64_t Random();

  const Grid& grid_;
  const int index_, threads_;
  uint64_t random_;
  int lane_ = -1;  // that runs
  uint64_t steps_ = 0;
  std::string error_;
  const std::function<void()>* body_ = nullptr;

  std::vector<std::vector<bool>>* written_;
  std::array<Lane, kMaxLanes> lanes_;
  std::array<Warp, kMaxWarps> warps_;
  std::array<Meeting, kMaxLanes / kWarpgroupLanes> warpgroups_;
  std::array<NamedBarrier, 16> barriers_;
  std::map<uint32_t, MBarrier> mbarriers_;
  int free_registers_ = 0;
  SharedMemory shared_;
  Joiner joiner_;
};

}  // namespace stal::emulator

extern thread_local stal::emulator::Index threadIdx, blockIdx, gridDim;
