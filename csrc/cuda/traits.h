// Sizes of the forward kernel for one head_dim: who computes, and what lies where.
#pragma once

#include <cstdint>

namespace stal::cuda {

constexpr int kTileRows = 64;   // rows of q that a warpgroup multiplies at once
constexpr int kKeys = 80;       // of a prompt: 77, and the next multiple of 16
constexpr int kWarpgroup = 128;  // threads

template <int HeadDim>
struct Traits {
  static_assert(HeadDim == 40 || HeadDim == 64 || HeadDim == 80 || HeadDim == 128 ||
                HeadDim == 160);

  // ---- columns ----

  static constexpr int kHeadDim = HeadDim;
  static constexpr int kSteps = (HeadDim + 15) / 16;  // k16 products of Q K^T
  static constexpr int kColumns = 16 * kSteps;        // as they lie in shared memory
  // V has room for a column of ones where head_dim is padded: its product is the row sum.
  static constexpr bool kOnes = kColumns > HeadDim;

  // ---- matrices in shared memory ----
  //
  // A matrix is cut into panels of columns, a row of which is as long as the swizzle of wgmma:
  // 128 bytes, or 32 where 64 columns do not divide the width. Whole panels alone are multiplied.
  static constexpr int kPanelColumns = kColumns % 64 == 0 ? 64 : 16;
  static constexpr int kPanels = kColumns / kPanelColumns;
  static constexpr int kRowBytes = 2 * kPanelColumns;
  static constexpr int kChunks = kRowBytes / 16;  // of a row of a panel
  static constexpr int kStepsOfPanel = kPanelColumns / 16;

  // Descriptors, see ptx.h.
  static constexpr uint32_t kDescriptorHigh =
      8 * kRowBytes / 16 | (kRowBytes == 128 ? 1u : 3u) << 30;
  static constexpr uint32_t kLeadingOfRows = 1u << 16;  // K-major: not used, not 0
  static constexpr uint32_t kLeadingOfValues = static_cast<uint32_t>(kKeys * kRowBytes / 16) << 16;

  // Lanes copy chunks in groups of 8: a row of a panel of 8 chunks, or 4 rows of one of 2. No two
  // lanes of a group meet in a bank, and 4 groups are neighbours in global memory.
  static constexpr int kGroupRows = 8 / kChunks;

  // ---- who computes ----

  static constexpr int kConsumers = HeadDim <= 80 ? 3 : 2;  // warpgroups
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  // Of a thread, multiples of 8. The block begins with 128 for each thread of 4 warpgroups, 168 for
  // each of 3, and its warpgroups share them so.
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 144 : 216;
  static constexpr int kLoaderRegisters = kConsumers == 3 ? 80 : 72;

  // Entries whose weights a loading warp fetches at once, as many as it has registers for.
  static constexpr int kTogether = kConsumers == 3 ? 4 : 2;

  // The second product comes in parts of at most 128 columns, one after the other: at 160 columns
  // the result and an accumulator as large do not fit in registers.
  static constexpr int kParts = kColumns > 128 ? 2 : 1;
  static constexpr int kPartColumns = kColumns / kParts;

  // ---- shared memory ----

  // Slots for keys and values of entries. What an element leaves unused holds those of the next
  // head already.
  static constexpr int kSlots = HeadDim == 40   ? 10
                                : HeadDim == 64 ? 8
                                : HeadDim == 80 ? 6
                                : HeadDim == 128 ? 4
                                                 : 3;
  // Entries of an element that stay where they are for all its tiles. One that has more is crowded:
  // few entries at a time are loaded, anew for every kConsumers tiles.
  static constexpr int kEntries = kSlots < 8 ? kSlots : 8;
  static constexpr int kCrowdedEntries = kSlots / 2;
  static constexpr int kStages = kConsumers == 3 ? 6 : 3;
  // Warps that load; an item is that of warp `item % kLoaders`. Not more than stages: an item would
  // wait for one that waits for keys which its loader has still to load.
  static constexpr int kLoaders = kStages < 4 ? kStages : 4;
  static_assert(kLoaders <= kStages);
  // How far apart two tiles are that share an mbarrier "full". A wait cannot tell a phase from the
  // one before the last, so whoever waits for item i has to know that item i - kLap has come: a
  // loader brought it, and where items are dealt the warpgroup multiplied it. Where they are taken:
  // had it not come, then of its loader's items from there to i - 1, all of them taken, none would
  // have, and a warpgroup has only one such: what it waits for, or took while busy with another.
  static constexpr int kLap = 2 * kStages;
  static_assert(kLap % kLoaders == 0 && kLap % kConsumers == 0);
  static_assert((kConsumers - 1) * kLoaders < kLap);

  static constexpr int kMatrixBytes = kPanels * kKeys * kRowBytes;
  static constexpr int kSlotBytes = 2 * kMatrixBytes;
  static constexpr int kTileBytes = kPanels * kTileRows * kRowBytes;

  // Byte offsets from the start of dynamic shared memory.
  static constexpr int kSlotsAt = 0;
  static constexpr int kTilesAt = kSlotsAt + kSlots * kSlotBytes;
  // Of each stage: the weight of each entry at each row, float32
  static constexpr int kWeightsBytes = kEntries * kTileRows * 4;
  static constexpr int kWeightsAt = kTilesAt + kStages * kTileBytes;
  // ... the number of each row, int32, -1 beyond the last
  static constexpr int kRowsBytes = kTileRows * 4;
  static constexpr int kRowsAt = kWeightsAt + kStages * kWeightsBytes;
  // ... which entries exist at any of its rows, a bit each.
  static constexpr int kMasksAt = kRowsAt + kStages * kRowsBytes;
  // Of each slot: the number of keys.
  static constexpr int kLengthsAt = kMasksAt + kStages * 4;
  // The next tile that nobody has taken, and what each consumer took, this time and the last.
  static constexpr int kNextAt = kLengthsAt + kSlots * 4;
  static constexpr int kTakenAt = kNextAt + 4;
  // mbarriers.
  static constexpr int kBarriersAt = (kTakenAt + kConsumers * 8 + 7) / 8 * 8;
  static constexpr int kTileFullAt = kBarriersAt;
  static constexpr int kTileEmptyAt = kTileFullAt + kLap * 8;
  static constexpr int kSlotFullAt = kTileEmptyAt + kStages * 8;
  static constexpr int kSlotEmptyAt = kSlotFullAt + kSlots * 8;
  static constexpr int kSharedBytes = kSlotEmptyAt + kSlots * 8;

  // Of a tile that warpgroups share: the result of one of them, in slots that are read no more.
  static constexpr int kShareBytes = kTileRows * HeadDim * 4;

  static_assert(kSlotBytes % 1024 == 0 || kRowBytes == 32, "swizzles repeat after 8 rows");
  static_assert(kMatrixBytes % (8 * kRowBytes) == 0 && kTileBytes % (8 * kRowBytes) == 0);
  static_assert(kSharedBytes <= 227 * 1024, "shared memory of a block on sm_90");
  static_assert((kConsumers - 1) * kShareBytes <= kSlots * kSlotBytes);
  static_assert(kConsumers * kConsumerRegisters + kLoaderRegisters <=
                (kConsumers == 3 ? 4 * 128 : 3 * 168));
};

}  // namespace stal::cuda
