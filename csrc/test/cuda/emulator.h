// The instructions of cuda/ptx.h on a CPU, so that the kernels' sources compile with any C++17
// compiler and run in emulator::Launch (block.h).
//
// Faithful are layouts, the order that barriers give, what is asynchronous, and what is forbidden.
// Different from a GPU are the last bits: exp2_approx and reciprocal_approx round correctly, where
// the GPU errs by up to 2 units in the last place, and the 16 products that wgmma adds to an
// accumulator are summed exactly and rounded once to nearest.
//
// Not seen are a register that is written between wgmma_fence and the product, bank conflicts, what
// a compiler makes of the source, and time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "test/cuda/block.h"
#include "test/cuda/numbers.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define STAL_DEVICE inline

namespace stal::cuda {

namespace detail {

inline emulator::Block& block() { return emulator::Block::Current(); }

inline float flush(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

}  // namespace detail

// ---- threads ----

template <typename X>
X shuffle(X x, int lane) {
  static_assert(sizeof(X) == 4, "one register");
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits = static_cast<uint32_t>(detail::block().Shuffle(bits, lane));
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}
template <typename X>
X shuffle_xor(X x, int mask) {
  return shuffle(x, static_cast<int>(threadIdx.x % emulator::kWarpLanes) ^ mask);
}
inline uint32_t ballot(bool x) { return detail::block().Ballot(x); }
inline void sync_warp() { detail::block().SyncWarp(); }
inline void sync_block() { detail::block().Barrier(0, detail::block().threads()); }
inline void named_barrier(int barrier, int threads) { detail::block().Barrier(barrier, threads); }

template <int N>
void set_max_registers_down() {
  detail::block().SetRegisters(N, false);
}
template <int N>
void set_max_registers_up() {
  detail::block().SetRegisters(N, true);
}

// ---- numbers ----

inline uint32_t bits_of(float x) { return emulator::BitsOf(x); }
inline int lowest_bit(uint32_t x) { return __builtin_ffs(static_cast<int>(x)) - 1; }
inline float exp2_approx(float x) {
  return detail::flush(static_cast<float>(std::exp2(static_cast<double>(detail::flush(x)))));
}
inline float reciprocal_approx(float x) {
  return detail::flush(static_cast<float>(1 / static_cast<double>(detail::flush(x))));
}
template <typename T>
uint32_t to_pairs(float low, float high) {
  const auto round = [](float x) -> uint32_t {
    return std::is_same_v<T, BFloat16> ? emulator::ToBFloat16(x) : emulator::ToFloat16(x);
  };
  return round(high) << 16 | round(low);
}

// ---- global memory ----

template <typename X>
X load_global(const X* from) {
  X x;
  detail::block().LoadGlobal(from, &x, sizeof(x));
  return x;
}
inline void store_global_16(void* to, Words x) { detail::block().StoreGlobal(to, &x, sizeof(x)); }

// ---- shared memory ----

inline uint32_t dynamic_shared() { return emulator::kSharedBase; }
inline uint32_t load_shared_4(uint32_t from) {
  uint32_t x;
  detail::block().LoadShared(from, &x, sizeof(x));
  return x;
}
inline float load_shared_float(uint32_t from) {
  float x;
  detail::block().LoadShared(from, &x, sizeof(x));
  return x;
}
inline Words load_shared_16(uint32_t from) {
  Words x;
  detail::block().LoadShared(from, &x, sizeof(x));
  return x;
}
inline void store_shared_4(uint32_t to, uint32_t x) {
  detail::block().StoreShared(to, &x, sizeof(x));
}
inline void store_shared_float(uint32_t to, float x) {
  detail::block().StoreShared(to, &x, sizeof(x));
}
inline void store_shared_16(uint32_t to, Words x) {
  detail::block().StoreShared(to, &x, sizeof(x));
}
inline uint32_t atomic_add_shared(uint32_t at, uint32_t x) {
  return detail::block().AtomicAddShared(at, x);
}
inline void stmatrix_x4(uint32_t to, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  const uint32_t registers[] = {m0, m1, m2, m3};
  detail::block().StoreMatrices(to, registers);
}

// ---- asynchronous copies ----

inline void cp_async_16(uint32_t to, const void* from, bool valid) {
  detail::block().CopyAsync(to, from, valid);
}
inline void cp_async_commit() { detail::block().CommitCopies(); }
template <int N>
void cp_async_wait() {
  detail::block().WaitForCopies(N);
}
inline void fence_proxy_async() { detail::block().FenceProxyAsync(); }

// ---- mbarriers ----

inline void mbarrier_init(uint32_t barrier, int count) {
  detail::block().InitBarrier(barrier, count);
}
inline void mbarrier_arrive(uint32_t barrier) { detail::block().Arrive(barrier); }
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  detail::block().WaitForBarrier(barrier, parity);
}

// ---- wgmma ----

inline void wgmma_fence() { detail::block().FenceProducts(); }
inline void wgmma_commit() { detail::block().CommitProducts(); }
template <int N>
void wgmma_wait() {
  detail::block().WaitForProducts(N);
}
template <int N>
void wgmma_pin(float (&)[N]) {}

inline uint64_t make_descriptor(uint32_t low, uint32_t high) {
  return static_cast<uint64_t>(high) << 32 | low;
}

template <typename T>
void wgmma_m64n80k16(float (&d)[40], uint64_t a, uint64_t b, bool accumulate) {
  detail::block().Multiply(
      {d, 80, nullptr, a, b, accumulate, false, std::is_same_v<T, BFloat16>});
}
template <typename T, int N>
void wgmma_m64nNk16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  detail::block().Multiply({d, N, a, 0, b, accumulate, true, std::is_same_v<T, BFloat16>});
}

}  // namespace stal::cuda
