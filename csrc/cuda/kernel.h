// Blended attention, forward, for Hopper (sm_90a):
//
//   out[b,h,n,:] = sum_e weight[e,n] * softmax_l(scale * q[b,h,n,:] . k[e,h,l,:]) @ v[e,h,l,:]
//
// over the entries e of element b. float16 and bfloat16, at most 80 keys, head_dim 40, 64, 80, 128
// and 160, any number of entries. What runs in an emulator on the CPU is tested; nothing here has
// run on a GPU, and all that is said of speed is predicted.
//
// Grid: a block for each multiprocessor. The work is units, (element, head, tile of 64 rows), and a
// block has consecutive ones: keys and values of a head are loaded once and stay.
//
// Block: kConsumers warpgroups compute, one loads. Consumers take whichever tile is next, so that
// regions, which make tiles cheap or dear, do not leave one waiting for another. A grid that is so
// small that a block has one tile splits its entries among the warpgroups instead, which then add
// up in a fixed order.
//
// Loading warp: every kLoaders-th tile is its own. It copies the rows of q, looks up weights and
// regions, and says which entries exist at any of the rows. Of each entry it copies a share of keys
// and values. Copies are cp.async, swizzled as wgmma wants them, zero beyond the last key and row.
//
// Computing warpgroup: a tile of 64 rows, 16 for each warp. For each entry that exists there
//
//   scores (64, 80)  = q k^T            wgmma, both from shared memory: 40 registers a thread
//   pairs  (64, 80)  = exp2(scale * (scores - their maximum))  rounded: 20 registers
//   product (64, d)  = pairs v          wgmma, pairs from registers: d / 2 registers
//   total           += weight / sum * product, where the prompt exists: d / 2 registers
//
// The addition is predicated, not multiplied by 0: what an absent prompt's keys and values hold,
// NaN too, reaches nothing. A thread holds columns 8 j + 2 (lane % 4) and the next one of rows
// lane / 4 and lane / 4 + 8 of its warp's 16, of scores, product and total alike.
//
// Shared memory: slots for keys and values, a ring of stages for tiles of q with their weights, row
// numbers and masks; out leaves by way of the stage its q came in. At d 64: 8 slots of 20 KB, 6
// stages of 10 KB.
//
// mbarriers, each counted by phases: a stage is full (its loading warp arrives; two in turn, see
// kLap) and empty (the warps that read it), a slot is full (all loading warps) and empty (all
// computing warps, each when it takes a tile of a later residence).
//
// Did not pay, counted in machine code: the next entry's scores issued before this one's softmax
// (a second set of scores: spills at d 64 and 128); exp2 of two 16-bit numbers at once (two
// instructions on sm_90); exp2 as a polynomial (from d 64 on there is no issue slot left for it).
// Not taken: weight / sum multiplied into pairs, so that products add up in total by themselves. It
// is 40 multiplications instead of d / 2 additions, but 0 times a NaN of an absent prompt would
// reach total. Nor TMA: keys and values load once, and cp.async takes any stride.
//
// Would change:
//   128 keys          scores are 64 registers and a slot 1.6 times as large: 2 consumers from d 64
//                     on. Beyond 128 keys the maximum and the sum are carried from tile to tile.
//   dq and dweight    a second tile, dout, in each stage; dout v^T with v as it lies (K-major);
//                     dq += (weight * A * (dout v^T - r)) k with k as it lies (MN-major), straight
//                     into total. r goes to (heads, entries, seqlen_q) and is summed over heads
//                     afterwards, in order.
//   sm_100            accumulators in tensor memory, tiles of 128 rows, one thread that issues;
//                     the walk, the loading warps and the layouts stay.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/params.h"
#include "cuda/ptx.h"
#include "cuda/traits.h"

namespace stal::cuda {

// Weights in shared memory: -0 says that the prompt does not exist at this row. A weight that is
// -0 is stored as 0.
constexpr uint32_t kAbsent = 0x80000000u;

STAL_DEVICE int smaller(int x, int y) { return x < y ? x : y; }

// Where a chunk of 16 bytes lies in a panel. Its number is xored with bits of the row, so that
// neither the chunks of a row nor those of a column meet in one bank.
template <typename X>
STAL_DEVICE constexpr uint32_t chunk_offset(int row, int chunk) {
  const int swizzled = X::kChunks == 8 ? chunk ^ (row & 7) : chunk ^ (row >> 2 & 1);
  return static_cast<uint32_t>(row * X::kRowBytes + swizzled * 16);
}

// Groups of chunks, see Traits, in rows of a matrix.
template <typename X>
STAL_DEVICE constexpr int groups_of(int rows) {
  return rows / X::kGroupRows * X::kPanels;
}

// The mbarrier that says that an item has come, from the start of shared memory.
template <typename X>
STAL_DEVICE constexpr int tile_full(int item) {
  return X::kTileFullAt + item % X::kLap * 8;
}

// ---- the work of a block, in the order of all its warps ----

// A residence: some entries of an element, whose keys and values lie in shared memory, and the
// tiles that meet them meanwhile. A tile that meets them is an item; items are numbered through the
// whole block, and so are the slots that entries take.
//
// An element that is not crowded is one residence for each head. A crowded one is a residence for
// each kCrowdedEntries entries, one after the other, and again for the next kConsumers tiles.
template <int HeadDim>
struct Walk {
  using X = Traits<HeadDim>;

  int unit, last;  // of the block's units, those that no residence has begun with
  // Warpgroups take items in turn, since their accumulators live through all residences of a tile.
  // Where no element is crowded they take whichever is next.
  bool dealt;

  // Of the residence:
  int begin = 0, end = 0;      // its items
  int first_slot = 0;          // the number of its first entry's slot
  int first = 0, entries = 0;  // its entries, of those of the element
  int element_entries = 0;
  int element_first = 0;  // ragged: the first entry of the element
  int batch = 0, head = 0;
  int tile = 0, tiles = 0;  // the row tiles of items begin, begin + 1 ...; none of items beyond

  // Of this block; no residence yet.
  STAL_DEVICE explicit Walk(const ForwardParams& p) {
    const int64_t units = p.units;
    unit = static_cast<int>(units * static_cast<int>(blockIdx.x) / static_cast<int>(gridDim.x));
    last = static_cast<int>(units * (static_cast<int>(blockIdx.x) + 1) /
                            static_cast<int>(gridDim.x));
    dealt = p.prompts > X::kEntries;
    if (p.offsets) {
      dealt = false;
      for (int first_b = 0; first_b < p.batch && !dealt; first_b += 32) {
        const int b = smaller(first_b + static_cast<int>(threadIdx.x) % 32, p.batch - 1);
        const int count = load_global(p.offsets + b + 1) - load_global(p.offsets + b);
        dealt = shuffle(ballot(count > X::kEntries), 0) != 0;
      }
    }
    if (p.split) dealt = false;
  }

  // Steps to the next residence; false: there is none.
  STAL_DEVICE bool next(const ForwardParams& p) {
    begin = end;
    first_slot += entries;
    first += entries;
    entries = 0;
    if (first >= element_entries) {
      if (unit == last) return false;
      const int matrix = unit / p.row_tiles;
      tile = unit - matrix * p.row_tiles;
      batch = matrix / p.heads;
      head = matrix - batch * p.heads;
      tiles = smaller(p.row_tiles - tile, last - unit);
      element_entries = p.prompts;
      if (p.offsets) {
        element_first = shuffle(load_global(p.offsets + batch), 0);
        element_entries = shuffle(load_global(p.offsets + batch + 1), 0) - element_first;
        // Nobody has looked at offsets: with those that descend a block must end, too.
        if (element_entries < 0) element_entries = 0;
      }
      if (element_entries > X::kEntries) tiles = smaller(tiles, X::kConsumers);
      unit += tiles;
      first = 0;
    }
    const bool crowded = element_entries > X::kEntries;
    entries = smaller(element_entries - first, crowded ? X::kCrowdedEntries : X::kEntries);
    const int turns = (tiles + X::kConsumers - 1) / X::kConsumers;
    end = begin + (dealt ? turns * X::kConsumers : tiles);
    return true;
  }

  STAL_DEVICE bool last_of_tile() const { return first + entries >= element_entries; }
};

// ---- loading warps ----

// The rows of a tile that a lane looks after, -1 where there is none.
struct LaneRows {
  int of[2];
};

template <typename T, int HeadDim>
struct Loader {
  using X = Traits<HeadDim>;

  const ForwardParams& p;
  Walk<HeadDim> walk;
  uint32_t shared;
  int loader, lane;

  // Which chunk of a matrix a lane copies: group `group` of its groups.
  int group_row, group_chunk;

  STAL_DEVICE Loader(const ForwardParams& params, uint32_t shared_begin)
      : p(params), walk(params), shared(shared_begin) {
    loader = shuffle(static_cast<int>(threadIdx.x) % kWarpgroup / 32, 0);
    lane = static_cast<int>(threadIdx.x) % 32;
    group_row = lane % 8 / X::kChunks;
    group_chunk = lane % X::kChunks;
  }

  STAL_DEVICE void run() {
    if (loader >= X::kLoaders) return;
    while (walk.next(p)) {
      int item = walk.begin + (loader - walk.begin % X::kLoaders + X::kLoaders) % X::kLoaders;
      uint32_t present = 0;
      bool copied = false;  // the residence's entries
      do {
        // The first item comes before keys and values, which may have to wait for room: consumers
        // learn from items that others leave room.
        const bool mine = item < walk.end;
        LaneRows rows = {};
        if (mine) rows = copy_tile(item);
        if (!copied) present = copy_entries();
        if (mine) {
          describe_tile(item, rows, present);
          wait_for_all_but(copied ? 0 : walk.entries);
          hand_over(tile_full<X>(item));
        }
        if (!copied) hand_over_entries(present);
        copied = true;
        item += X::kLoaders;
      } while (item < walk.end);
    }
  }

  // What this warp wrote or copied is seen by products of whoever waits for the barrier.
  STAL_DEVICE void hand_over(int barrier) {
    fence_proxy_async();
    sync_warp();
    if (lane == 0) mbarrier_arrive(shared + barrier);
  }

  // A row tile of q, and the numbers of its rows.
  STAL_DEVICE LaneRows copy_tile(int item) {
    const int stage = item % X::kStages;
    if (item >= X::kStages) {
      // That the item which lay here has come says that the one before it has been left, so that
      // the second wait knows which phase it waits for.
      const int before = item - X::kStages;
      mbarrier_wait(shared + tile_full<X>(before), before / X::kLap & 1);
      mbarrier_wait(shared + X::kTileEmptyAt + stage * 8, before / X::kStages & 1);
    }
    const int within = item - walk.begin;
    const uint32_t rows_at = shared + X::kRowsAt + stage * X::kRowsBytes;
    LaneRows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = (walk.tile + within) * kTileRows + lane + 32 * i;
      int row = within < walk.tiles && place < p.seqlen_q ? place : -1;
      if (p.order && row >= 0) {
        row = load_global(p.order + walk.batch * p.order_batch + place * p.order_row);
      }
      rows.of[i] = row;
      store_shared_4(rows_at + (lane + 32 * i) * 4, static_cast<uint32_t>(row));
    }
    sync_warp();
    const char* from =
        p.q + walk.batch * p.q_strides.batch + walk.head * p.q_strides.head + group_chunk * 16;
    const uint32_t to = shared + X::kTilesAt + stage * X::kTileBytes;
#pragma unroll 2
    for (int i = 0; i < groups_of<X>(kTileRows) / 4; ++i) {
      const int group = 4 * i + lane / 8, panel = group % X::kPanels;
      const int r = group / X::kPanels * X::kGroupRows + group_row;
      const int row = static_cast<int>(load_shared_4(rows_at + r * 4));
      const bool valid = row >= 0 && inside(panel);
      const int64_t offset = valid ? row * p.q_strides.row + panel * X::kRowBytes : 0;
      cp_async_16(to + panel * (kTileRows * X::kRowBytes) + chunk_offset<X>(r, group_chunk),
                  from + offset, valid);
    }
    cp_async_commit();
    return rows;
  }

  // Whether this lane's chunk of a panel is within head_dim.
  STAL_DEVICE bool inside(int panel) const {
    return !X::kOnes || panel * X::kPanelColumns + group_chunk * 8 < HeadDim;
  }

  // The weights of a tile's rows, and which entries exist at any of them, of those `present`.
  STAL_DEVICE void describe_tile(int item, const LaneRows& rows, uint32_t present) {
    const int stage = item % X::kStages;
    const uint32_t weights_at = shared + X::kWeightsAt + stage * X::kWeightsBytes + lane * 4;
    uint32_t met = present;
    if (p.tiles && walk.element_entries <= 64) {
      const int words = (p.seqlen_q + 31) / 32, word = (walk.tile + item - walk.begin) * 2;
      const int64_t* of_element = p.tiles + static_cast<int64_t>(walk.batch) * words;
      int64_t bits = 0;
      if (word < words) bits = load_global(of_element + word);
      if (word + 1 < words) bits |= load_global(of_element + word + 1);
      met &= static_cast<uint32_t>(static_cast<uint64_t>(bits) >> walk.first);
    }
    const int64_t entry = walk.element_first + walk.first;
    const float* weight = p.weight + walk.batch * p.weight_strides.batch +
                          entry * p.weight_strides.prompt;
    const uint8_t* region = p.region;
    if (region) {
      region += walk.batch * p.region_strides.batch + entry * p.region_strides.prompt;
    }
    uint32_t mask = 0;
    constexpr int kTogether = X::kTogether;
    for (int e = 0; e < walk.entries; e += kTogether) {
      float w[kTogether][2];
      bool exists[kTogether][2];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t row = rows.of[i];
          w[j][i] = 0;
          exists[j][i] = row >= 0 && (met >> (e + j) & 1);
          if (exists[j][i]) {
            w[j][i] = load_global(weight + (e + j) * p.weight_strides.prompt +
                                  row * p.weight_strides.row);
            if (region) {
              exists[j][i] = load_global(region + (e + j) * p.region_strides.prompt +
                                         row * p.region_strides.row) != 0;
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (!(met >> (e + j) & 1)) continue;
        if (ballot(exists[j][0] || exists[j][1])) mask |= 1u << (e + j);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // The sum with 0 makes 0 of -0.
          const uint32_t bits = exists[j][i] ? bits_of(w[j][i] + 0.0f) : kAbsent;
          store_shared_4(weights_at + ((e + j) * kTileRows + 32 * i) * 4, bits);
        }
      }
    }
    if (lane == 0) store_shared_4(shared + X::kMasksAt + stage * 4, mask);
  }

  // The number of the row of k and v that entry e of the residence reads.
  STAL_DEVICE int64_t row_of_table(int e) const {
    return p.prompt_ids ? load_global(p.prompt_ids + walk.element_first + walk.first + e)
                        : walk.first + e;
  }
  STAL_DEVICE int keys_of(int64_t id) const {
    return p.key_lengths ? smaller(load_global(p.key_lengths + id), p.seqlen_k) : p.seqlen_k;
  }

  // This loader's share of keys and values, a group of copies an entry. Returns which of the
  // entries have keys at all, a bit each.
  STAL_DEVICE uint32_t copy_entries() {
    uint32_t present = 0;
    for (int e = 0; e < walk.entries; ++e) {
      const int number = walk.first_slot + e, slot = number % X::kSlots, round = number / X::kSlots;
      const int64_t id = row_of_table(e);
      const int keys = keys_of(id);
      if (round > 0) mbarrier_wait(shared + X::kSlotEmptyAt + slot * 8, (round - 1) & 1);
      if (keys > 0) {
        present |= 1u << e;
        const uint32_t to = shared + X::kSlotsAt + slot * X::kSlotBytes;
        copy_matrix(to, matrix(p.k, p.k_strides, id), p.k_strides.row, keys, false);
        copy_matrix(to + X::kMatrixBytes, matrix(p.v, p.v_strides, id), p.v_strides.row, keys,
                    true);
      }
      if (loader == 0 && lane == 0) {
        store_shared_4(shared + X::kLengthsAt + slot * 4, static_cast<uint32_t>(keys));
      }
      cp_async_commit();
    }
    return present;
  }

  STAL_DEVICE const char* matrix(const char* data, const Strides& strides, int64_t id) const {
    return data + walk.batch * strides.batch + id * strides.prompt + walk.head * strides.head;
  }

  // Zeros beyond the last key and beyond head_dim; ones in column head_dim of `values`.
  STAL_DEVICE void copy_matrix(uint32_t to, const char* from, int64_t stride, int keys,
                               bool values) {
    from += group_chunk * 16;
#pragma unroll 2
    for (int i = loader; i < groups_of<X>(kKeys) / 4; i += X::kLoaders) {
      const int group = 4 * i + lane / 8, panel = group % X::kPanels;
      const int row = group / X::kPanels * X::kGroupRows + group_row;
      const uint32_t chunk = matrix_chunk(to, panel, row);
      if (X::kOnes && values && !inside(panel)) {
        store_shared_16(chunk, {to_pairs<T>(1.0f, 0.0f), 0, 0, 0});
        continue;
      }
      const bool valid = row < keys && inside(panel);
      const int64_t offset = valid ? row * stride + panel * X::kRowBytes : 0;
      cp_async_16(chunk, from + offset, valid);
    }
  }

  STAL_DEVICE uint32_t matrix_chunk(uint32_t matrix, int panel, int row) const {
    return matrix + panel * (kKeys * X::kRowBytes) + chunk_offset<X>(row, group_chunk);
  }

  // Entry by entry, as they arrive.
  STAL_DEVICE void hand_over_entries(uint32_t present) {
    for (int e = 0; e < walk.entries; ++e) {
      const int slot = (walk.first_slot + e) % X::kSlots;
      wait_for_all_but(walk.entries - 1 - e);
      if (p.flip && (present >> e & 1)) flip_keys(shared + X::kSlotsAt + slot * X::kSlotBytes);
      hand_over(X::kSlotFullAt + slot * 8);
    }
  }

  STAL_DEVICE void wait_for_all_but(int groups) {
    switch (groups) {
      case 0: return cp_async_wait<0>();
      case 1: return cp_async_wait<1>();
      case 2: return cp_async_wait<2>();
      case 3: return cp_async_wait<3>();
      case 4: return cp_async_wait<4>();
      case 5: return cp_async_wait<5>();
      case 6: return cp_async_wait<6>();
      case 7: return cp_async_wait<7>();
      default: return cp_async_wait<8>();
    }
  }

  // Of the chunks that this lane copied.
  STAL_DEVICE void flip_keys(uint32_t keys) {
    for (int i = loader; i < groups_of<X>(kKeys) / 4; i += X::kLoaders) {
      const int group = 4 * i + lane / 8;
      const uint32_t chunk =
          matrix_chunk(keys, group % X::kPanels, group / X::kPanels * X::kGroupRows + group_row);
      const Words x = load_shared_16(chunk);
      store_shared_16(chunk, {x.x ^ p.flip, x.y ^ p.flip, x.z ^ p.flip, x.w ^ p.flip});
    }
  }
};

// ---- computing warpgroups ----

template <typename T, int HeadDim>
struct Consumer {
  using X = Traits<HeadDim>;

  static constexpr int kTotal = HeadDim / 2;         // registers of a row tile's result
  static constexpr int kPart = X::kPartColumns / 2;  // ... of a part of one product

  const ForwardParams& p;
  Walk<HeadDim> walk;
  uint32_t shared;
  int warpgroup, warp, lane;
  uint32_t seen = 0;  // entries of the residence that this warp knows to have arrived
  float total[kTotal];

  STAL_DEVICE Consumer(const ForwardParams& params, uint32_t shared_begin)
      : p(params), walk(params), shared(shared_begin) {
    warpgroup = shuffle(static_cast<int>(threadIdx.x) / kWarpgroup, 0);
    warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
  }

  STAL_DEVICE void run() {
    int item = p.split ? 0 : warpgroup;
    for (int turn = 1; step_to(item); ++turn) {
      const int stage = item % X::kStages;
      mbarrier_wait(shared + tile_full<X>(item), item / X::kLap & 1);
      if (walk.first == 0) {
#pragma unroll
        for (int i = 0; i < kTotal; ++i) total[i] = 0;
      }
      uint32_t mask = load_shared_4(shared + X::kMasksAt + stage * 4);
      if (p.split) mask &= mine();
      add_entries(stage, mask);
      if (p.split && walk.last_of_tile()) add_shares();
      const bool takes = !p.split && !walk.dealt;
      if (takes) take(turn);
      // Of the warpgroup: its next item is known, and none of its products reads q any more.
      named_barrier(1 + warpgroup, kWarpgroup);
      const int next = takes ? taken(turn) : item + (p.split ? 1 : X::kConsumers);
      if (walk.last_of_tile() && (!p.split || warpgroup == 0)) store(stage);
      sync_warp();
      if (lane == 0) mbarrier_arrive(shared + X::kTileEmptyAt + stage * 8);
      item = next;
    }
  }

  // Where warpgroups share a tile: every kConsumers-th entry of the element, as bits of those in
  // the residence.
  STAL_DEVICE uint32_t mine() const {
    constexpr uint32_t kEvery = X::kConsumers == 3 ? 0x49249249u : 0x55555555u;
    return kEvery << (warpgroup + X::kConsumers - walk.first % X::kConsumers) % X::kConsumers;
  }

  // To the residence of an item; false: there is none. Slots that are left behind are free for
  // others when every consumer has left them.
  STAL_DEVICE bool step_to(int item) {
    while (item >= walk.end) {
      for (int e = 0; e < walk.entries; ++e) {
        const int number = walk.first_slot + e, slot = number % X::kSlots;
        // Nobody leaves what has not come, so that no phase passes unseen.
        mbarrier_wait(shared + X::kSlotFullAt + slot * 8, number / X::kSlots & 1);
        sync_warp();
        if (lane == 0) mbarrier_arrive(shared + X::kSlotEmptyAt + slot * 8);
      }
      seen = 0;
      if (!walk.next(p)) return false;
    }
    return true;
  }

  // The first item that nobody has taken, for the warpgroup; twice as much room as it needs keeps
  // it from being overwritten before all its warps have read it.
  STAL_DEVICE void take(int turn) {
    if (threadIdx.x % kWarpgroup == 0) {
      store_shared_4(taken_at(turn), atomic_add_shared(shared + X::kNextAt, 1));
    }
  }
  STAL_DEVICE int taken(int turn) const {
    return shuffle(static_cast<int>(load_shared_4(taken_at(turn))), 0);
  }
  STAL_DEVICE uint32_t taken_at(int turn) const {
    return shared + X::kTakenAt + (2 * warpgroup + (turn & 1)) * 4;
  }

  // total += weight * softmax(scale * q k^T) v, of the entries in the mask.
  STAL_DEVICE void add_entries(int stage, uint32_t mask) {
    // All lanes have the same, and the shuffles tell the compiler so, which then computes
    // descriptors in uniform registers.
    mask = shuffle(mask, 0);
    const uint32_t q = shuffle(
        (shared + X::kTilesAt + stage * X::kTileBytes) / 16 + X::kLeadingOfRows, 0);
    const uint32_t slots = shuffle((shared + X::kSlotsAt) / 16, 0);
    const uint32_t weights =
        shared + X::kWeightsAt + stage * X::kWeightsBytes + (warp * 16 + lane / 4) * 4;
    const int first_slot = shuffle(walk.first_slot % X::kSlots, 0);
    const int round = shuffle(walk.first_slot / X::kSlots, 0);
    while (mask) {
      const int e = lowest_bit(mask);
      mask &= mask - 1;
      const bool wraps = first_slot + e >= X::kSlots;
      const int slot = first_slot + e - (wraps ? X::kSlots : 0);
      if (!(seen >> e & 1)) {
        mbarrier_wait(shared + X::kSlotFullAt + slot * 8, (round + wraps) & 1);
        seen |= 1u << e;
      }
      const uint32_t keys = slots + slot * (X::kSlotBytes / 16);
      float scores[kKeys / 2];
      multiply_keys(scores, q, keys + X::kLeadingOfRows);
      const int length = static_cast<int>(load_shared_4(shared + X::kLengthsAt + slot * 4));
      const float w[2] = {load_shared_float(weights + e * (kTileRows * 4)),
                          load_shared_float(weights + e * (kTileRows * 4) + 8 * 4)};
      wgmma_wait<0>();
      wgmma_pin(scores);
      mask_keys(scores, length);
      uint32_t pairs[kKeys / 16][4];
      float sums[2];
      softmax(scores, pairs, sums);
      multiply_values(pairs, keys + X::kMatrixBytes / 16 + X::kLeadingOfValues, w, sums);
    }
  }

  STAL_DEVICE void multiply_keys(float (&scores)[kKeys / 2], uint32_t q, uint32_t keys) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < X::kSteps; ++i) {
      const int panel = i / X::kStepsOfPanel, within = i % X::kStepsOfPanel * 32;
      wgmma_m64n80k16<T>(
          scores,
          make_descriptor(q + (panel * kTileRows * X::kRowBytes + within) / 16,
                          X::kDescriptorHigh),
          make_descriptor(keys + (panel * kKeys * X::kRowBytes + within) / 16, X::kDescriptorHigh),
          i > 0);
    }
    wgmma_commit();
  }

  // -inf beyond the last key.
  STAL_DEVICE void mask_keys(float (&scores)[kKeys / 2], int length) {
    const int column = 2 * (lane % 4);
    if (length < kKeys - 7) {
#pragma unroll
      for (int i = 0; i < kKeys / 2 - 4; ++i) {
        if (i / 4 * 8 + column + i % 2 >= length) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int i = kKeys / 2 - 4; i < kKeys / 2; ++i) {
      if (i / 4 * 8 + column + i % 2 >= length) scores[i] = -INFINITY;
    }
  }

  // Of the maximum or the sum of two rows, whose columns four lanes share.
  template <typename Join>
  STAL_DEVICE static void join_lanes(float (&rows)[2], Join join) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) rows[i] = join(rows[i], shuffle_xor(rows[i], distance));
    }
  }

  // Of exponentials, in units of log2: their sum is below 1, so that no product with values of
  // bfloat16 exceeds float32 where out does not. Those of float16 are small.
  static constexpr float kShift = std::is_same_v<T, BFloat16> ? -7 : 0;

  // exp2(scale * (score - the row's maximum) + kShift), as the second product takes them, and their
  // sums, unless that product makes them.
  STAL_DEVICE void softmax(float (&scores)[kKeys / 2], uint32_t (&pairs)[kKeys / 16][4],
                           float (&sums)[2]) {
    // Of even and of odd blocks of columns apart: chains half as long.
    float greatest[2][2];
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 2) {
      const int row = i / 2 % 2, half = i / 4 % 2;
      const float pair = fmaxf(scores[i], scores[i + 1]);
      greatest[half][row] = i < 8 ? pair : fmaxf(greatest[half][row], pair);
    }
    float shift[2];
    for (int i = 0; i < 2; ++i) shift[i] = fmaxf(greatest[0][i], greatest[1][i]);
    join_lanes(shift, [](float x, float y) { return fmaxf(x, y); });
    for (int i = 0; i < 2; ++i) shift[i] = fmaf(shift[i], -p.scale, kShift);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores[i] = exp2_approx(fmaf(scores[i], p.scale, shift[i / 2 % 2]));
    }
    if (!X::kOnes) {
      float halves[2][2];
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 2) {
        const int row = i / 2 % 2, half = i / 4 % 2;
        if (i < 8) {
          halves[half][row] = scores[i] + scores[i + 1];
        } else {
          halves[half][row] += scores[i];
          halves[half][row] += scores[i + 1];
        }
      }
      for (int i = 0; i < 2; ++i) sums[i] = halves[0][i] + halves[1][i];
      join_lanes(sums, [](float x, float y) { return x + y; });
    }
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      pairs[i / 4][i % 4] = to_pairs<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  // total += w / sum * (pairs v), in rows where the prompt exists.
  STAL_DEVICE void multiply_values(uint32_t (&pairs)[kKeys / 16][4], uint32_t values,
                                   const float (&w)[2], float (&sums)[2]) {
    float factor[2];
#pragma unroll
    for (int part = 0; part < X::kParts; ++part) {
      const int panel = part * X::kPartColumns / X::kPanelColumns;
      float product[kPart];
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        wgmma_m64nNk16<T, X::kPartColumns>(
            product, pairs[i],
            make_descriptor(values + (panel * kKeys + 16 * i) * X::kRowBytes / 16,
                            X::kDescriptorHigh),
            i > 0);
      }
      wgmma_commit();
      if (!X::kOnes && part == 0) {
        for (int i = 0; i < 2; ++i) factor[i] = w[i] * reciprocal_approx(sums[i]);
      }
      wgmma_wait<0>();
      wgmma_pin(product);
      if (X::kOnes) {
        // Column head_dim lies in the first lane of the four that share a row.
        for (int i = 0; i < 2; ++i) {
          const float sum = shuffle(product[(kTotal + 2 * i) % kPart], lane & ~3);
          factor[i] = w[i] * reciprocal_approx(sum);
        }
      }
#pragma unroll
      for (int i = 0; i < kPart && part * kPart + i < kTotal; ++i) {
        const int row = i / 2 % 2;
        if (bits_of(w[row]) != kAbsent) {
          float& sum = total[part * kPart + i];
          sum = fmaf(factor[row], product[i], sum);
        }
      }
    }
  }

  // The first warpgroup adds what the others have, in their order. The tile is the only one, so the
  // slots are free when the last keys and values have come and everybody is here.
  STAL_DEVICE void add_shares() {
    constexpr int kBarrier = 1 + X::kConsumers;
    for (int e = 0; e < walk.entries; ++e) {
      const int number = walk.first_slot + e;
      mbarrier_wait(shared + X::kSlotFullAt + number % X::kSlots * 8, number / X::kSlots & 1);
    }
    named_barrier(kBarrier, X::kConsumers * kWarpgroup);
    const uint32_t shares = shared + X::kSlotsAt + (warp * 32 + lane) * 4;
    if (warpgroup > 0) {
#pragma unroll
      for (int i = 0; i < kTotal; ++i) {
        store_shared_float(
            shares + (warpgroup - 1) * X::kShareBytes + i * (kWarpgroup * 4), total[i]);
      }
    }
    named_barrier(kBarrier, X::kConsumers * kWarpgroup);
    if (warpgroup > 0) return;
    for (int share = 0; share < X::kConsumers - 1; ++share) {
#pragma unroll
      for (int i = 0; i < kTotal; ++i) {
        total[i] += load_shared_float(shares + share * X::kShareBytes + i * (kWarpgroup * 4));
      }
    }
  }

  // The warp's 16 rows of the result, by way of its rows of q, which nobody reads any more.
  STAL_DEVICE void store(int stage) {
    const uint32_t tile = shared + X::kTilesAt + stage * X::kTileBytes;
#pragma unroll
    for (int i = 0; i < X::kSteps; ++i) {
      uint32_t matrices[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 8 * i + 2 * j;
        matrices[j] = at < kTotal ? to_pairs<T>(total[at % kTotal], total[(at + 1) % kTotal]) : 0;
      }
      const int chunk = i % X::kStepsOfPanel * 2 + lane / 16;
      stmatrix_x4(tile + i / X::kStepsOfPanel * (kTileRows * X::kRowBytes) +
                      chunk_offset<X>(warp * 16 + lane % 16, chunk),
                  matrices[0], matrices[1], matrices[2], matrices[3]);
    }
    sync_warp();
    char* out = p.out + walk.batch * p.out_strides.batch + walk.head * p.out_strides.head;
    const int group_row = lane % 8 / X::kChunks, chunk = lane % X::kChunks;
#pragma unroll
    for (int i = 0; i < groups_of<X>(16) / 4; ++i) {
      const int group = 4 * i + lane / 8, panel = group % X::kPanels;
      const int r = warp * 16 + group / X::kPanels * X::kGroupRows + group_row;
      const int row =
          static_cast<int>(load_shared_4(shared + X::kRowsAt + stage * X::kRowsBytes + r * 4));
      const int column = panel * X::kPanelColumns + chunk * 8;
      if (row >= 0 && column < HeadDim) {
        store_global_16(out + row * p.out_strides.row + column * 2,
                        load_shared_16(tile + panel * (kTileRows * X::kRowBytes) +
                                       chunk_offset<X>(r, chunk)));
      }
    }
  }
};

template <typename T, int HeadDim>
__global__ void __launch_bounds__(Traits<HeadDim>::kThreads, 1)
    forward(const __grid_constant__ ForwardParams p) {
  using X = Traits<HeadDim>;
  const uint32_t shared = shuffle(dynamic_shared(), 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < X::kLap; ++i) mbarrier_init(shared + X::kTileFullAt + i * 8, 1);
    for (int i = 0; i < X::kStages; ++i) {
      mbarrier_init(shared + X::kTileEmptyAt + i * 8, p.split ? 4 * X::kConsumers : 4);
    }
    for (int i = 0; i < X::kSlots; ++i) {
      mbarrier_init(shared + X::kSlotFullAt + i * 8, X::kLoaders);
      mbarrier_init(shared + X::kSlotEmptyAt + i * 8, 4 * X::kConsumers);
    }
    store_shared_4(shared + X::kNextAt, X::kConsumers);
  }
  sync_block();
  if (shuffle(static_cast<int>(threadIdx.x) / kWarpgroup, 0) == X::kConsumers) {
    set_max_registers_down<X::kLoaderRegisters>();
    Loader<T, HeadDim>(p, shared).run();
  } else {
    set_max_registers_up<X::kConsumerRegisters>();
    Consumer<T, HeadDim>(p, shared).run();
  }
}

}  // namespace stal::cuda
