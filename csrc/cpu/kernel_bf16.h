// Forward, dq and dweight of bfloat16 tensors with products of pairs (tile.h), and of float32 ones
// where bf16_products allows it: their q, K, V and dout are rounded to bfloat16 as they are packed.
// Included once by each level_*.cpp that multiplies pairs. Other dtypes, and dk and dv, are left to
// kBase.
//
// The order of kernel.h, with rows across vector lanes and scores (keys, rows):
//
//   S   (keys, rows)      = K q^T                      Product, K as it lies in memory
//   P   (keys, rows)      = exp(scale * (S - max))     rounded to pairs of keys, in place of S
//   out (head_dim, rows) += (V^T P) * weight / rowsum  Product, V transposed to pairs of keys
//
// Scores, sums and accumulators are float32. P is rounded before it is divided by its sum, where
// its largest element is a power of two: bfloat16 keeps 8 bits of it whatever the weight is.
#pragma once

#include "cpu/rows.h"
#include "cpu/tile.h"

namespace {

// As Exp2, with a relative error of 3e-6, a 600th of what rounding to bfloat16 adds. The polynomial
// is the minimax fit of 2^f on [0, 1] that is exact at 0.
STAL_INLINE Vec Exp2ForPairs(Vec x, float bits) {
  x -= Set(bits);
  const Vec f = Fraction(x);
  Vec p = Set(0.01342681f);
  p = p * f + Set(0.05224205f);
  p = p * f + Set(0.24128064f);
  p = p * f + Set(0.69304472f);
  p = p * f + Set(1.0f);
  return TimesPower(p, x);
}

// ---- matrices in memory -> pairs ----

// The first `count` floats at p, 8 or 16, rounded to bfloat16; zeros after them.
STAL_INLINE HalfVec RoundFirst(const char* p, int64_t count) {
  return ToHalf((Vec)LoadFirstWords(p, count), DType::kBFloat16);
}

// One row, cut into pieces of a tile's width that lie `step` words apart; zeros fill the last.
STAL_INLINE void CopyPairs(const char* row, DType dtype, int64_t head_dim, int64_t step,
                           uint32_t* out) {
  int64_t c = 0;
  if (dtype == DType::kFloat32) {
    for (; c < head_dim; c += kTile) {
      const HalfVec half = RoundFirst(row + 4 * c, Min(kTile, head_dim - c));
      memcpy(out + c / (2 * kTile) * step + c / 2 % kTile, &half, sizeof(half));
    }
    if (c % (2 * kTile)) memset(out + c / (2 * kTile) * step + kTile / 2, 0, 32);
    return;
  }
  for (; c + 2 * kTile <= head_dim; c += 2 * kTile, out += step) memcpy(out, row + 2 * c, 64);
  if (c < head_dim) StoreWords(out, LoadFirstWords(row + 2 * c, (head_dim - c) / 2));
}

// Rows of a matrix -> tiles (rows, pairs of channels) of tile.h's A, with copies of the last row
// after it.
void PackRowPairs(const char* data, int64_t row_stride, DType dtype, int64_t rows,
                  int64_t head_dim, uint32_t* out) {
  const int64_t tiles = CeilDiv(head_dim, 2 * kTile);
  for (int64_t i = 0; i < RoundUp(rows, kTile); ++i) {
    uint32_t* row = out + i / kTile * tiles * kTileWords + i % kTile * kTile;
    const char* in = data + Min(i, rows - 1) * row_stride * ElementSize(dtype);
    CopyPairs(in, dtype, head_dim, kTileWords, row);
  }
}

// 16 channels of a row from c, one in the low half of each word; zeros after the last channel.
STAL_INLINE UVec LoadHalfWords(const char* row, DType dtype, int64_t c, int64_t head_dim) {
  const int64_t count = Min(kTile, head_dim - c);
  const HalfVec x = dtype == DType::kFloat32
                        ? RoundFirst(row + 4 * c, count)
                        : FirstHalves(LoadFirstWords(row + 2 * c, count / 2));
  return __builtin_convertvector(x, UVec);
}

// The transpose of a matrix -> tiles (channels, pairs of rows); zeros after the last row.
// `scratch` holds two tiles of 16 rows.
void PackColumnPairs(const char* data, int64_t row_stride, DType dtype, int64_t rows,
                     int64_t head_dim, float* scratch, uint32_t* out) {
  const int64_t width = RoundUp(head_dim, kTile);
  const int64_t row_bytes = row_stride * ElementSize(dtype);
  const int64_t tiles = CeilDiv(rows, 2 * kTile);
  float* transposed = scratch + kTile * width;
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t j = 0; j < kTile; ++j) {
      const int64_t row = 2 * (t * kTile + j);
      const char* first = data + row * row_bytes;
      for (int64_t c = 0; c < width; c += kTile) {
        UVec pairs{};
        if (row < rows) pairs = LoadHalfWords(first, dtype, c, head_dim);
        if (row + 1 < rows) pairs |= LoadHalfWords(first + row_bytes, dtype, c, head_dim) << 16;
        Store(scratch + j * width + c, (Vec)pairs);
      }
    }
    Transpose(scratch, 1, width / kTile, transposed);
    for (int64_t c = 0; c < width; c += kTile) {
      memcpy(out + (c / kTile * tiles + t) * kTileWords, transposed + c * kTile, kTileWords * 4);
    }
  }
}

// q or dout of one block as tile.h's B: (pairs of channels, rows). `flip` changes signs.
template <int kVectors>
void LoadPairs(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block,
               int64_t head_dim, bool flip, float* scratch, uint32_t* out) {
  const int64_t width = RoundUp(head_dim / 2, kTile);
  const int64_t row_bytes = tensor.strides.row * ElementSize(dtype);
  const char* data = At(tensor, dtype, RowOffset(tensor, block));
  uint32_t* words = reinterpret_cast<uint32_t*>(scratch);
  for (int64_t i = 0; i < kVectors * kLanes; ++i) {
    if (i < block.rows.count) {
      CopyPairs(data + block.rows[i] * row_bytes, dtype, head_dim, kTile, words + i * width);
    } else {
      memset(words + i * width, 0, width * 4);
    }
  }
  Transpose(scratch, kVectors, width / kTile, reinterpret_cast<float*>(out));
  if (!flip) return;
  for (int64_t i = 0; i < width * kVectors * kLanes; i += kLanes) {
    StoreWords(out + i, LoadWords(out + i) ^ 0x80008000u);
  }
}

// ---- arithmetic on a block ----

// The scores of a block and their maximum over keys. What fills up the packed keys are copies of
// the last one, so their scores may count.
template <int kVectors>
STAL_INLINE void ScoresAndMax(Tiles& tiles, const uint32_t* keys_of_k, int64_t keys,
                              int64_t key_step, int64_t head_dim, const uint32_t* q_t,
                              float* scores, Vec (&max)[kVectors]) {
  for (int r = 0; r < kVectors; ++r) max[r] = Set(-__builtin_inff());
  Product<kVectors>(tiles, keys_of_k, keys, key_step, head_dim / 2, q_t, scores,
                    [&](int64_t, int r, Vec x) { max[r] = Max(x, max[r]); });
}

// value(key, r), rounded, as pairs of keys. Row j of `out` is written after value(2 * j + 1, r).
template <int kVectors, typename Value>
STAL_INLINE void StorePairs(int64_t keys, float* out, const Value& value) {
  constexpr int64_t kRows = kVectors * kLanes;
  uint32_t* words = reinterpret_cast<uint32_t*>(out);
  int64_t pair = 0;
  for (; 2 * pair + 1 < keys; ++pair) {
#pragma GCC unroll 4
    for (int r = 0; r < kVectors; ++r) {
      StoreWords(words + pair * kRows + r * kLanes,
                 Pairs(value(2 * pair, r), value(2 * pair + 1, r)));
    }
  }
  if (keys % 2) {
    for (int r = 0; r < kVectors; ++r) {
      StoreWords(words + pair * kRows + r * kLanes, Pairs(value(2 * pair, r), Vec{}));
    }
    ++pair;
  }
  for (; pair % kDepthUnit; ++pair) memset(words + pair * kRows, 0, kRows * 4);
}

// out (head_dim, rows) += factor * the product of channels and probabilities, where mask is set.
template <int kVectors>
STAL_INLINE void AddProduct(Tiles& tiles, const uint32_t* channels, int64_t head_dim, int64_t keys,
                            const float* pairs, const Vec (&factor)[kVectors],
                            const IVec (&mask)[kVectors], float* scratch, float* out) {
  UseProduct<kVectors>(tiles, channels, head_dim, CeilDiv(keys, 2 * kTile) * kTileWords,
                       CeilDiv(keys, 2), reinterpret_cast<const uint32_t*>(pairs), scratch,
                       [&](int64_t c, int r, Vec x) {
                         float* sum = out + (c * kVectors + r) * kLanes;
                         Store(sum, Load(sum) + And(x * factor[r], mask[r]));
                       });
}

// ---- tasks ----

constexpr int64_t kBlockRows = kPairVectors * kLanes;

// Sizes in words, of one block or of one prompt and head.
struct PairSizes {
  int64_t key_step, channel_step;  // from one tile of rows of A to the next
  int64_t packed_rows, packed_columns;
  int64_t rows, tile, scores;

  explicit PairSizes(const BlendedAttentionParams& p)
      : key_step(CeilDiv(p.head_dim, 2 * kTile) * kTileWords),
        channel_step(CeilDiv(p.seqlen_k, 2 * kTile) * kTileWords),
        packed_rows(CeilDiv(p.seqlen_k, kTile) * key_step),
        packed_columns(CeilDiv(p.head_dim, kTile) * channel_step),
        rows(kBlockRows * RoundUp(p.head_dim / 2, kTile)),
        tile(kBlockRows * RoundUp(p.head_dim, kTile)),
        scores(kBlockRows * RoundUp(p.seqlen_k, 2 * kTile)) {}
};

// Of one prompt and head: K, then V transposed.
int64_t PackedWordsOfPairs(const BlendedAttentionParams& p) {
  const PairSizes sizes(p);
  return sizes.packed_rows + sizes.packed_columns;
}

// What ForwardPairs reads. Each thread has `per_thread` floats of `scratch`, two tiles of 16 rows
// at least.
void PackAllPairs(const Call& call, uint32_t* packs, float* scratch, int64_t per_thread) {
  const BlendedAttentionParams& p = *call.params;
  const PairSizes sizes(p);
  const auto write = [&](const Prompt& prompt, int64_t head, uint32_t* out, int thread) {
    PackRowPairs(At(p.k, p.dtype, prompt.k + head * p.k.strides.head), p.k.strides.row, p.dtype,
                 prompt.length, p.head_dim, out);
    PackColumnPairs(At(p.v, p.dtype, prompt.v + head * p.v.strides.head), p.v.strides.row, p.dtype,
                    prompt.length, p.head_dim, scratch + thread * per_thread,
                    out + sizes.packed_rows);
  };
  ForEachPack(call, packs, sizes.packed_rows + sizes.packed_columns, write);
}

void PackPairs(const Call& call) {
  const int64_t per_thread = 2 * kTile * RoundUp(call.params->head_dim, kTile);
  PackAllPairs(call, nullptr, stal::Scratch(call.threads * per_thread), per_thread);
}

void ForwardPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const PairSizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed = sizes.packed_rows + sizes.packed_columns;
  const int64_t per_thread = sizes.rows + 3 * sizes.tile + sizes.scores;
  const int64_t own = p.packed.data ? 0 : call.num_packed * p.heads * packed;
  float* memory = stal::Scratch(own + call.threads * per_thread);
  uint32_t* packs = reinterpret_cast<uint32_t*>(memory);
  float* tiles_of_threads = memory + own;
  if (!p.packed.data) PackAllPairs(call, packs, tiles_of_threads, per_thread);

  ForEachBlock(call, kBlockRows, [&](RowBlock block, int thread) {
    float* scratch = tiles_of_threads + thread * per_thread;
    uint32_t* q_t = reinterpret_cast<uint32_t*>(scratch + sizes.tile);
    float* out_t = scratch + sizes.tile + sizes.rows;
    float* product = out_t + sizes.tile;
    float* scores = product + sizes.tile;
    Tiles tiles;
    WithVectors<kPairVectors>(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadPairs<kVectors>(p.q, p.dtype, block, p.head_dim, p.scale < 0, scratch, q_t);
      PrefetchRows<false>(p, p.q, block, kBlockRows);
      PrefetchRows<true>(p, p.out, block, kBlockRows);
      memset(out_t, 0, RoundUp(p.head_dim, kTile) * kVectors * kLanes * sizeof(float));
      const Vec log2_scale = Set((p.scale < 0 ? -p.scale : p.scale) * kLog2e);
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        if (prompt.length == 0) continue;
        const Lanes<kVectors> lanes(call, entry, block);
        if (!lanes.any) continue;
        const uint32_t* pack = PackOf(call, packs, packed, prompt, block.head);
        const int64_t keys = prompt.length;
        Vec max[kVectors], sum[kVectors] = {};
        ScoresAndMax<kVectors>(tiles, pack, keys, sizes.key_step, p.head_dim, q_t, scores, max);
        StorePairs<kVectors>(keys, scores, [&](int64_t key, int r) {
          const Vec s = Load(scores + (key * kVectors + r) * kLanes);
          // The difference first: a rounded product of the maximum would be off by more than 1
          // where scores are large, and its fused difference from itself not 0.
          const Vec x = Exp2ForPairs((s - max[r]) * log2_scale, headroom.bits);
          sum[r] += x;
          return x;
        });
        for (int r = 0; r < kVectors; ++r) {
          sum[r] = lanes.weight[r] / (sum[r] * headroom.scale);
        }
        AddProduct<kVectors>(tiles, pack + sizes.packed_rows, p.head_dim, keys, scores, sum,
                             lanes.mask, product, out_t);
      }
      StoreTransposed<kVectors>(p.out, p.dtype, block, p.head_dim, headroom.scale, scratch, out_t);
    });
  });
}

// dq and dweight, as BackwardQ.
void BackwardQPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const PairSizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed = 2 * sizes.packed_rows + (p.dq.data ? sizes.packed_columns : 0);
  const int64_t per_thread = 2 * sizes.rows + 3 * sizes.tile + 2 * sizes.scores;
  const int64_t shares = p.dweight.data ? call.num_entries * p.heads * p.seqlen_q : 0;
  float* memory =
      stal::Scratch(call.num_packed * p.heads * packed + call.threads * per_thread + shares);
  uint32_t* packs = reinterpret_cast<uint32_t*>(memory);
  float* tiles_of_threads = memory + call.num_packed * p.heads * packed;
  float* share = tiles_of_threads + call.threads * per_thread;  // (entries, heads, seqlen_q)

  ForEachPack(call, packs, packed, [&](const Prompt& prompt, int64_t head, auto* out, int thread) {
    const char* k = At(p.k, p.dtype, prompt.k + head * p.k.strides.head);
    const char* v = At(p.v, p.dtype, prompt.v + head * p.v.strides.head);
    PackRowPairs(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, out);
    PackRowPairs(v, p.v.strides.row, p.dtype, prompt.length, p.head_dim, out + sizes.packed_rows);
    if (p.dq.data) {
      PackColumnPairs(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim,
                      tiles_of_threads + thread * per_thread, out + 2 * sizes.packed_rows);
    }
  });

  ForEachBlock(call, kBlockRows, [&](RowBlock block, int thread) {
    float* scratch = tiles_of_threads + thread * per_thread;
    uint32_t* q_t = reinterpret_cast<uint32_t*>(scratch + sizes.tile);
    uint32_t* dout_t = q_t + sizes.rows;
    float* dq_t = scratch + sizes.tile + 2 * sizes.rows;
    float* product = dq_t + sizes.tile;
    float* s = product + sizes.tile;
    float* g = s + sizes.scores;
    Tiles tiles;
    WithVectors<kPairVectors>(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadPairs<kVectors>(p.q, p.dtype, block, p.head_dim, p.scale < 0, scratch, q_t);
      LoadPairs<kVectors>(p.dout, p.dtype, block, p.head_dim, false, scratch, dout_t);
      PrefetchRows<false>(p, p.q, block, kBlockRows);
      PrefetchRows<false>(p, p.dout, block, kBlockRows);
      if (p.dq.data) PrefetchRows<true>(p, p.dq, block, kBlockRows);
      memset(dq_t, 0, RoundUp(p.head_dim, kTile) * kVectors * kLanes * sizeof(float));
      const Vec log2_scale = Set((p.scale < 0 ? -p.scale : p.scale) * kLog2e);
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        const Lanes<kVectors> lanes(call, entry, block);
        const int64_t keys = prompt.length;
        Vec mean[kVectors] = {};  // r = rowsum(A * G)
        if (keys > 0 && lanes.any) {
          const uint32_t* pack = PackOf(call, packs, packed, prompt, block.head);
          Vec max[kVectors], sum[kVectors] = {};
          ScoresAndMax<kVectors>(tiles, pack, keys, sizes.key_step, p.head_dim, q_t, s, max);
          Product<kVectors>(tiles, pack + sizes.packed_rows, keys, sizes.key_step, p.head_dim / 2,
                            dout_t, g);
          for (int64_t key = 0; key < keys; ++key) {
#pragma GCC unroll 4
            for (int r = 0; r < kVectors; ++r) {
              float* score = s + (key * kVectors + r) * kLanes;
              const Vec x = Exp2ForPairs((Load(score) - max[r]) * log2_scale, headroom.bits);
              sum[r] += x;
              mean[r] += x * Load(g + (key * kVectors + r) * kLanes);
              Store(score, x);
            }
          }
          Vec factor[kVectors];
          for (int r = 0; r < kVectors; ++r) {
            mean[r] = And(mean[r] / sum[r], lanes.mask[r]);
            factor[r] = lanes.weight[r] * p.scale / (sum[r] * headroom.scale);
          }
          if (p.dq.data) {
            StorePairs<kVectors>(keys, g, [&](int64_t key, int r) {
              const int64_t i = (key * kVectors + r) * kLanes;
              return Load(s + i) * (Load(g + i) - mean[r]);
            });
            AddProduct<kVectors>(tiles, pack + 2 * sizes.packed_rows, p.head_dim, keys, g, factor,
                                 lanes.mask, product, dq_t);
          }
        }
        if (p.dweight.data) {
          memcpy(share + (e * p.heads + block.head) * p.seqlen_q + block.first, mean,
                 block.rows.count * 4);
        }
      }
      if (p.dq.data) {
        StoreTransposed<kVectors>(p.dq, p.dtype, block, p.head_dim, headroom.scale, scratch, dq_t);
      }
    });
  });
  if (p.dweight.data) SumShares(call, share);
}

STAL_INLINE bool AsPairs(const BlendedAttentionParams& p) {
  return p.dtype == DType::kBFloat16 || (p.dtype == DType::kFloat32 && p.bf16_products);
}

template <const stal::Kernels& kBase>
void ForwardOrBase(const Call& call) {
  (AsPairs(*call.params) ? ForwardPairs : kBase.forward)(call);
}

template <const stal::Kernels& kBase>
void BackwardQOrBase(const Call& call) {
  (AsPairs(*call.params) ? BackwardQPairs : kBase.backward_q)(call);
}

template <const stal::Kernels& kBase>
void BackwardKVOfBase(const Call& call) {
  kBase.backward_kv(call);
}

template <const stal::Kernels& kBase>
int64_t PackedWordsOrBase(const BlendedAttentionParams& p) {
  return (AsPairs(p) ? PackedWordsOfPairs : kBase.packed_words)(p);
}

template <const stal::Kernels& kBase>
void PackOrBase(const Call& call) {
  (AsPairs(*call.params) ? PackPairs : kBase.pack)(call);
}

// Dot and Pairs, for tests: out[i] = Dot(sum[i], a[i], b[i]), rounded[i] = Pairs(sum[i], out[i]).
void DotAll(const float* sum, const uint32_t* a, const uint32_t* b, float* out, uint32_t* rounded) {
  Vec x = Load(sum);
  Store(out, Dot(x, LoadWords(a), LoadWords(b)));
  StoreWords(rounded, Pairs(x, Load(out)));
}

}  // namespace
