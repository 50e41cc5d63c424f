// The 16-bit formats, and their roundings, in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace stal::emulator {

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float FromBFloat16(uint16_t bits) { return FromBits(static_cast<uint32_t>(bits) << 16); }

inline float FromFloat16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00) return FromBits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Moved to float's place the exponent is 112 too small, which a product mends, of denormals too.
  return FromBits(sign | BitsOf(FromBits(rest << 13) * 0x1p112f));
}

// To nearest, ties to even; NaN as the GPU writes it.
inline uint16_t ToBFloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t bits = BitsOf(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t ToFloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint16_t sign = static_cast<uint16_t>(BitsOf(x) >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  // 65520 lies halfway between the largest number and the next one.
  if (magnitude >= 65520) return sign | 0x7c00;
  // As denormals, all of whose units are 2^-24, or with 10 bits behind the first one.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int shift = magnitude < 0x1p-14f ? 24 : 11 - exponent;
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, shift)));
  if (magnitude < 0x1p-14f) return static_cast<uint16_t>(sign | units);
  // A carry out of the 10 bits raises the exponent, as it should.
  return static_cast<uint16_t>(sign + ((exponent + 14) << 10) + (units - 1024));
}

}  // namespace stal::emulator
