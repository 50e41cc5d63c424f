// Each instruction of cuda/ptx.h in the emulator, against the manual's words as plain formulas.
//
//   instructions NAME    runs one test; returns 1 and says what is wrong
//   instructions         prints their names
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/ptx.h"
#include "test/case.h"

namespace stal::cuda {

namespace {

using emulator::Error;
using emulator::Launch;
using test::Random;

constexpr int kSeeds = 8;
constexpr uint32_t kBase = emulator::kSharedBase;

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void Expect(bool holds, const char* what) {
  if (!holds) throw Wrong(what);
}

void Expect(bool holds, const std::string& what) { Expect(holds, what.c_str()); }

void Expect(bool holds, const char* what, int64_t i, double expected, double actual) {
  if (holds) return;
  throw Wrong(std::string(what) + " " + std::to_string(i) + " must be " +
              std::to_string(expected) + ", got " + std::to_string(actual));
}

// body in `threads` lanes of one block, with many orders of them.
void RunLanes(int threads, const std::function<void()>& body,
              const std::vector<emulator::Range>& memory = {}) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Launch({1, threads, 64 * 1024, seed, memory}, body);
  }
}

// That body ends with an error that contains these words, or others where it is chance what shows
// first, whatever the order.
void ExpectRefused(int threads, const std::string& words, const std::function<void()>& body,
                   const std::vector<emulator::Range>& memory = {},
                   const std::vector<std::string>& others = {}) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    std::string said = "nothing";
    try {
      Launch({1, threads, 64 * 1024, seed, memory}, body);
    } catch (const Error& error) {
      said = error.what();
    }
    bool found = said.find(words) != std::string::npos;
    for (const std::string& other : others) found |= said.find(other) != std::string::npos;
    Expect(found,
           "an error must say \"" + words + "\", got \"" + said + "\"");
  }
}

int Lane() { return static_cast<int>(threadIdx.x); }

// ---- numbers ----

struct Format {
  int exponent_bits, fraction_bits;
};
constexpr Format kFloat16Format = {5, 10}, kBFloat16Format = {8, 7};

// (-1)^s 2^(e - bias) 1.f, with denormals, infinities and NaN.
double Decode(uint32_t bits, Format format) {
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = bits >> format.fraction_bits & ((1 << format.exponent_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const double part = std::ldexp(fraction, -format.fraction_bits);
  if (exponent == (1 << format.exponent_bits) - 1) {
    return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  return sign * (exponent ? std::ldexp(1 + part, exponent - bias) : std::ldexp(part, 1 - bias));
}

uint32_t Encode(double x, Format format) {
  const float rounded = static_cast<float>(x);
  return (format.exponent_bits == 5 ? to_pairs<Float16>(rounded, 0)
                                    : to_pairs<BFloat16>(rounded, 0)) & 0xffff;
}

template <typename T>
constexpr Format FormatOf() {
  return std::is_same_v<T, BFloat16> ? kBFloat16Format : kFloat16Format;
}

// Every number, every midpoint of two, and its neighbours on both sides.
template <typename T>
void CheckRounding() {
  const Format format = FormatOf<T>();
  const uint32_t infinity = ((1u << format.exponent_bits) - 1) << format.fraction_bits;
  for (uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t bits = 0; bits < infinity; ++bits) {
      const float low = static_cast<float>(Decode(bits | sign, format));
      // As if the exponent went on.
      const double gap = Decode(bits, format) - (bits ? Decode(bits - 1, format) : 0);
      const double next = bits + 1 < infinity ? Decode(bits + 1, format)
                                              : Decode(bits, format) + gap;
      const float middle =
          static_cast<float>((sign ? -1 : 1) * (Decode(bits, format) + next) / 2);
      const uint32_t even = bits % 2 ? bits + 1 : bits;
      const auto check = [&](float x, uint32_t expected) {
        Expect(to_pairs<T>(x, 0) == (expected | sign), "to_pairs of", bits, expected, x);
        Expect(to_pairs<T>(0, x) == (expected | sign) << 16, "to_pairs, high,", bits, 0, x);
      };
      check(low, bits);
      check(middle, even);
      check(std::nextafter(middle, 0.0f), bits);
      check(std::nextafter(middle, sign ? -INFINITY : INFINITY), bits + 1);
    }
    Expect(to_pairs<T>(sign ? -INFINITY : INFINITY, 0) == (infinity | sign), "infinity must stay");
  }
  Expect(std::isnan(Decode(to_pairs<T>(NAN, 0) & 0xffff, format)), "NaN must stay");
}

void Rounding() {
  CheckRounding<Float16>();
  CheckRounding<BFloat16>();
}

void Functions() {
  Random random(0);
  for (int i = 0; i < 100000; ++i) {
    const float x = static_cast<float>(random.Uniform() * 300 - 150);
    const double exact = std::pow(2.0L, static_cast<long double>(x));
    const float y = exp2_approx(x);
    if (exact < 0x1p-126) {
      Expect(y == 0 || std::fabs(y - 0x1p-126f) == 0, "exp2_approx", i, 0, y);
    } else if (exact > std::numeric_limits<float>::max()) {
      Expect(std::isinf(y), "exp2_approx", i, INFINITY, y);
    } else {
      Expect(std::fabs(y - exact) <= exact * 0x1p-24, "exp2_approx", i, exact, y);
    }
    const float z = reciprocal_approx(x);
    const double inverse = 1.0 / x;
    Expect(std::fabs(z - inverse) <= std::fabs(inverse) * 0x1p-24, "reciprocal", i, inverse, z);
  }
  Expect(exp2_approx(-INFINITY) == 0 && exp2_approx(0) == 1, "exp2 of -infinity and 0");
  Expect(reciprocal_approx(0) == INFINITY && reciprocal_approx(INFINITY) == 0, "1 / 0");
  Expect(reciprocal_approx(0x1p-140f) == INFINITY, "a denormal must count as 0");
  Expect(std::signbit(reciprocal_approx(-0.0f)), "the sign of 0 must count");
  for (int i = 0; i < 32; ++i) {
    Expect(lowest_bit(1u << i | (i < 31 ? 1u << 31 : 0)) == i, "lowest_bit " + std::to_string(i));
  }
  Expect(bits_of(-0.0f) == 0x80000000 && bits_of(1.0f) == 0x3f800000, "bits_of");
}

// ---- warps and barriers ----

void Shuffles() {
  RunLanes(128, [] {
    const int lane = Lane() % 32, warp = Lane() / 32;
    for (int from = 0; from < 32; ++from) {
      Expect(shuffle(100 * warp + lane, from) == 100 * warp + from, "shuffle");
    }
    for (int mask = 1; mask < 32; ++mask) {
      Expect(shuffle_xor(static_cast<float>(Lane()), mask) == 32 * warp + (lane ^ mask),
             "shuffle_xor");
    }
    uint32_t odd = 0;
    for (int i = 1; i < 32; i += 2) odd |= 1u << i;
    Expect(ballot(lane % 2 == 1) == odd, "ballot");
    Expect(ballot(lane == warp) == 1u << warp, "ballot of one");
  });
  ExpectRefused(128, "lanes 64-76, 78-95 wait for shuffle; lanes", [] {
    if (Lane() != 77) shuffle(1, 0);
  });
  ExpectRefused(128, "divergent: it is at", [] {
    if (Lane() % 32 < 16) {
      shuffle(1, 0);
    } else {
      ballot(true);
    }
  });
}

void Barriers() {
  // Everybody's word is read by everybody else, in two halves of the block at once.
  RunLanes(256, [] {
    const int half = Lane() / 128, lane = Lane() % 128;
    const uint32_t words = kBase + half * 1024;
    for (uint32_t round = 0; round < 3; ++round) {
      store_shared_4(words + 4 * lane, 1000 * round + lane);
      named_barrier(1 + half, 128);
      const uint32_t other = (lane + 31 * round + 1) % 128;
      Expect(load_shared_4(words + 4 * other) == 1000 * round + other, "a word of another warp");
      sync_block();
    }
  });
  const auto exchange = [](int threads) {
    store_shared_4(kBase + 4 * Lane(), 0);
    named_barrier(1, threads);
    load_shared_4(kBase + 4 * (Lane() ^ 64));
  };
  ExpectRefused(256, "deadlock; lanes 0-127 wait for bar.sync 1, which has 128 of 256 threads",
                [&] {
                  if (Lane() < 128) exchange(256);
                });
  ExpectRefused(256, "expect", [&] { exchange(Lane() < 128 ? 256 : 128); });
  ExpectRefused(128, "whole warps", [&] { exchange(48); });
  ExpectRefused(128, "divergent: it is at bar.sync", [] {
    if (Lane() % 2) {
      named_barrier(1, 128);
    } else {
      named_barrier(2, 128);
    }
  });
  ExpectRefused(128, "not published: no barrier between the write of lane", [] {
    store_shared_4(kBase + 4 * Lane(), 0);
    sync_warp();
    load_shared_4(kBase + 4 * (Lane() ^ 32));
  }, {}, {"uninitialised"});
  RunLanes(128, [] {
    store_shared_4(kBase + 4 * Lane(), Lane());
    sync_warp();
    Expect(load_shared_4(kBase + 4 * (Lane() ^ 31)) == static_cast<uint32_t>(Lane() ^ 31),
           "a word of the same warp");
  });
}

void Registers() {
  // 512 threads begin with 128 each.
  RunLanes(512, [] {
    if (Lane() < 128) {
      set_max_registers_down<32>();
    } else {
      set_max_registers_up<160>();
    }
  });
  ExpectRefused(512, "deadlock", [] {
    if (Lane() < 128) {
      set_max_registers_down<40>();
    } else {
      set_max_registers_up<160>();
    }
  });
  ExpectRefused(512, "wait for registers of setmaxnreg.inc", [] {
    if (Lane() >= 128) set_max_registers_up<160>();
  });
  ExpectRefused(512, "must not lower", [] { set_max_registers_up<120>(); });
  ExpectRefused(512, "must not raise", [] { set_max_registers_down<136>(); });
  ExpectRefused(512, "a multiple of 8", [] { set_max_registers_down<36>(); });
  ExpectRefused(128, "must be the same in all warps", [] {
    if (Lane() < 64) set_max_registers_down<32>();
  });
}

// ---- shared memory ----

void SharedMemory() {
  RunLanes(128, [] {
    const uint32_t mine = kBase + 16 * Lane();
    const uint32_t x = Lane();
    store_shared_16(mine, {x, x + 1, x + 2, x + 3});
    Expect(load_shared_4(mine + 8) == x + 2, "the third word");
    store_shared_float(mine + 4, -1.5f);
    const Words words = load_shared_16(mine);
    Expect(words.x == x && words.y == bits_of(-1.5f) && words.z == x + 2 && words.w == x + 3,
           "all four words");
    Expect(load_shared_float(mine + 4) == -1.5f, "a float");
    if (x == 0) store_shared_4(kBase + 4096, 7);
    sync_block();
    const uint32_t before = atomic_add_shared(kBase + 4096, 2);
    Expect(before >= 7 && before < 7 + 2 * 128 && before % 2 == 1, "before an atomic add");
    sync_block();
    Expect(load_shared_4(kBase + 4096) == 7 + 2 * 128, "after all atomic adds");
  });
  ExpectRefused(128, "out of bounds: 4 bytes", [] { load_shared_4(kBase + 64 * 1024); });
  ExpectRefused(128, "out of bounds: 16 bytes", [] { store_shared_16(kBase - 16, {}); });
  ExpectRefused(128, "misaligned: 16 bytes", [] { load_shared_16(kBase + 8); });
  ExpectRefused(128, "uninitialised", [] { load_shared_4(kBase); });
  ExpectRefused(128, "two writers", [] { store_shared_4(kBase, Lane()); });
  RunLanes(128, [] { store_shared_4(kBase, 5); });  // all the same
  ExpectRefused(128, "written too early: no barrier between the read of lane", [] {
    if (Lane() == 0) store_shared_4(kBase, 1);
    sync_block();
    load_shared_4(kBase);
    if (Lane() < 32) sync_warp();
    if (Lane() == 0) store_shared_4(kBase, 2);
  });
}

// "Each row of matrix i is at the address of thread 8 i + row; the fragment of thread T is row
// T / 4, columns 2 (T % 4) and 2 (T % 4) + 1."
void Stmatrix() {
  RunLanes(128, [] {
    const int lane = Lane() % 32;
    const uint32_t area = kBase + Lane() / 32 * 2048;
    const auto row_at = [&](int matrix, int row) {
      return area + 16 * (37 * (8 * matrix + row) % 64);  // no two alike
    };
    const auto element = [](int matrix, int row, int column) -> uint32_t {
      return 1000 * matrix + 100 * row + column;
    };
    const auto pair = [&](int matrix) {
      return element(matrix, lane / 4, 2 * (lane % 4)) |
             element(matrix, lane / 4, 2 * (lane % 4) + 1) << 16;
    };
    stmatrix_x4(row_at(lane / 8, lane % 8), pair(0), pair(1), pair(2), pair(3));
    sync_warp();
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 8; column += 2) {
          const uint32_t expected =
              element(matrix, row, column) | element(matrix, row, column + 1) << 16;
          Expect(load_shared_4(row_at(matrix, row) + 2 * column) == expected, "a row of a matrix");
        }
      }
    }
  });
  ExpectRefused(128, "load: not published", [] {
    stmatrix_x4(kBase + 16 * Lane(), Lane(), 1, 2, 3);
    load_shared_4(kBase + 16 * (Lane() ^ 1));
  });
}

// ---- asynchronous copies ----

void Copies() {
  alignas(16) static uint32_t global[128 * 4];
  for (uint32_t i = 0; i < 128 * 4; ++i) global[i] = 3 * i;
  const std::vector<emulator::Range> memory = {{global, sizeof(global), false, "global"}};
  const auto mine = [] { return kBase + 16 * Lane(); };
  const auto from = [] { return global + 4 * Lane(); };
  RunLanes(
      128,
      [&] {
        cp_async_16(mine(), from(), true);
        cp_async_commit();
        cp_async_16(mine() + 4096, from(), false);
        cp_async_commit();
        cp_async_wait<1>();
        Expect(load_shared_4(mine() + 8) == 3 * (4u * Lane() + 2), "a word that was copied");
        cp_async_wait<0>();
        Expect(load_shared_4(mine() + 4096 + 8) == 0, "a word that was filled with 0");
        sync_block();
        Expect(load_shared_4(kBase + 16 * (Lane() ^ 77)) == 12u * (Lane() ^ 77), "another's");
      },
      memory);
  ExpectRefused(128, "has not been waited for", [&] {
    cp_async_16(mine(), from(), true);
    cp_async_commit();
    load_shared_4(mine());
  }, memory);
  ExpectRefused(128, "has not been waited for", [&] {
    cp_async_16(mine(), from(), true);
    cp_async_commit();
    cp_async_wait<1>();
    load_shared_4(mine());
  }, memory);
  // A copy that belongs to no group yet is not waited for.
  ExpectRefused(128, "has not been waited for", [&] {
    cp_async_16(mine(), from(), true);
    cp_async_wait<0>();
    load_shared_4(mine());
  }, memory);
  // Another lane's wait is not mine.
  ExpectRefused(128, "has not been waited for", [&] {
    cp_async_16(mine(), from(), true);
    cp_async_commit();
    if (Lane() != 5) cp_async_wait<0>();
    sync_block();
    load_shared_4(kBase + 16 * 5);
  }, memory);
  ExpectRefused(128, "finished with a cp.async", [&] {
    cp_async_16(mine(), from(), true);
    cp_async_commit();
  }, memory);
  ExpectRefused(128, "cp.async: out of bounds: 16 bytes", [&] {
    cp_async_16(mine(), global + 4 * (Lane() + 1), true);
    cp_async_commit();
    cp_async_wait<0>();
  }, memory);
  ExpectRefused(128, "cp.async: misaligned", [&] { cp_async_16(mine(), global + 1, true); },
                memory);
}

// ---- mbarriers ----

void MBarriers() {
  // Warp 0 waits for 96 lanes of the others, round after round.
  RunLanes(128, [] {
    const uint32_t full = kBase, empty = kBase + 8, words = kBase + 1024;
    if (Lane() == 0) {
      mbarrier_init(full, 96);
      mbarrier_init(empty, 32);
    }
    sync_block();
    for (uint32_t round = 0; round < 5; ++round) {
      if (Lane() >= 32) {
        // The phase before the first one counts as ended.
        mbarrier_wait(empty, round % 2 ^ 1);
        store_shared_4(words + 4 * Lane(), round * 1000 + Lane());
        mbarrier_arrive(full);
      } else {
        mbarrier_wait(full, round % 2);
        for (int i = 32; i < 128; ++i) {
          Expect(load_shared_4(words + 4 * i) == round * 1000 + i, "a word of the producers");
        }
        mbarrier_arrive(empty);
      }
    }
  });
  const auto hand_over = [](uint32_t parity, int count) {
    if (Lane() == 0) mbarrier_init(kBase, count);
    sync_block();
    if (Lane() < 64) {
      store_shared_4(kBase + 1024 + 4 * Lane(), 0);
      mbarrier_arrive(kBase);
    } else {
      mbarrier_wait(kBase, parity);
      load_shared_4(kBase + 1024 + 4 * (Lane() - 64));
    }
  };
  RunLanes(128, [&] { hand_over(0, 64); });
  ExpectRefused(128, "deadlock; lanes 64-127 wait for mbarrier 0x400, parity 0, in phase 0, which "
                     "lacks 1 of 65 arrivals", [&] { hand_over(0, 65); });
  // Read too early, or hang.
  ExpectRefused(128, "not published", [&] { hand_over(1, 64); }, {},
                {"uninitialised", "deadlock; lanes"});
  ExpectRefused(128, "there is no mbarrier", [] { mbarrier_arrive(kBase); });
  ExpectRefused(128, "belongs to an mbarrier", [] {
    if (Lane() == 0) mbarrier_init(kBase, 1);
    sync_block();
    store_shared_4(kBase + 4, 0);
  });
  ExpectRefused(128, "not published: no barrier between the mbarrier.init", [] {
    if (Lane() == 0) mbarrier_init(kBase, 1);
    if (Lane() == 100) mbarrier_arrive(kBase);
  }, {}, {"there is no mbarrier"});
}

// ---- products ----

// Where the manual has element (row, column) of a matrix of `rows` rows with this swizzle: rows of
// `width` bytes, cut into chunks of 16; 8 rows repeat a pattern. Rows of 128 bytes swap chunks by
// the number of the row, of 64 by that of the pair of rows, of 32 by that of the four rows.
uint32_t Place(int rows, int row, int column, int width) {
  const int panel = column / (width / 2), inside = column % (width / 2);
  const int chunk = inside / 8;
  int swapped = chunk;
  if (width == 128) swapped = chunk ^ (row % 8);
  if (width == 64) swapped = chunk ^ (row % 8 / 2);
  if (width == 32) swapped = chunk ^ (row % 8 / 4);
  return panel * rows * width + row * width + swapped * 16 + inside % 8 * 2;
}

struct Matrix {
  int rows, columns;
  std::vector<uint16_t> bits;

  Matrix(int rows, int columns, Format format, Random* random)
      : rows(rows), columns(columns), bits(rows * columns) {
    for (uint16_t& x : bits) x = static_cast<uint16_t>(Encode(random->Bell(), format));
  }
  uint16_t at(int row, int column) const { return bits[row * columns + column]; }

  // All lanes of the block together.
  void Store(uint32_t to, int width) const {
    for (int i = Lane(); i < rows * columns / 8; i += emulator::Block::Current().threads()) {
      const int row = i / (columns / 8), column = i % (columns / 8) * 8;
      Words words;
      std::memcpy(&words, &bits[row * columns + column], sizeof(words));
      store_shared_16(to + Place(rows, row, column, width), words);
    }
  }
};

uint32_t Low(uint32_t address, uint32_t leading) { return address / 16 | leading / 16 << 16; }
uint32_t High(uint32_t stride, int width) {
  const uint32_t swizzle = width == 128 ? 1 : width == 64 ? 2 : 3;
  return stride / 16 | swizzle << 30;
}

// Register i of a lane holds this element of d: "row 16 warp + lane / 4, plus 8 for i % 4 >= 2;
// column 2 (lane % 4) + i % 2 + 8 (i / 4)".
int RowOfD(int lane, int i) { return lane / 32 * 16 + lane % 32 / 4 + (i % 4 >= 2 ? 8 : 0); }
int ColumnOfD(int lane, int i) { return lane % 4 * 2 + i % 2 + i / 4 * 8; }

// a (rows, depth) times b (depth, columns), and the same of their magnitudes.
struct Exact {
  std::vector<double> value, size;
  int columns;

  Exact(const Matrix& a, const Matrix& b, bool b_is_transposed, Format format)
      : columns(b_is_transposed ? b.rows : b.columns) {
    std::vector<double> x(a.bits.size()), y(b.bits.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = Decode(a.bits[i], format);
    for (size_t i = 0; i < y.size(); ++i) y[i] = Decode(b.bits[i], format);
    value.resize(a.rows * columns);
    size.resize(a.rows * columns);
    for (int row = 0; row < a.rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        for (int k = 0; k < a.columns; ++k) {
          const double product = x[row * a.columns + k] * (b_is_transposed
                                                               ? y[column * b.columns + k]
                                                               : y[k * b.columns + column]);
          value[row * columns + column] += product;
          size[row * columns + column] += std::fabs(product);
        }
      }
    }
  }

  // For each 16 products there is one rounding.
  void ExpectNear(float actual, int row, int column, double added) const {
    const int i = row * columns + column;
    const double expected = value[i] + added;
    const double slack = (size[i] + added) * 10 * 0x1p-24;
    Expect(std::fabs(actual - expected) <= slack, "element", i, expected, actual);
  }
};

// d = a b^T with both K-major in shared memory, in k16 steps through the panels.
template <typename T>
void CheckScores(int depth, int width) {
  const Format format = FormatOf<T>();
  Random random(depth + width);
  const Matrix a(64, depth, format, &random), b(80, depth, format, &random);
  const Exact exact(a, b, true, format);
  RunLanes(256, [&] {
    const uint32_t a_at = kBase, b_at = kBase + 24 * 1024;
    a.Store(a_at, width);
    b.Store(b_at, width);
    fence_proxy_async();
    sync_block();
    const int lane = Lane() % 128;
    float d[40];
    // Two warpgroups, one of which begins with its own numbers.
    const bool adds = Lane() >= 128;
    for (int i = 0; i < 40; ++i) d[i] = adds ? static_cast<float>(i) : NAN;
    wgmma_fence();
    for (int k = 0; k < depth; k += 16) {
      const uint32_t panel = k / (width / 2), inside = k % (width / 2) * 2;
      wgmma_m64n80k16<T>(
          d, make_descriptor(Low(a_at + panel * 64 * width + inside, 16), High(8 * width, width)),
          make_descriptor(Low(b_at + panel * 80 * width + inside, 16), High(8 * width, width)),
          adds || k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(d);
    for (int i = 0; i < 40; ++i) {
      exact.ExpectNear(d[i], RowOfD(lane, i), ColumnOfD(lane, i), adds ? i : 0);
    }
  });
}

void Scores() {
  for (const int width : {128, 64, 32}) {
    for (const int depth : {64, 128}) {
      CheckScores<BFloat16>(depth, width);
      CheckScores<Float16>(depth, width);
    }
  }
  CheckScores<BFloat16>(48, 32);
  CheckScores<Float16>(80, 32);
}

// d = a b with a in registers and b, rows of `N` numbers, MN-major in shared memory.
template <typename T, int N>
void CheckValues(int width) {
  const Format format = FormatOf<T>();
  constexpr int kKeys = 80;
  Random random(N + width);
  const Matrix a(64, kKeys, format, &random), b(kKeys, N, format, &random);
  const Exact exact(a, b, false, format);
  RunLanes(128, [&] {
    const uint32_t b_at = kBase + 8 * 1024;
    b.Store(b_at, width);
    fence_proxy_async();
    sync_block();
    uint32_t factor[kKeys / 16][4];
    for (int k = 0; k < kKeys; k += 16) {
      for (int i = 0; i < 4; ++i) {
        // "a0, a1: row lane / 4; a2, a3: 8 further down; a4 to a7: the same, 8 columns on."
        const int row = Lane() / 32 * 16 + Lane() % 32 / 4 + (i % 2 ? 8 : 0);
        const int column = k + Lane() % 4 * 2 + (i >= 2 ? 8 : 0);
        factor[k / 16][i] = a.at(row, column) | static_cast<uint32_t>(a.at(row, column + 1)) << 16;
      }
    }
    float d[N / 2];
    wgmma_fence();
    for (int k = 0; k < kKeys; k += 16) {
      wgmma_m64nNk16<T, N>(d, factor[k / 16],
                           make_descriptor(Low(b_at + k * width, kKeys * width),
                                           High(8 * width, width)),
                           k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; ++i) {
      exact.ExpectNear(d[i], RowOfD(Lane(), i), ColumnOfD(Lane(), i), 0);
    }
  });
}

void Values() {
  CheckValues<BFloat16, 64>(128);
  CheckValues<Float16, 128>(128);
  CheckValues<Float16, 128>(64);
  CheckValues<BFloat16, 48>(32);
  CheckValues<Float16, 80>(32);
  CheckValues<BFloat16, 80>(32);
}

// What a product forbids.
void ProductRules() {
  const uint32_t a_at = kBase, b_at = kBase + 8 * 1024;
  const uint32_t high = High(1024, 128);
  const auto fill = [&] {
    for (int i = Lane(); i < 144 * 8; i += 128) store_shared_16(kBase + 16 * i, {});
  };
  const auto descriptor = [&](uint32_t at) { return make_descriptor(Low(at, 16), high); };
  const auto ready = [&] {
    fill();
    fence_proxy_async();
    sync_block();
    wgmma_fence();
  };
  using T = BFloat16;
  RunLanes(128, [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    wgmma_wait<0>();
    Expect(d[7] == 0, "a product of zeros");
  });
  ExpectRefused(128, "no fence.proxy.async and barrier between the write", [&] {
    float d[40];
    fill();
    sync_block();
    wgmma_fence();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
  });
  // The fence must come before the barrier, or behind it in every lane.
  ExpectRefused(128, "no fence.proxy.async and barrier between the write", [&] {
    float d[40];
    fill();
    sync_block();
    if (Lane() != 77) fence_proxy_async();
    wgmma_fence();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
  });
  ExpectRefused(128, "no wgmma.fence since the registers", [&] {
    float d[40];
    fill();
    fence_proxy_async();
    sync_block();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
  });
  ExpectRefused(128, "finished with a wgmma", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
  });
  ExpectRefused(128, "was written before wgmma.wait_group", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    d[3] = 0;
    wgmma_commit();
    wgmma_wait<0>();
  });
  ExpectRefused(128, "a register of the first factor", [&] {
    float d[40];
    uint32_t a[4] = {};
    ready();
    wgmma_m64nNk16<T, 80>(d, a, make_descriptor(Low(b_at, 0), high), false);
    wgmma_commit();
    a[2] = 1;
    wgmma_wait<0>();
  });
  // Until the wait a register is not a number.
  RunLanes(128, [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    Expect(std::isnan(d[39]), "a register of a product under way");
    float e[40];
    wgmma_m64n80k16<T>(e, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    wgmma_wait<1>();
    Expect(d[39] == 0 && std::isnan(e[39]), "the first of two");
    wgmma_wait<0>();
    Expect(e[39] == 0, "the second of two");
  });
  ExpectRefused(128, "written too early: a wgmma of warp", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    if (Lane() / 32 == 1) store_shared_4(b_at, 1);
    wgmma_wait<0>();
  });
  // Each warp waits for itself alone.
  ExpectRefused(128, "written too early: a wgmma of warp", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    wgmma_wait<0>();
    if (Lane() == 32) store_shared_4(b_at, 1);
  });
  RunLanes(128, [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    wgmma_wait<0>();
    sync_block();
    if (Lane() == 32) store_shared_4(b_at, 1);
  });
  // Nobody says that a warp reads its own rows of a alone.
  ExpectRefused(128, "written too early: a wgmma of warp", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
    wgmma_commit();
    wgmma_wait<0>();
    if (Lane() % 32 == 3) store_shared_4(a_at + Lane() / 32 * 2048, 1);
  });
  ExpectRefused(128, "must be the same in the whole warpgroup", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), Lane() == 99);
  });
  ExpectRefused(128, "out of bounds", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(kBase + 64 * 1024 - 1024), descriptor(b_at), false);
  });
  ExpectRefused(128, "only swizzled matrices", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, make_descriptor(Low(a_at, 16), 64), descriptor(b_at), false);
  });
  ExpectRefused(128, "must begin in the first row", [&] {
    float d[40];
    ready();
    wgmma_m64n80k16<T>(d, descriptor(a_at + 128), descriptor(b_at), false);
  });
  ExpectRefused(128, "wait for wgmma", [&] {
    float d[40];
    ready();
    if (Lane() / 32 == 2) return;
    wgmma_m64n80k16<T>(d, descriptor(a_at), descriptor(b_at), false);
  });
}

const std::map<std::string, void (*)()> kTests = {
    {"rounding", Rounding},          {"functions", Functions}, {"shuffles", Shuffles},
    {"barriers", Barriers},          {"registers", Registers}, {"shared_memory", SharedMemory},
    {"stmatrix", Stmatrix},          {"copies", Copies},       {"mbarriers", MBarriers},
    {"scores", Scores},              {"values", Values},       {"product_rules", ProductRules},
};

}  // namespace

}  // namespace stal::cuda

int main(int count, char** arguments) {
  using stal::cuda::kTests;
  if (count == 1) {
    for (const auto& [name, run] : kTests) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = kTests.find(arguments[1]);
  if (found == kTests.end()) {
    std::fprintf(stderr, "instructions: there is no test %s\n", arguments[1]);
    return 2;
  }
  try {
    found->second();
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", arguments[1], error.what());
    return 1;
  }
  return 0;
}
