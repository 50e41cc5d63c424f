// Products of bfloat16 matrices, for the instruction set that the including file is compiled for.
//
//   out (rows, columns) = A (rows, depth) B (depth, columns)
//
// The elements of A and B are pairs: two neighbours along the depth in one 32-bit word, the first
// in its low half. A is cut into tiles of 16 rows and 16 pairs, which lie row by row one after the
// other; B and out are row-major, and `columns` are the vector lanes of vector.h.
//
// Three instructions multiply pairs, and each has a model in plain arithmetic that rounds as it
// does, so that a level runs anywhere, slowly (STAL_MODEL, and STAL_LEVEL_AMX or not):
//
//   vdpbf16ps  Dot: two fused multiply-adds, of the high halves first
//   tdpbf16ps  Tiles::Dot: the sums of low and of high halves apart, each begun at zero, then
//              added to each other and to the destination
//   vcvtne2ps2bf16  Pairs: to nearest even
//
// All of them take denormals as zero, as input and as output (Intel SDM volume 2; the first and
// the last are compared with the processor in tests/stal_kernels/test_cpu_bf16.py).
#pragma once

#include "cpu/vector.h"

namespace {

static_assert(kLanes == 16, "a tile is 16 words wide");
constexpr int64_t kTile = 16;
constexpr int64_t kTileWords = kTile * kTile;

STAL_INLINE UVec LoadWords(const uint32_t* p) {
  UVec x;
  memcpy(&x, p, sizeof(x));
  return x;
}
STAL_INLINE void StoreWords(uint32_t* p, UVec x) { memcpy(p, &x, sizeof(x)); }

#if defined(__AVX512BF16__)
#define STAL_MODELLED STAL_INLINE
#else

// A call each: spelled out in every unrolled loop, the models would take minutes to compile.
#define STAL_MODELLED inline __attribute__((noinline))

typedef double DoubleVec __attribute__((vector_size(kLanes * 8)));

// Denormals to zeros of their sign.
STAL_INLINE UVec Flush(UVec bits) {
  return (UVec)Select((IVec)(bits & 0x7f800000) != 0, (IVec)bits, (IVec)(bits & 0x80000000));
}

// sum + a * b of three floats that are no denormals, rounded once. a and b have 8 significant
// bits, so the product is exact in double; where the sum in double is not, its second rounding
// starts far from a tie.
STAL_MODELLED UVec MultiplyAdd(UVec a, UVec b, UVec sum) {
  const DoubleVec exact = __builtin_convertvector((Vec)sum, DoubleVec) +
                          __builtin_convertvector((Vec)a, DoubleVec) *
                              __builtin_convertvector((Vec)b, DoubleVec);
  return Flush((UVec)__builtin_convertvector(exact, Vec));
}

STAL_INLINE UVec Low(UVec pairs) { return Flush(pairs << 16); }
STAL_INLINE UVec High(UVec pairs) { return Flush(pairs & 0xffff0000u); }

STAL_MODELLED UVec RoundToHigh(UVec bits) {
  const UVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const UVec quiet = bits | 0x400000;
  const IVec nan = (IVec)(bits & 0x7fffffff) > 0x7f800000;
  return Flush((UVec)Select(nan, (IVec)quiet, (IVec)rounded) & 0xffff0000u);
}

#endif

// sum + low(a) * low(b) + high(a) * high(b).
STAL_MODELLED Vec Dot(Vec sum, UVec a, UVec b) {
#if defined(__AVX512BF16__)
  return DotOfPairs(sum, a, b);
#else
  return (Vec)MultiplyAdd(Low(a), Low(b), MultiplyAdd(High(a), High(b), Flush((UVec)Bits(sum))));
#endif
}

// Two vectors, rounded to bfloat16, as one vector of pairs.
STAL_MODELLED UVec Pairs(Vec low, Vec high) {
#if defined(__AVX512BF16__)
  return ToPairs(low, high);
#else
  // An input that is a denormal gives zero even where rounding would make it normal.
  const UVec l = RoundToHigh(Flush((UVec)Bits(low)));
  return l >> 16 | RoundToHigh(Flush((UVec)Bits(high)));
#endif
}

#if defined(STAL_LEVEL_AMX)

// Blocks of 32 rows and 32 columns in four tile registers, two more for A and two for B.
constexpr int kPairVectors = 2;
constexpr int64_t kDepthUnit = kTile;  // B has zeros up to a multiple of this many pairs

// The eight tile registers of this thread, each 16 rows of 64 bytes, while the object lives.
class Tiles {
 public:
#if !defined(STAL_MODEL)
  Tiles() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    // GCC 12 declares that _tile_loadconfig reads 8 bytes, and leaves out what sets the others.
    asm volatile("" : : "m"(config));
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }

// The register is part of the instruction.
#define STAL_TILES(operation) \
  operation(0) operation(1) operation(2) operation(3) operation(4) operation(5) operation(6) \
      operation(7)
  template <int kRegister>
  STAL_INLINE void Load(const void* p, int64_t stride) {
#define STAL_LOAD(i) \
  if constexpr (kRegister == i) _tile_loadd(i, p, stride);
    STAL_TILES(STAL_LOAD)
#undef STAL_LOAD
  }
  template <int kRegister>
  STAL_INLINE void Store(void* p, int64_t stride) {
#define STAL_STORE(i) \
  if constexpr (kRegister == i) _tile_stored(i, p, stride);
    STAL_TILES(STAL_STORE)
#undef STAL_STORE
  }
  template <int kRegister>
  STAL_INLINE void Zero() {
#define STAL_ZERO(i) \
  if constexpr (kRegister == i) _tile_zero(i);
    STAL_TILES(STAL_ZERO)
#undef STAL_ZERO
  }
  // Register kC += A in register 4 + kA times B in register 6 + kB, with kC = 2 kA + kB.
  template <int kA, int kB>
  STAL_INLINE void Dot() {
    if constexpr (kA == 0 && kB == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kA == 0 && kB == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kA == 1 && kB == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kA == 1 && kB == 1) _tile_dpbf16ps(3, 5, 7);
  }
#undef STAL_TILES
#else
  template <int kRegister>
  void Load(const void* p, int64_t stride) {
    for (int64_t i = 0; i < kTile; ++i) {
      memcpy(tiles_[kRegister][i], static_cast<const char*>(p) + i * stride, 64);
    }
  }
  template <int kRegister>
  void Store(void* p, int64_t stride) {
    for (int64_t i = 0; i < kTile; ++i) {
      memcpy(static_cast<char*>(p) + i * stride, tiles_[kRegister][i], 64);
    }
  }
  template <int kRegister>
  void Zero() {
    memset(tiles_[kRegister], 0, sizeof(tiles_[kRegister]));
  }
  template <int kA, int kB>
  void Dot() {
    for (int64_t i = 0; i < kTile; ++i) {
      UVec low{}, high{};
      for (int64_t t = 0; t < kTile; ++t) {
        const UVec a = UVec{} + tiles_[4 + kA][i][t];
        const UVec b = LoadWords(tiles_[6 + kB][t]);
        low = MultiplyAdd(Low(a), Low(b), low);
        high = MultiplyAdd(High(a), High(b), high);
      }
      uint32_t* c = tiles_[2 * kA + kB][i];
      const UVec both = Flush((UVec)Bits((Vec)low + (Vec)high));
      StoreWords(c, Flush((UVec)Bits((Vec)Flush(LoadWords(c)) + (Vec)both)));
    }
  }

 private:
  uint32_t tiles_[8][kTile][kTile];
#endif
};

// One or two tiles of rows by kVectors tiles of columns.
template <int kRowTiles, int kVectors>
STAL_INLINE void TileProduct(Tiles& tiles, const uint32_t* a, int64_t a_step, int64_t depth_tiles,
                             const uint32_t* b, float* out) {
  constexpr int64_t kStride = kVectors * kTile * 4;
  tiles.Zero<0>();
  if constexpr (kVectors > 1) tiles.Zero<1>();
  if constexpr (kRowTiles > 1) tiles.Zero<2>();
  if constexpr (kRowTiles > 1 && kVectors > 1) tiles.Zero<3>();
  for (int64_t t = 0; t < depth_tiles; ++t) {
    tiles.Load<4>(a + t * kTileWords, 64);
    const uint32_t* columns = b + t * kTile * kVectors * kTile;
    tiles.Load<6>(columns, kStride);
    tiles.Dot<0, 0>();
    if constexpr (kVectors > 1) {
      tiles.Load<7>(columns + kTile, kStride);
      tiles.Dot<0, 1>();
    }
    if constexpr (kRowTiles > 1) {
      tiles.Load<5>(a + a_step + t * kTileWords, 64);
      tiles.Dot<1, 0>();
      if constexpr (kVectors > 1) tiles.Dot<1, 1>();
    }
  }
  tiles.Store<0>(out, kStride);
  if constexpr (kVectors > 1) tiles.Store<1>(out + kTile, kStride);
  if constexpr (kRowTiles > 1) tiles.Store<2>(out + kTile * kVectors * kTile, kStride);
  if constexpr (kRowTiles > 1 && kVectors > 1) {
    tiles.Store<3>(out + kTile * kVectors * kTile + kTile, kStride);
  }
}

// The product at the top of this file. `rows` and `depth` (in pairs) are rounded up to whole
// tiles: out has room for them, and A and B have zeros in the excess depth.
template <int kVectors>
STAL_INLINE void Product(Tiles& tiles, const uint32_t* a, int64_t rows, int64_t a_step,
                         int64_t depth, const uint32_t* b, float* out) {
  const int64_t depth_tiles = (depth + kTile - 1) / kTile;
  for (int64_t row = 0; row < rows; row += 2 * kTile) {
    float* block = out + row * kVectors * kTile;
    const uint32_t* tile = a + row / kTile * a_step;
    if (rows - row > kTile) {
      TileProduct<2, kVectors>(tiles, tile, a_step, depth_tiles, b, block);
    } else {
      TileProduct<1, kVectors>(tiles, tile, a_step, depth_tiles, b, block);
    }
  }
}

// Likewise, and also(row, r, x) for each vector x of it.
template <int kVectors, typename Also>
STAL_INLINE void Product(Tiles& tiles, const uint32_t* a, int64_t rows, int64_t a_step,
                         int64_t depth, const uint32_t* b, float* out, const Also& also) {
  Product<kVectors>(tiles, a, rows, a_step, depth, b, out);
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
    for (int r = 0; r < kVectors; ++r) also(row, r, Load(out + (row * kVectors + r) * kLanes));
  }
}

// use(row, r, x) for each vector x of the product, which `scratch` has room for.
template <int kVectors, typename Use>
STAL_INLINE void UseProduct(Tiles& tiles, const uint32_t* a, int64_t rows, int64_t a_step,
                            int64_t depth, const uint32_t* b, float* scratch, const Use& use) {
  Product<kVectors>(tiles, a, rows, a_step, depth, b, scratch, use);
}

#else

// Half a tile of rows and 3 vectors of columns: 24 accumulators.
constexpr int kPairVectors = 3;
constexpr int64_t kDepthUnit = 1;

struct Tiles {};

// As above; `rows` is rounded up to half tiles, and nothing is written to the scratch memory.
template <int kVectors, typename Use>
STAL_INLINE void UseProduct(Tiles&, const uint32_t* a, int64_t rows, int64_t a_step, int64_t depth,
                            const uint32_t* b, float*, const Use& use) {
  constexpr int kHalf = 8;
  constexpr int64_t kColumns = kVectors * kLanes;
  for (int64_t row = 0; row < rows; row += kHalf) {
    const uint32_t* tile = a + row / kTile * a_step + row % kTile * kTile;
    Vec sum[kHalf][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) sum[i][r] = Vec{};
    }
    for (int64_t first = 0; first < depth; first += kTile, tile += kTileWords) {
      const int64_t count = depth - first < kTile ? depth - first : kTile;
      const uint32_t* columns = b + first * kColumns;
      for (int64_t t = 0; t < count; ++t, columns += kColumns) {
        UVec y[kVectors];
#pragma GCC unroll 4
        for (int r = 0; r < kVectors; ++r) y[r] = LoadWords(columns + r * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kHalf; ++i) {
          const UVec x = UVec{} + tile[i * kTile + t];
#pragma GCC unroll 4
          for (int r = 0; r < kVectors; ++r) sum[i][r] = Dot(sum[i][r], x, y[r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) use(row + i, r, sum[i][r]);
    }
  }
}

// As above, with the same `rows`.
template <int kVectors, typename Also>
STAL_INLINE void Product(Tiles& tiles, const uint32_t* a, int64_t rows, int64_t a_step,
                         int64_t depth, const uint32_t* b, float* out, const Also& also) {
  UseProduct<kVectors>(tiles, a, rows, a_step, depth, b, out, [&](int64_t row, int r, Vec x) {
    Store(out + (row * kVectors + r) * kLanes, x);
    also(row, r, x);
  });
}

template <int kVectors>
STAL_INLINE void Product(Tiles& tiles, const uint32_t* a, int64_t rows, int64_t a_step,
                         int64_t depth, const uint32_t* b, float* out) {
  Product<kVectors>(tiles, a, rows, a_step, depth, b, out, [](int64_t, int, Vec) {});
}

#endif

}  // namespace
