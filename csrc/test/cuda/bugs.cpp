// A small kernel with the skeleton of the real one, and the mistakes that it could make.
//
//   bugs NAME     runs it with one of them, in 8 orders of lanes, a line each: what was said, or
//                 "wrong numbers", or "right"
//   bugs          prints the names; the first is no mistake
//
// One warpgroup copies q tile by tile into a ring of two stages, k and v before the first; the
// other computes out = factor (q k^T) v with v twice as wide as a panel, all in small whole
// numbers.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/ptx.h"
#include "test/case.h"

namespace stal::cuda {

namespace {

const std::vector<std::string> kBugs = {
    "none",
    "no_proxy_fence",
    "wrong_parity",
    "wrong_leading_offset",
    "wrong_stride_offset",
    "scores_read_before_wait",
    "values_read_before_wait",
    "no_product_fence",
    "no_product_commit",
    "factor_changed_before_wait",
    "swizzle_off_by_one",
    "lane_skips_shuffle",
    "copy_groups_off_by_one",
    "barrier_count_too_high",
    "barrier_count_too_low",
    "barriers_used_before_made",
    "two_warps_write_one_stage",
    "stage_reused_early",
    "stage_left_early",
    "stage_never_left",
    "no_warpgroup_barrier_before_store",
    "no_warp_barrier_before_load",
    "copy_out_of_bounds",
    "copy_misaligned",
    "store_out_of_bounds",
    "factors_never_written",
    "q_partly_written",
    "out_written_twice",
    "other_barrier_in_half_a_warp",
};

constexpr int kTiles = 4, kStages = 2, kRows = 64, kKeys = 80, kDepth = 64, kColumns = 128;
constexpr int kOnes = 0x3f80;  // 1 in bfloat16

// Byte offsets in shared memory.
constexpr uint32_t kKeysAt = 0;
constexpr uint32_t kValuesAt = kKeysAt + kKeys * 128;
constexpr uint32_t kTilesAt = kValuesAt + 2 * kKeys * 128;  // q, then a panel of out
constexpr uint32_t kTileBytes = kRows * 128;
constexpr uint32_t kFactorsAt = kTilesAt + kStages * kTileBytes;
constexpr uint32_t kFullAt = kFactorsAt + kStages * kRows * 4;
constexpr uint32_t kEmptyAt = kFullAt + kStages * 8;
constexpr uint32_t kSharedBytes = kEmptyAt + kStages * 8;

struct Memory {
  alignas(16) uint16_t q[kTiles * kRows][kDepth];
  alignas(16) uint16_t of_nobody[8];
  alignas(16) uint16_t k[kKeys][kDepth];
  alignas(16) uint16_t v[kKeys][kColumns];
  alignas(16) uint16_t out[kTiles * kRows][kColumns];
};

uint32_t Chunk(uint32_t row, uint32_t chunk) { return row * 128 + (chunk ^ (row % 8)) * 16; }

float Factor(int row) { return row % 2 ? 0.5f : 2.0f; }

void CopyAndHandOver(const Memory& m, const std::string& bug, uint32_t shared) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  for (int tile = 0; tile < kTiles; ++tile) {
    const int stage = tile % kStages, round = tile / kStages;
    if (round > 0 && bug != "stage_reused_early") {
      mbarrier_wait(shared + kEmptyAt + stage * 8, (round - 1) & 1);
    }
    const uint32_t q = shared + kTilesAt + stage * kTileBytes;
    for (int i = thread; i < kRows * 8; i += 128) {
      const int row = i / 8, chunk = i % 8;
      if (bug == "q_partly_written" && chunk == 7 && tile == 0) continue;
      const int swizzled = bug == "swizzle_off_by_one" ? row + 1 : row;
      const uint32_t to = q + row * 128 + (chunk ^ (swizzled % 8)) * 16;
      const uint16_t* from = &m.q[tile * kRows + row][chunk * 8];
      if (bug == "copy_out_of_bounds") from += kDepth;
      if (bug == "copy_misaligned") from += 4;
      cp_async_16(to, from, true);
    }
    for (int i = thread; tile == 0 && i < kKeys * 8; i += 128) {
      cp_async_16(shared + kKeysAt + Chunk(i / 8, i % 8), &m.k[i / 8][i % 8 * 8], true);
    }
    for (int i = thread; tile == 0 && i < kKeys * 16; i += 128) {
      const int row = i / 16, chunk = i % 16;
      cp_async_16(shared + kValuesAt + chunk / 8 * kKeys * 128 + Chunk(row, chunk % 8),
                  &m.v[row][chunk * 8], true);
    }
    cp_async_commit();
    const uint32_t factors = shared + kFactorsAt + stage * kRows * 4;
    const bool writes = bug == "two_warps_write_one_stage" ? thread < 128 : thread < kRows;
    if (writes && bug != "factors_never_written") {
      const int row = thread % kRows;
      store_shared_float(factors + row * 4, Factor(row) + thread / kRows);
    }
    if (bug == "store_out_of_bounds" && thread == 0) {
      store_shared_4(shared + kSharedBytes, 0);
    }
    if (bug == "copy_groups_off_by_one") {
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    if (bug != "no_proxy_fence") fence_proxy_async();
    sync_warp();
    if (lane == 0) mbarrier_arrive(shared + kFullAt + stage * 8);
  }
}

void Multiply(Memory& m, const std::string& bug, uint32_t shared) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  constexpr uint32_t kHigh = 64 | 1u << 30;
  const uint32_t high = bug == "wrong_stride_offset" ? (32 | 1u << 30) : kHigh;
  const uint32_t leading = bug == "wrong_leading_offset" ? kRows * 128 : kKeys * 128;
  for (int tile = 0; tile < kTiles; ++tile) {
    const int stage = tile % kStages, round = tile / kStages;
    const int parity = bug == "wrong_parity" ? (round & 1) ^ 1 : round & 1;
    mbarrier_wait(shared + kFullAt + stage * 8, parity);
    const uint32_t q = shared + kTilesAt + stage * kTileBytes;
    const auto leave = [&] {
      sync_warp();
      if (lane == 0) mbarrier_arrive(shared + kEmptyAt + stage * 8);
    };

    float scores[kKeys / 2];
    wgmma_fence();
    for (int i = 0; i < kDepth / 16; ++i) {
      wgmma_m64n80k16<BFloat16>(scores, make_descriptor((q + i * 32) / 16 | 1 << 16, high),
                                make_descriptor((shared + kKeysAt + i * 32) / 16 | 1 << 16, high),
                                i > 0);
    }
    if (bug != "no_product_commit") wgmma_commit();
    if (bug != "scores_read_before_wait") wgmma_wait<0>();
    if (bug == "stage_left_early") leave();

    const float factor[2] = {
        load_shared_float(shared + kFactorsAt + (stage * kRows + warp * 16 + lane / 4) * 4),
        load_shared_float(shared + kFactorsAt + (stage * kRows + warp * 16 + 8 + lane / 4) * 4)};
    uint32_t pairs[kKeys / 16][4];
    for (int i = 0; i < kKeys / 4; ++i) {
      pairs[i / 4][i % 4] = to_pairs<BFloat16>(scores[2 * i], scores[2 * i + 1]);
    }
    if (bug == "scores_read_before_wait") wgmma_wait<0>();
    float product[kColumns / 2];
    if (bug != "no_product_fence") wgmma_fence();
    for (int i = 0; i < kKeys / 16; ++i) {
      const uint32_t low = (shared + kValuesAt + i * 2048) / 16 | leading / 16 << 16;
      wgmma_m64nNk16<BFloat16, kColumns>(product, pairs[i], make_descriptor(low, kHigh), i > 0);
    }
    wgmma_commit();
    if (bug == "factor_changed_before_wait") pairs[2][1] ^= 1;
    if (bug != "values_read_before_wait") wgmma_wait<0>();
    for (int i = 0; i < kColumns / 2; ++i) product[i] *= factor[i / 2 % 2];
    if (bug == "values_read_before_wait") wgmma_wait<0>();

    // A row is the same in all lanes that hold its factor, so the mean of two of them is it too.
    if (bug != "lane_skips_shuffle" || thread != 77) {
      const float other = shuffle_xor(factor[0], 1);
      product[0] *= 2 * factor[0] / (factor[0] + other);
    }
    if (bug == "other_barrier_in_half_a_warp") named_barrier(lane < 16 ? 1 : 2, 128);

    // Out by way of the tile's own place, a panel after the other, when no product reads q.
    if (bug != "no_warpgroup_barrier_before_store") named_barrier(3, 128);
    for (int panel = 0; panel < 2; ++panel) {
      sync_warp();
      for (int i = 0; i < 4; ++i) {
        uint32_t x[4];
        for (int j = 0; j < 4; ++j) {
          const int at = 32 * panel + 8 * i + 2 * j;
          x[j] = to_pairs<BFloat16>(product[at], product[at + 1]);
        }
        stmatrix_x4(q + Chunk(warp * 16 + lane % 16, 2 * i + lane / 16), x[0], x[1], x[2], x[3]);
      }
      if (bug != "no_warp_barrier_before_load") sync_warp();
      for (int i = 0; i < 4; ++i) {
        const int row = warp * 16 + (32 * i + lane) / 8, chunk = lane % 8;
        const int to = bug == "out_written_twice" ? row : tile * kRows + row;
        store_global_16(&m.out[to][panel * 64 + chunk * 8], load_shared_16(q + Chunk(row, chunk)));
      }
    }
    if (bug != "stage_left_early" && bug != "stage_never_left") leave();
  }
}

void Kernel(Memory& m, const std::string& bug) {
  const uint32_t shared = dynamic_shared();
  if (threadIdx.x == 0) {
    const int more = bug == "barrier_count_too_high" ? 1 : bug == "barrier_count_too_low" ? -1 : 0;
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared + kFullAt + stage * 8, 4 + more);
      mbarrier_init(shared + kEmptyAt + stage * 8, 4);
    }
  }
  if (bug != "barriers_used_before_made") sync_block();
  if (threadIdx.x >= 128) {
    CopyAndHandOver(m, bug, shared);
  } else {
    Multiply(m, bug, shared);
  }
}

// Whole numbers, in bfloat16.
uint16_t Encode(int x) { return emulator::ToBFloat16(static_cast<float>(x)); }
int Decode(uint16_t bits) { return static_cast<int>(emulator::FromBFloat16(bits)); }

std::string RunOnce(const std::string& bug, uint64_t seed) {
  static Memory m;
  test::Random random(seed);
  m = {};
  // One number in each row of q, so that all results are small.
  for (int row = 0; row < kTiles * kRows; ++row) m.q[row][random.Integer(0, kDepth - 1)] = kOnes;
  for (auto& row : m.k) {
    for (uint16_t& x : row) x = Encode(static_cast<int>(random.Integer(-1, 1)));
  }
  for (auto& row : m.v) {
    for (uint16_t& x : row) x = Encode(2 * static_cast<int>(random.Integer(-1, 1)));
  }
  try {
    emulator::Launch({1,
                      256,
                      kSharedBytes,
                      seed,
                      {{m.q, sizeof(m.q), false, "q"},
                       {m.k, sizeof(m.k), false, "k"},
                       {m.v, sizeof(m.v), false, "v"},
                       {m.out, sizeof(m.out), true, "out"}}},
                     [&] { Kernel(m, bug); });
  } catch (const emulator::Error& error) {
    return error.what();
  }
  for (int row = 0; row < kTiles * kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0;
      for (int key = 0; key < kKeys; ++key) {
        int score = 0;
        for (int i = 0; i < kDepth; ++i) score += Decode(m.q[row][i]) * Decode(m.k[key][i]);
        sum += score * Decode(m.v[key][column]);
      }
      sum *= Factor(row % kRows);
      if (m.out[row][column] != emulator::ToBFloat16(sum)) return "wrong numbers";
    }
  }
  return "right";
}

}  // namespace

}  // namespace stal::cuda

int main(int count, char** arguments) {
  using stal::cuda::kBugs;
  if (count == 1) {
    for (const std::string& bug : kBugs) std::printf("%s\n", bug.c_str());
    return 0;
  }
  const std::string bug = arguments[1];
  bool known = false;
  for (const std::string& name : kBugs) known |= name == bug;
  if (!known) {
    std::fprintf(stderr, "bugs: there is no bug %s\n", arguments[1]);
    return 2;
  }
  for (uint64_t seed = 0; seed < 8; ++seed) {
    std::printf("%s\n", stal::cuda::RunOnce(bug, seed).c_str());
  }
  return 0;
}
