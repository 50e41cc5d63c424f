// The two rates that bound the kernels of csrc/cpu, for bench/cpu_limit.py: products whose factors
// and sums stay in registers, and the exponential of the softmax.
//
// Compiled with the macros of the level that computes the products (csrc/cpu/level_*.cpp), and
// with STAL_PAIRS where they are products of bfloat16 pairs.
#if defined(STAL_PAIRS)
#include "cpu/amx_permission.h"
#include "cpu/kernel_bf16.h"
#else
#include "cpu/kernel.h"
#endif

#define STAL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// As many sums as a kernel keeps in registers. The factors are 0: the time does not depend on
// them, and no sum overflows.
#if defined(STAL_PAIRS) && defined(STAL_LEVEL_AMX)

constexpr int64_t kFlopsARound = 4 * 2 * kTile * kTile * 2 * kTile;

void MultiplyRounds(const float* zeros, int64_t rounds) {
  Tiles tiles;
  tiles.Zero<0>();
  tiles.Zero<1>();
  tiles.Zero<2>();
  tiles.Zero<3>();
  tiles.Load<4>(zeros, 64);
  tiles.Load<5>(zeros, 64);
  tiles.Load<6>(zeros, 64);
  tiles.Load<7>(zeros, 64);
  for (int64_t round = 0; round < rounds; ++round) {
    tiles.Dot<0, 0>();
    tiles.Dot<0, 1>();
    tiles.Dot<1, 0>();
    tiles.Dot<1, 1>();
  }
}

#else

#if defined(STAL_PAIRS)
typedef UVec Factor;
constexpr int kVectors = kPairVectors;
constexpr int64_t kProducts = 2 * kLanes;
STAL_INLINE Vec AddProduct(Vec sum, UVec x, UVec y) { return Dot(sum, x, y); }
#else
typedef Vec Factor;
constexpr int kVectors = kRowVectors;
constexpr int64_t kProducts = kLanes;
STAL_INLINE Vec AddProduct(Vec sum, Vec x, Vec y) { return sum + x * y; }
#endif

constexpr int64_t kFlopsARound = 2 * kBlock * kVectors * kProducts;

// All begin at numbers that the compiler does not know, or it would compute one sum and copy it.
void MultiplyRounds(const float* zeros, int64_t rounds) {
  const Factor x = (Factor)Load(zeros);
  Vec sum[kBlock][kVectors];
  for (int i = 0; i < kBlock; ++i) {
    for (int r = 0; r < kVectors; ++r) sum[i][r] = Load(zeros + (i * kVectors + r) * kLanes);
  }
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) sum[i][r] = AddProduct(sum[i][r], x, x);
    }
  }
  Vec total{};
  for (int i = 0; i < kBlock; ++i) {
    for (int r = 0; r < kVectors; ++r) total += sum[i][r];
  }
  volatile float used = total[0];
  (void)used;
}

#endif

STAL_INLINE Vec ExpOfKernel(Vec x, float bits) {
#if defined(STAL_PAIRS)
  return Exp2ForPairs(x, bits);
#else
  return Exp2(x, bits);
#endif
}

// `count` is a multiple of 64. A kernel adds them up in any case.
void AddExps(const float* x, int64_t count, int64_t rounds) {
  constexpr int kSums = 4;
  // Unknown, as in a kernel: its difference from x keeps 2^x from reading memory itself, which is
  // several times slower on AMD Zen 5.
  volatile float bits = 0;
  const float known = bits;
  Vec sum[kSums] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < count; i += kSums * kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < kSums; ++r) sum[r] += ExpOfKernel(Load(x + i + r * kLanes), known);
    }
  }
  volatile float used = (sum[0] + sum[1] + sum[2] + sum[3])[0];
  (void)used;
}

}  // namespace

// Each thread does all rounds.
STAL_EXPORT int64_t FlopsARound() { return kFlopsARound; }

// 512 zeros. False, with nothing done: the operating system gives no permission to use AMX.
STAL_EXPORT bool Multiply(const float* zeros, int64_t rounds, int threads) {
#if defined(STAL_PAIRS) && defined(STAL_LEVEL_AMX)
  if (!stal::MayUseTiles()) return false;
#endif
  ParallelFor(threads, threads, [&](int64_t, int) { MultiplyRounds(zeros, rounds); });
  return true;
}

STAL_EXPORT void Exponentiate(const float* x, int64_t count, int64_t rounds, int threads) {
  ParallelFor(threads, threads, [&](int64_t, int) { AddExps(x, count, rounds); });
}
