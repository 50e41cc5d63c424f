// What the kernels read, and how the host fills it in. Nothing here needs CUDA.
#pragma once

#include <cstdint>

#include "blended_attention.h"
#include "cuda/traits.h"

namespace stal::cuda {

// Strides of q, k, v and out count bytes, those of everything else elements. Entry e of element b
// is row `id` of k and v and row `first + e` of weight and region:
//   dense   first = 0            id = e
//   ragged  first = offsets[b]   id = prompt_ids[first + e]
// Strides of batch are 0 where the ragged form has no such dimension.
struct ForwardParams {
  const char* q;
  const char* k;
  const char* v;
  char* out;
  const float* weight;
  const uint8_t* region;       // null: every prompt exists everywhere
  const int32_t* prompt_ids;   // null: dense
  const int32_t* offsets;      // null: dense
  const int32_t* key_lengths;  // by id; null: seqlen_k
  const int32_t* order;        // null: rows as in memory
  const int64_t* tiles;        // with an order: a word for 32 rows, a bit for an entry

  Strides q_strides, k_strides, v_strides, out_strides, weight_strides, region_strides;
  int64_t order_batch, order_row;

  float scale;       // of scores, in units of log2; its magnitude
  uint32_t flip;     // is xored to keys: their signs, where the scale is negative
  int prompts;       // dense: entries of each element
  int batch;
  int heads;
  int seqlen_q;
  int seqlen_k;
  int row_tiles;     // of an element and head: ceil(seqlen_q / kTileRows)
  int units;         // batch * heads * row_tiles
  // A block has one tile, whose entries are shared among its warpgroups.
  bool split;
};

inline Strides in_bytes(Strides strides) {
  const int64_t size = 2;  // float16 and bfloat16
  return {strides.batch * size, strides.prompt * size, strides.head * size, strides.row * size};
}

inline int64_t row_tiles_of(const BlendedAttentionParams& params) {
  return (params.seqlen_q + kTileRows - 1) / kTileRows;
}

// Why the kernel cannot count this call, or null.
inline const char* too_large(const BlendedAttentionParams& params) {
  const int64_t limit = INT32_MAX - 4 * kTileRows;
  // batch * heads is below 2^62 then.
  if (params.batch > limit || params.heads > limit || params.seqlen_q > limit ||
      params.prompts > limit || params.entries > limit ||
      (params.batch * params.heads > 0 &&
       row_tiles_of(params) > limit / (params.batch * params.heads))) {
    return "batch * heads * ceil(seqlen_q / 64) must be below 2**31 - 256, as must each size be";
  }
  return nullptr;
}

// The grid: a block for each multiprocessor that finds a row tile to work on.
inline int blocks_of(const BlendedAttentionParams& params, int multiprocessors) {
  const int64_t units = params.batch * params.heads * row_tiles_of(params);
  return static_cast<int>(units < multiprocessors ? units : multiprocessors);
}

// For a grid of `blocks`, of a call that is not too large.
inline ForwardParams to_device(const BlendedAttentionParams& params, int blocks) {
  const double log2_e = 1.4426950408889634;
  ForwardParams p = {};
  p.q = static_cast<const char*>(params.q.data);
  p.k = static_cast<const char*>(params.k.data);
  p.v = static_cast<const char*>(params.v.data);
  p.out = static_cast<char*>(params.out.data);
  p.weight = params.weight.data;
  p.region = params.region.data;
  p.prompt_ids = params.ragged ? params.prompt_ids : nullptr;
  p.offsets = params.ragged ? params.offsets : nullptr;
  p.key_lengths = params.ragged ? params.key_lengths : nullptr;
  if (params.region.data && params.order.data && params.tiles) {
    p.order = params.order.data;
    p.tiles = params.tiles;
    p.order_batch = params.order.strides.batch;
    p.order_row = params.order.strides.row;
  }
  p.q_strides = in_bytes(params.q.strides);
  p.k_strides = in_bytes(params.k.strides);
  p.v_strides = in_bytes(params.v.strides);
  p.out_strides = in_bytes(params.out.strides);
  p.weight_strides = params.weight.strides;
  p.region_strides = params.region.strides;
  if (params.ragged) {
    p.k_strides.batch = p.v_strides.batch = 0;
    p.weight_strides.batch = p.region_strides.batch = 0;
  }
  const bool negative = params.scale < 0;
  const double magnitude = (negative ? -params.scale : params.scale) * log2_e;
  // 0 would make NaN of the -inf of keys that are masked; this one makes 0 of every finite score.
  p.scale = magnitude < 0x1p-126 ? 0x1p-126f : static_cast<float>(magnitude);
  p.flip = negative ? 0x80008000u : 0;
  p.prompts = static_cast<int>(params.prompts);
  p.batch = static_cast<int>(params.batch);
  p.heads = static_cast<int>(params.heads);
  p.seqlen_q = static_cast<int>(params.seqlen_q);
  p.seqlen_k = static_cast<int>(params.seqlen_k);
  p.row_tiles = static_cast<int>(row_tiles_of(params));
  p.units = static_cast<int>(params.batch * params.heads * row_tiles_of(params));
  p.split = p.units <= blocks && (params.ragged || params.prompts > 1);
  return p;
}

}  // namespace stal::cuda
