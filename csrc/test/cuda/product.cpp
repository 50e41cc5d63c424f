// Products of warpgroups, wgmma: which bytes a descriptor means, which element a register holds,
// and when a register may be touched.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "block.h"
#include "numbers.h"

namespace stal::emulator {

namespace {

constexpr int kRows = 64, kDepth = 16;

// In a register whose product is under way. A NaN: what reads it too early is not a number.
constexpr uint32_t kPoison = 0x7fe57a1d;

// A lane's registers by element: d[4 j + 2 i + c] is row 8 i + lane / 4 of its warp's 16 and column
// 8 j + 2 (lane % 4) + c; a[2 j + i] holds two such elements of a, of c = 0 and 1.
int RowOf(int lane, int i) { return lane / kWarpLanes * 16 + 8 * i + lane % kWarpLanes / 4; }
int ColumnOf(int lane, int j, int c) { return 8 * j + 2 * (lane % 4) + c; }

struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t width;                   // bytes of a row of the swizzle
};

// "" or why it cannot be one.
std::string Parse(uint64_t bits, Descriptor* descriptor) {
  const auto bytes = [&](int first) {
    return static_cast<uint32_t>(bits >> first & 0x3fff) * 16;
  };
  constexpr uint32_t kWidths[] = {0, 128, 64, 32};
  *descriptor = {bytes(0), bytes(16), bytes(32), kWidths[bits >> 62]};
  if (descriptor->width == 0) return "only swizzled matrices are modelled";
  if (bits >> 49 & 7) return "its base offset must be 0";
  constexpr uint64_t kUsed = 0xc00e3fff3fff3fff;
  if (bits & ~kUsed) return "it has bits outside its fields";
  return "";
}

// Where the 16 bytes lie that a matrix without swizzle has at this address: the three bits above
// the first four are xored with those of the row in a group of 8 rows of 128 bytes; with narrower
// swizzles fewer of them.
uint32_t Swizzle(uint32_t address, uint32_t width) {
  return address ^ ((address >> 7 & (width / 16 - 1)) << 4);
}

// "" or why a K-major matrix cannot begin there: 32 bytes of the first row of a group.
std::string KMajorStart(uint32_t start, uint32_t width) {
  if (start % (8 * width) + 32 <= width) return "";
  return "a K-major matrix must begin in the first row of a group of 8, got " + Hex(start);
}

}  // namespace

// ---- registers ----

Block::InFlight* Block::FindInFlight(Lane* lane, const float* d, int n) {
  for (InFlight& product : lane->products) {
    if (d + n / 2 <= product.d || product.d + product.n / 2 <= d) continue;
    if (product.d == d && product.n == n) return &product;
    Fail("wgmma: its accumulator overlaps that of another one under way, of another shape");
  }
  return nullptr;
}

void Block::CheckRegisters(int index, const InFlight& product) const {
  for (int i = 0; i < product.n / 2; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &product.d[i], sizeof(bits));
    if (bits != kPoison) {
      Fail("wgmma: register " + std::to_string(i) + " of the accumulator of " + LaneName(index) +
           " was written before wgmma.wait_group");
    }
  }
  for (const auto& [registers, values] : product.factors) {
    if (!std::equal(values.begin(), values.end(), registers)) {
      Fail("wgmma: a register of the first factor of " + LaneName(index) +
           " was written before wgmma.wait_group");
    }
  }
}

void Block::FenceProducts() {
  Meet(&RunningWarp().meeting, "wgmma.fence", 0, nullptr, [&](int first, void* const*) {
    for (int i = first; i < first + kWarpLanes; ++i) lanes_[i].registers_fenced = true;
  });
}

void Block::CommitProducts() {
  Meet(&RunningWarp().meeting, "wgmma.commit_group", 0, nullptr, [&](int first, void* const*) {
    for (int i = first; i < first + kWarpLanes; ++i) ++lanes_[i].product_group;
  });
}

void Block::WaitForProducts(int groups) {
  Step();
  Meet(&RunningWarp().meeting, "wgmma.wait_group", groups, nullptr, [&](int first, void* const*) {
    for (int i = first; i < first + kWarpLanes; ++i) {
      Lane& lane = lanes_[i];
      const auto done = [&](const InFlight& product) {
        if (product.group >= lane.product_group - groups) return false;
        CheckRegisters(i, product);
        std::memcpy(product.d, product.values.data(), product.n / 2 * sizeof(float));
        lane.knows.products_done = std::max(lane.knows.products_done, product.moment);
        return true;
      };
      lane.products.erase(std::remove_if(lane.products.begin(), lane.products.end(), done),
                          lane.products.end());
      // What the thread does with its registers from now on, no product has been told of.
      lane.registers_fenced = false;
    }
  });
}

void Block::Multiply(const Product& product) {
  Step();
  Product operand = product;
  Meet(&warpgroups_[lane_ / kWarpgroupLanes], "wgmma", product.n, &operand,
       [&](int first, void* const* operands) { MultiplyAll(first, operands); });
}

// ---- the product ----

void Block::MultiplyAll(int first, void* const* operands) {
  const auto of = [&](int i) -> const Product& { return *static_cast<Product*>(operands[i]); };
  const Product& one = of(0);
  for (int i = 1; i < kWarpgroupLanes; ++i) {
    const Product& other = of(i);
    if (other.a_descriptor != one.a_descriptor || other.b_descriptor != one.b_descriptor ||
        other.accumulate != one.accumulate || (other.a == nullptr) != (one.a == nullptr) ||
        other.b_is_mn_major != one.b_is_mn_major || other.is_bfloat16 != one.is_bfloat16) {
      Fail("wgmma: descriptors and flags must be the same in the whole warpgroup, and those of " +
           LaneName(first + i) + " differ from those of " + LaneName(first));
    }
  }
  if (one.n < 8 || one.n > kMaxColumns || one.n % 8 != 0) {
    Fail("wgmma: n must be a multiple of 8 up to 256, got " + std::to_string(one.n));
  }

  if (grid_.products) grid_.products->push_back(one);

  // What every lane knows to be fenced.
  const int first_warp = first / kWarpLanes, warpgroup = first / kWarpgroupLanes;
  const Clock* last = lanes_[first].knows.fenced.get();
  Clock fenced = *last;
  for (int i = 1; i < kWarpgroupLanes; ++i) {
    const Clock* next = lanes_[first + i].knows.fenced.get();
    if (next != last) fenced.Intersect(*next);
    last = next;
  }
  // Any warp may read any part of both factors.
  std::array<Moment, kMaxWarps> moments = {};
  for (int warp = first_warp; warp < first_warp + 4; ++warp) {
    moments[warp] = ++warps_[warp].products;
  }

  // a by row, b by its k.
  static thread_local std::array<std::array<float, kDepth>, kRows> a;
  static thread_local std::array<std::array<float, kMaxColumns>, kDepth> b;
  const auto number = [&](uint16_t bits) {
    return one.is_bfloat16 ? FromBFloat16(bits) : FromFloat16(bits);
  };
  const auto read = [&](const char* factor, const Descriptor& from, uint32_t offset,
                        std::array<uint16_t, 8>* to) {
    const uint32_t address = Swizzle(from.start + offset, from.width);
    Check(factor, shared_.ReadFactor(address, warpgroup, fenced, moments, to->data()));
  };
  std::array<uint16_t, 8> piece;
  if (one.a == nullptr) {
    Descriptor from;
    Check("wgmma, first factor", Parse(one.a_descriptor, &from));
    Check("wgmma, first factor", KMajorStart(from.start, from.width));
    for (int row = 0; row < kRows; ++row) {
      for (int half = 0; half < 2; ++half) {
        const uint32_t offset = row / 8 * from.stride + row % 8 * from.width + half * 16;
        read("wgmma, first factor", from, offset, &piece);
        for (int i = 0; i < 8; ++i) a[row][half * 8 + i] = number(piece[i]);
      }
    }
  } else {
    for (int lane = 0; lane < kWarpgroupLanes; ++lane) {
      for (int x = 0; x < 4; ++x) {
        for (int c = 0; c < 2; ++c) {
          a[RowOf(lane, x % 2)][ColumnOf(lane, x / 2, c)] =
              number(static_cast<uint16_t>(of(lane).a[x] >> 16 * c));
        }
      }
    }
  }
  Descriptor from;
  Check("wgmma, second factor", Parse(one.b_descriptor, &from));
  if (one.b_is_mn_major) {
    if (from.start % (8 * from.width) != 0) {
      Fail("wgmma, second factor: an MN-major matrix must begin at a whole group of 8 rows, got " +
           Hex(from.start));
    }
    const int pieces_a_row = static_cast<int>(from.width) / 16;
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < one.n; column += 8) {
        const int panel = column / 8 / pieces_a_row;
        const uint32_t offset = panel * from.leading + k / 8 * from.stride + k % 8 * from.width +
                                column / 8 % pieces_a_row * 16;
        read("wgmma, second factor", from, offset, &piece);
        for (int i = 0; i < 8; ++i) b[k][column + i] = number(piece[i]);
      }
    }
  } else {
    Check("wgmma, second factor", KMajorStart(from.start, from.width));
    for (int column = 0; column < one.n; ++column) {
      for (int half = 0; half < 2; ++half) {
        const uint32_t offset = column / 8 * from.stride + column % 8 * from.width + half * 16;
        read("wgmma, second factor", from, offset, &piece);
        for (int i = 0; i < 8; ++i) b[half * 8 + i][column] = number(piece[i]);
      }
    }
  }

  // The products are exact; their sum is rounded once.
  static thread_local std::array<std::array<double, kMaxColumns>, kRows> d;
  for (int row = 0; row < kRows; ++row) {
    std::fill(d[row].begin(), d[row].begin() + one.n, 0.0);
    for (int k = 0; k < kDepth; ++k) {
      const double x = a[row][k];
      for (int column = 0; column < one.n; ++column) d[row][column] += x * b[k][column];
    }
  }

  for (int i = 0; i < kWarpgroupLanes; ++i) {
    const Product& mine = of(i);
    Lane& lane = lanes_[first + i];
    InFlight* product = FindInFlight(&lane, mine.d, mine.n);
    if ((product == nullptr || mine.a != nullptr) && !lane.registers_fenced) {
      Fail("wgmma: no wgmma.fence since the registers of " + LaneName(first + i) +
           " may have been touched");
    }
    if (product == nullptr) {
      lane.products.push_back({mine.d, mine.n, 0, 0, {}, {}});
      product = &lane.products.back();
      std::copy(mine.d, mine.d + mine.n / 2, product->values.begin());
      for (int x = 0; x < mine.n / 2; ++x) std::memcpy(&mine.d[x], &kPoison, sizeof(kPoison));
    } else {
      CheckRegisters(first + i, *product);
    }
    product->group = lane.product_group;
    product->moment = moments[(first + i) / kWarpLanes];
    if (mine.a != nullptr) {
      product->factors.push_back({mine.a, {mine.a[0], mine.a[1], mine.a[2], mine.a[3]}});
    }
    for (int x = 0; x < mine.n / 2; ++x) {
      const double sum = d[RowOf(i, x / 2 % 2)][ColumnOf(i, x / 4, x % 2)];
      float& value = product->values[x];
      value = static_cast<float>(mine.accumulate ? value + sum : sum);
    }
  }
}

}  // namespace stal::emulator
