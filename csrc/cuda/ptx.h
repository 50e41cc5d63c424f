// Every instruction that the kernels use and that is not plain C++, under a plain name.
//
// Kernel sources use from CUDA what this header declares, and besides it: STAL_DEVICE before each
// function, __global__, __launch_bounds__, __grid_constant__, #pragma unroll, threadIdx.x,
// blockIdx.x, gridDim.x, and fmaf and fmaxf of <cmath>. Shared memory is one dynamic array, reached
// by 32-bit addresses only; global memory is read and written by functions of this header only.
//
// Without nvcc the same functions come from an emulator on the CPU.
#pragma once

#include <cstdint>

namespace stal::cuda {

// The element types of q, k, v and out.
struct Float16 {};
struct BFloat16 {};

struct alignas(16) Words {
  uint32_t x, y, z, w;
};

}  // namespace stal::cuda

#if !defined(__CUDACC__)

#include "test/cuda/emulator.h"

#else

#include <type_traits>

#define STAL_DEVICE __device__ __forceinline__

namespace stal::cuda {

// ---- threads ----

// All of them read the value of one lane, or of the lane whose number differs by `mask`.
template <typename X>
STAL_DEVICE X shuffle(X x, int lane) {
  return __shfl_sync(~0u, x, lane);
}
template <typename X>
STAL_DEVICE X shuffle_xor(X x, int mask) {
  return __shfl_xor_sync(~0u, x, mask);
}
STAL_DEVICE uint32_t ballot(bool x) { return __ballot_sync(~0u, x); }
STAL_DEVICE void sync_warp() { __syncwarp(); }
STAL_DEVICE void sync_block() { __syncthreads(); }

// Of `threads` threads, whole warps; barrier 0 is sync_block's.
STAL_DEVICE void named_barrier(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers of each thread from here on; all warps of a warpgroup call it.
template <int N>
STAL_DEVICE void set_max_registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
STAL_DEVICE void set_max_registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- numbers ----

STAL_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }

// The number of the lowest bit that is set, of a word that is not 0.
STAL_DEVICE int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }

// Denormals to 0; 2 units in the last place.
STAL_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 unit in the last place.
STAL_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers in a word, rounded to nearest even, the first in its low half.
template <typename T>
STAL_DEVICE uint32_t to_pairs(float low, float high) {
  uint32_t pairs;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pairs) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pairs) : "f"(high), "f"(low));
  }
  return pairs;
}

// ---- global memory ----

// Of memory that nobody writes while the kernel runs.
template <typename X>
STAL_DEVICE X load_global(const X* from) {
  return __ldg(from);
}
// To a multiple of 16.
STAL_DEVICE void store_global_16(void* to, Words x) { *static_cast<Words*>(to) = x; }

// ---- shared memory ----

// Where the block's dynamic shared memory begins, a multiple of 1024.
STAL_DEVICE uint32_t dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

STAL_DEVICE uint32_t load_shared_4(uint32_t from) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
STAL_DEVICE float load_shared_float(uint32_t from) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
  return x;
}
STAL_DEVICE Words load_shared_16(uint32_t from) {
  Words x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
STAL_DEVICE void store_shared_4(uint32_t to, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
STAL_DEVICE void store_shared_float(uint32_t to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
STAL_DEVICE void store_shared_16(uint32_t to, Words x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}
// Returns what was there before.
STAL_DEVICE uint32_t atomic_add_shared(uint32_t at, uint32_t x) {
  uint32_t before;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(at), "r"(x) : "memory");
  return before;
}

// Four 8 x 8 matrices of 16-bit elements. Lane 8 i + r says where row r of matrix i lies, 16 bytes;
// a lane holds the elements 2 (lane % 4) and the next one of row lane / 4 of each matrix.
STAL_DEVICE void stmatrix_x4(uint32_t to, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// ---- asynchronous copies ----

// 16 bytes from global to shared memory, both aligned to 16; zeros where `valid` is false, and
// then nothing is read, but `from` must still be an address of global memory.
STAL_DEVICE void cp_async_16(uint32_t to, const void* from, bool valid) {
  const uint64_t global = __cvta_generic_to_global(from);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The thread's copies since the last call are a group.
STAL_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last N groups have arrived and this thread sees them.
template <int N>
STAL_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// What this thread wrote to shared memory, or saw, before is seen by wgmma that is issued after
// a barrier that follows.
STAL_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- mbarriers: 8 bytes of shared memory ----

// Its phase 0 ends with the count-th arrival, then phase 1 begins with the same count.
STAL_DEVICE void mbarrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
STAL_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended, of the one that is on and the one before it. All lanes
// of the warp are here, which branches are told (.uni): what follows may use uniform registers.
// A check build traps after some seconds: a kernel that hangs says so.
#if defined(STAL_CUDA_CHECK)
#define STAL_COUNT_TRIES                                                         \
  "add.u32 tries, tries, 1;\nsetp.gt.u32 many, tries, 10000000;\n@many trap;\n"
#else
#define STAL_COUNT_TRIES
#endif
STAL_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred ended, many;\n.reg .u32 tries;\nmov.u32 tries, 0;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra.uni done;\n" STAL_COUNT_TRIES
      "bra.uni again;\n"
      "done:\n}" ::"r"(barrier), "r"(parity)
      : "memory");
}
#undef STAL_COUNT_TRIES

// ---- wgmma: products of a warpgroup ----
//
// d (64, N) float32 = a (64, 16) b (16, N), added to d where `accumulate`. Warp w of the warpgroup
// holds the rows 16 w to 16 w + 15 of d: d[4 j + 2 i + c] of a lane is column
// 8 j + 2 (lane % 4) + c of row 16 w + 8 i + lane / 4.

// Before the first product that reads registers, or an accumulator, which the thread has written.
STAL_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products since the last call are a group.
STAL_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last N groups are done.
template <int N>
STAL_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from reading an accumulator before the wait above, or writing it after.
template <int N>
STAL_DEVICE void wgmma_pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// A descriptor of a matrix in shared memory.
//   low:  bits 0-13 its address / 16, bits 16-29 the leading offset / 16
//   high: bits 0-13 the stride offset / 16, bits 30-31 the swizzle: 1 is of 128 bytes, 3 of 32
// A row of a panel is as long as the swizzle; 8 rows are a group, and groups are the stride offset
// apart. K-major: rows are those of a or the columns of b, the leading offset is not used.
// MN-major: rows are those of b, and panels are the leading offset apart.
STAL_DEVICE uint64_t make_descriptor(uint32_t low, uint32_t high) {
  uint64_t descriptor;
  asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(low), "r"(high));
  return descriptor;
}

// Eight registers of an accumulator, as operands and by name.
#define STAL_D(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define STAL_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define STAL_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define STAL_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define STAL_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define STAL_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define STAL_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define STAL_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define STAL_R56 "%56, %57, %58, %59, %60, %61, %62, %63"

// Half of N registers, operands and names.
#define STAL_D24 STAL_D(0), STAL_D(8), STAL_D(16)
#define STAL_R0_24 STAL_R0 ", " STAL_R8 ", " STAL_R16
#define STAL_D32 STAL_D24, STAL_D(24)
#define STAL_R0_32 STAL_R0_24 ", " STAL_R24
#define STAL_D40 STAL_D32, STAL_D(32)
#define STAL_R0_40 STAL_R0_32 ", " STAL_R32
#define STAL_D64 STAL_D40, STAL_D(40), STAL_D(48), STAL_D(56)
#define STAL_R0_64 STAL_R0_40 ", " STAL_R40 ", " STAL_R48 ", " STAL_R56

// The last operands are a (one of 64 bits, or four of 32), b and `accumulate`; `order` says of each
// operand in shared memory whether it is MN-major.
#define STAL_WGMMA(n, type, registers, a, b, accumulate, order)                                   \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate ", 0;\n"                                         \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers "}, " a ", " b \
  ", p, 1, 1, " order ";\n}"

// a: Q, (64, 16); b: K^T, where K is (80, 16). Both K-major in shared memory.
template <typename T>
STAL_DEVICE void wgmma_m64n80k16(float (&d)[40], uint64_t a, uint64_t b, bool accumulate) {
#define STAL_SCORES(type)                                                           \
  asm volatile(STAL_WGMMA("80", type, STAL_R0_40, "%40", "%41", "%42", "0, 0")      \
               : STAL_D40                                                           \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
  if constexpr (std::is_same_v<T, BFloat16>) {
    STAL_SCORES("bf16");
  } else {
    STAL_SCORES("f16");
  }
#undef STAL_SCORES
}

// a in registers: a lane holds columns 2 (lane % 4) and the next one of rows lane / 4 (a[0]) and
// lane / 4 + 8 (a[1]) of its warp's 16, and the columns 8 further on (a[2], a[3]).
// b: V, (16, N), MN-major in shared memory.
template <typename T, int N>
STAL_DEVICE void wgmma_m64nNk16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                bool accumulate) {
#define STAL_VALUES(n, type, registers, operands, a_text, b_text, accumulate_text)            \
  asm volatile(STAL_WGMMA(n, type, registers, "{" a_text "}", b_text, accumulate_text, "1")   \
               : operands                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                          \
                 "r"(static_cast<int>(accumulate)))
#define STAL_VALUES_OF(type)                                                                     \
  if constexpr (N == 48) {                                                                       \
    STAL_VALUES("48", type, STAL_R0_24, STAL_D24, "%24, %25, %26, %27", "%28", "%29");           \
  } else if constexpr (N == 64) {                                                                \
    STAL_VALUES("64", type, STAL_R0_32, STAL_D32, "%32, %33, %34, %35", "%36", "%37");           \
  } else if constexpr (N == 80) {                                                                \
    STAL_VALUES("80", type, STAL_R0_40, STAL_D40, "%40, %41, %42, %43", "%44", "%45");           \
  } else {                                                                                       \
    static_assert(N == 128, "one of the widths that are spelled out here");                      \
    STAL_VALUES("128", type, STAL_R0_64, STAL_D64, "%64, %65, %66, %67", "%68", "%69");          \
  }
  if constexpr (std::is_same_v<T, BFloat16>) {
    STAL_VALUES_OF("bf16")
  } else {
    STAL_VALUES_OF("f16")
  }
#undef STAL_VALUES_OF
#undef STAL_VALUES
}

#undef STAL_WGMMA
#undef STAL_D
#undef STAL_D24
#undef STAL_D32
#undef STAL_D40
#undef STAL_D64
#undef STAL_R0
#undef STAL_R8
#undef STAL_R16
#undef STAL_R24
#undef STAL_R32
#undef STAL_R40
#undef STAL_R48
#undef STAL_R56
#undef STAL_R0_24
#undef STAL_R0_32
#undef STAL_R0_40
#undef STAL_R0_64

}  // namespace stal::cuda

#endif
