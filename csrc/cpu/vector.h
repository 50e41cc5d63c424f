// One vector of floats, for the instruction set that the including file is compiled for.
//
// Intrinsics on vectors are in this file alone, on tiles in tile.h. It is included once by each
// level_*.cpp and lives in an anonymous namespace: two levels must never share a function, or the
// linker may keep the copy that the machine cannot run. For the same reason nothing here or in the
// headers built on it uses the standard library beyond <cstdint> and memcpy.
#pragma once

#include <cstdint>
#include <cstring>

#include "blended_attention.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(STAL_LEVEL_NEON)
#include <arm_neon.h>
#endif

#define STAL_INLINE inline __attribute__((always_inline))

namespace {

// kBlock scalars are broadcast against kRowVectors vectors, so kBlock * kRowVectors accumulators
// stay in registers beside the vectors (32 registers with AVX-512 and NEON, else 16).
#if defined(__AVX512F__) || defined(STAL_MODEL)
constexpr int kLanes = 16;
constexpr int kBlock = 8;
constexpr int kRowVectors = 3;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kBlock = 4;
constexpr int kRowVectors = 3;
#elif defined(STAL_LEVEL_NEON)
constexpr int kLanes = 4;
constexpr int kBlock = 8;
constexpr int kRowVectors = 3;
#else
constexpr int kLanes = 4;
constexpr int kBlock = 4;
constexpr int kRowVectors = 2;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));
typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));

STAL_INLINE Vec LoadFloat(const void* p) {
  Vec x;
  memcpy(&x, p, sizeof(x));
  return x;
}
STAL_INLINE Vec Load(const float* p) { return LoadFloat(p); }
STAL_INLINE void Store(float* p, Vec x) { memcpy(p, &x, sizeof(x)); }
STAL_INLINE Vec Set(float x) { return x - Vec{}; }
STAL_INLINE IVec Bits(Vec x) { return (IVec)x; }
STAL_INLINE Vec FromBits(IVec x) { return (Vec)x; }

// mask ? x : 0, where a lane of mask is all ones or all zeros. Also turns NaN into 0.
STAL_INLINE Vec And(Vec x, IVec mask) { return FromBits(Bits(x) & mask); }
STAL_INLINE IVec Select(IVec mask, IVec yes, IVec no) { return (yes & mask) | (no & ~mask); }

// NaN in a may be lost, NaN in b is kept.
STAL_INLINE Vec Max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(STAL_LEVEL_NEON)
  return (Vec)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return FromBits(Select(a > b, Bits(a), Bits(b)));
#endif
}

// 2^(x - bits) for an integer `bits`, where that is a normal number, to 1 ulp with fused
// multiply-add and 1.2 without; 0 below, NaN for NaN. A power above 2^127 does not occur: softmax
// subtracts the maximum. The polynomial is the minimax fit (relative error 2e-9) of 2^f on
// [-1/2, 1/2] that is exact at 0.
STAL_INLINE Vec Exp2(Vec x, float bits = 0) {
  const Vec round = Set(12582912.0f - bits);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x + round;
  const Vec f = x - (shifted - round);
  Vec p = Set(1.5353362e-4f);
  p = p * f + Set(1.3398875e-3f);
  p = p * f + Set(9.618437e-3f);
  p = p * f + Set(5.5503324e-2f);
  p = p * f + Set(2.4022648e-1f);
  p = p * f + Set(6.9314718e-1f);
  p = p * f + Set(1.0f);
  // Unsigned, for lanes that underflow wrap around.
  const IVec power = (IVec)((UVec)Bits(p) + ((UVec)Bits(shifted) << 23));
  const IVec underflow = x < Set(bits - 126.0f);
  return FromBits(power & ~underflow);
}

#if defined(__AVX512DQ__)
// x - floor(x).
STAL_INLINE Vec Fraction(Vec x) {
  constexpr int kDown = 1;
  return (Vec)_mm512_reduce_ps((__m512)x, kDown);
}
// p * 2^floor(x).
STAL_INLINE Vec TimesPower(Vec p, Vec x) { return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x); }
#else
constexpr float kToInteger = 12582912.0f;  // as in Exp2
STAL_INLINE Vec Fraction(Vec x) {
  const Vec nearest = (x + Set(kToInteger)) - Set(kToInteger);
  return x - nearest + And(Set(1.0f), nearest > x);
}
// For 1 <= p < 2 and x < 127; 0 where the product is no normal number.
STAL_INLINE Vec TimesPower(Vec p, Vec x) {
  const Vec shifted = x + Set(kToInteger);
  const UVec power = (UVec)Bits(shifted) + (UVec)(shifted - Set(kToInteger) > x);
  return FromBits((IVec)((UVec)Bits(p) + (power << 23)) & ~(x < Set(-126.0f)));
}
#endif

STAL_INLINE HalfVec LoadHalves(const void* p) {
  HalfVec x;
  memcpy(&x, p, sizeof(x));
  return x;
}

// The first `count` words at p, zeros after them. A vector put together in memory would be loaded
// before its parts have left the store buffer, and wait for them.
STAL_INLINE UVec LoadFirstWords(const void* p, int64_t count) {
#if defined(__AVX512F__)
  return (UVec)_mm512_maskz_loadu_epi32((1u << count) - 1, p);
#else
  UVec x{};
  memcpy(&x, p, count * 4);
  return x;
#endif
}
STAL_INLINE HalfVec FirstHalves(UVec x) {
  HalfVec half;
  memcpy(&half, &x, sizeof(half));
  return half;
}

STAL_INLINE Vec FromHalf(HalfVec half, stal::DType dtype) {
  if (dtype == stal::DType::kBFloat16) {
    return (Vec)(__builtin_convertvector(half, UVec) << 16);
  }
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)half);
#elif defined(STAL_LEVEL_NEON)
  return (Vec)vcvt_f32_f16((float16x4_t)half);
#else
  const UVec bits = __builtin_convertvector(half, UVec);
  const UVec magnitude = bits & 0x7fff;
  // Moving the fields in place leaves the exponent 112 too low; the product is exact for
  // denormals too.
  const Vec rescaled = (Vec)(magnitude << 13) * Set(5.192296858534828e33f);  // 2^112
  const IVec special = (IVec)magnitude >= 0x7c00;  // infinity and NaN
  const IVec all = Select(special, (IVec)((magnitude << 13) | 0x7f800000u), Bits(rescaled));
  return FromBits(all | (IVec)((bits & 0x8000) << 16));
#endif
}

// To nearest even; overflow goes to infinity, NaN stays NaN.
STAL_INLINE HalfVec ToHalf(Vec x, stal::DType dtype) {
  const UVec bits = (UVec)Bits(x);
  if (dtype == stal::DType::kBFloat16) {
    const UVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const IVec nan = x != x;
    const UVec quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector((UVec)Select(nan, (IVec)quiet, (IVec)rounded), HalfVec);
  }
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (HalfVec)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(STAL_LEVEL_NEON)
  return (HalfVec)vcvt_f16_f32((float32x4_t)x);
#else
  const UVec sign = (bits >> 16) & 0x8000;
  const UVec magnitude = bits & 0x7fffffff;
  const UVec normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 1/2 puts the units of a half denormal into the last bits of the float.
  const UVec denormal = (UVec)Bits((Vec)magnitude + Set(0.5f)) - 0x3f000000u;
  UVec half = (UVec)Select((IVec)magnitude < 0x38800000, (IVec)denormal, (IVec)normal);
  half = (UVec)Select((IVec)magnitude >= 0x47800000, IVec{} + 0x7c00, (IVec)half);
  half = (UVec)Select((IVec)magnitude > 0x7f800000, IVec{} + 0x7e00, (IVec)half);
  return __builtin_convertvector(half | sign, HalfVec);
#endif
}

// The halves of `low`, then those of `high`.
STAL_INLINE UVec Join(HalfVec low, HalfVec high) {
#if defined(__AVX512F__)
  return (UVec)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
#else
  const HalfVec halves[2] = {low, high};
  UVec x;
  memcpy(&x, halves, sizeof(x));
  return x;
#endif
}

#if defined(__AVX512BF16__)
// See Dot and Pairs in tile.h.
STAL_INLINE Vec DotOfPairs(Vec sum, UVec a, UVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
STAL_INLINE UVec ToPairs(Vec low, Vec high) {
  typedef uint16_t Halves __attribute__((vector_size(64)));
  const Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (UVec)_mm512_permutexvar_epi16((__m512i)order, halves);
}
#endif

// First and second half of a[0] b[0] a[1] b[1] ...
#if defined(__clang__)
template <int... kIndex>
struct Indices {};
template <int kFirst, int... kIndex>
STAL_INLINE Vec InterleaveFrom(Vec a, Vec b, Indices<kIndex...>) {
  return __builtin_shufflevector(a, b, (kFirst + kIndex / 2 + (kIndex % 2) * kLanes)...);
}
template <int kCount, int... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeIndices<0, kIndex...> {
  using type = Indices<kIndex...>;
};
STAL_INLINE Vec InterleaveLow(Vec a, Vec b) {
  return InterleaveFrom<0>(a, b, MakeIndices<kLanes>::type());
}
STAL_INLINE Vec InterleaveHigh(Vec a, Vec b) {
  return InterleaveFrom<kLanes / 2>(a, b, MakeIndices<kLanes>::type());
}
#else
STAL_INLINE IVec InterleaveIndex(int first) {
  IVec index{};
  for (int i = 0; i < kLanes; ++i) index[i] = first + i / 2 + (i % 2) * kLanes;
  return index;
}
STAL_INLINE Vec InterleaveLow(Vec a, Vec b) { return __builtin_shuffle(a, b, InterleaveIndex(0)); }
STAL_INLINE Vec InterleaveHigh(Vec a, Vec b) {
  return __builtin_shuffle(a, b, InterleaveIndex(kLanes / 2));
}
#endif

// x, a square of kLanes rows, becomes its transpose.
STAL_INLINE void TransposeSquare(Vec (&x)[kLanes]) {
#if defined(STAL_MODEL)
  // Shuffles of vectors that the machine lacks would be spelled out element by element.
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float below = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = below;
    }
  }
#elif defined(__AVX2__) && !defined(__AVX512F__)
  // Three rounds, of which the compiler makes twice as many instructions from the loop below.
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps((__m256)x[i], (__m256)x[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps((__m256)x[i], (__m256)x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = (Vec)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    x[i + 4] = (Vec)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
#else
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    Vec y[kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < kLanes / 2; ++r) {
      y[2 * r] = InterleaveLow(x[r], x[r + kLanes / 2]);
      y[2 * r + 1] = InterleaveHigh(x[r], x[r + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) x[r] = y[r];
  }
#endif
}

}  // namespace
