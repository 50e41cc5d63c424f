// Forward and gradients of bfloat16 tensors with products of pairs (tile.h), and of float32 ones
// where bf16_products allows it: their q, K, V and dout are rounded to bfloat16 as they are packed.
// Included once by each level_*.cpp that multiplies pairs. Other dtypes are left to kBase.
//
// The order of kernel.h, with rows across vector lanes and scores (keys, rows):
//
//   S   (keys, rows)      = K q^T                      Product, K as it lies in memory
//   P   (keys, rows)      = exp(scale * (S - max))     rounded to pairs of keys, in place of S
//   out (head_dim, rows) += (V^T P) * weight / rowsum  Product, V transposed to pairs of keys
//
// Scores, sums and accumulators are float32. P is rounded before it is divided by its sum, where
// its largest element is a power of two: bfloat16 keeps 8 bits of it whatever the weight is. dk and
// dv are sums over rows, so there P and dS are rounded with the weight in them, to pairs of rows.
#pragma once

#include "cpu/gradients.h"
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

// The pairs of 2 * kTile channels of a row from c; zeros after the last channel.
STAL_INLINE UVec LoadPairs(const char* row, DType dtype, int64_t c, int64_t head_dim) {
  const int64_t count = Min(2 * kTile, head_dim - c);
  if (dtype != DType::kFloat32) return LoadFirstWords(row + 2 * c, count / 2);
  const HalfVec low = RoundFirst(row + 4 * c, Min(kTile, count));
  if (count <= kTile) return Join(low, HalfVec{});
  return Join(low, RoundFirst(row + 4 * (c + kTile), count - kTile));
}

// Rows of a matrix -> tiles (rows, pairs of channels) of tile.h's A, with copies of the last row
// after it.
void PackRowPairs(const char* data, int64_t row_stride, DType dtype, int64_t rows,
                  int64_t head_dim, uint32_t* out) {
  const int64_t tiles = CeilDiv(head_dim, 2 * kTile);
  for (int64_t i = 0; i < RoundUp(rows, kTile); ++i) {
    uint32_t* row = out + i / kTile * tiles * kTileWords + i % kTile * kTile;
    const char* in = data + Min(i, rows - 1) * row_stride * ElementSize(dtype);
    for (int64_t t = 0; t < tiles; ++t) {
      StoreWords(row + t * kTileWords, LoadPairs(in, dtype, t * 2 * kTile, head_dim));
    }
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
void PackColumnPairs(const char* data, int64_t row_stride, DType dtype, int64_t rows,
                     int64_t head_dim, uint32_t* out) {
  const int64_t row_bytes = row_stride * ElementSize(dtype);
  const int64_t tiles = CeilDiv(rows, 2 * kTile);
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t c = 0; c < head_dim; c += kTile) {
      Vec x[kTile];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kTile; ++j) {
        const int64_t row = 2 * (t * kTile + j);
        const char* first = data + row * row_bytes;
        UVec pairs{};
        if (row < rows) pairs = LoadHalfWords(first, dtype, c, head_dim);
        if (row + 1 < rows) pairs |= LoadHalfWords(first + row_bytes, dtype, c, head_dim) << 16;
        x[j] = (Vec)pairs;
      }
      TransposeSquare(x);
      uint32_t* tile = out + (c / kTile * tiles + t) * kTileWords;
#pragma GCC unroll 16
      for (int64_t r = 0; r < kTile; ++r) StoreWords(tile + r * kTile, (UVec)x[r]);
    }
  }
}

// q or dout of one block as tile.h's B: (pairs of channels, rows). `flip` changes signs. Rows that
// `present`, where it is given, leaves out are zeros.
template <int kVectors>
void LoadTransposedPairs(const stal::Strided<const void*>& tensor, DType dtype,
                         const RowBlock& block, int64_t head_dim, const uint8_t* present, bool flip,
                         uint32_t* out) {
  const RowAddresses<kVectors> rows(tensor, dtype, block);
  const UVec sign = UVec{} + (flip ? 0x80008000u : 0u);
  for (int v = 0; v < kVectors; ++v) {
    for (int64_t c = 0; c < head_dim; c += 2 * kTile) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        const int row = v * kLanes + r;
        UVec pairs{};
        if (!present || present[row]) pairs = LoadPairs(rows.row[row], dtype, c, head_dim);
        x[r] = (Vec)(pairs ^ sign);
      }
      TransposeSquare(x);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        StoreWords(out + ((c / 2 + r) * kVectors + v) * kLanes, (UVec)x[r]);
      }
    }
  }
}

// q or dout of one block as tile.h's B: (pairs of rows, channels), in panels of kPairVectors
// vectors of channels or fewer, one after the other. Rows that `present` leaves out are zeros.
template <int kVectors>
void LoadPairsOfRows(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block,
                     int64_t head_dim, const uint8_t* present, uint32_t* out) {
  constexpr int64_t kPairs = kVectors * kLanes / 2;
  const int64_t width = RoundUp(head_dim, kTile);
  const int64_t row_bytes = tensor.strides.row * ElementSize(dtype);
  const char* data = At(tensor, dtype, RowOffset(tensor, block));
  const auto load = [&](int64_t i, int64_t c) {
    if (i >= block.rows.count || !present[i]) return UVec{};
    return LoadHalfWords(data + block.rows[i] * row_bytes, dtype, c, head_dim);
  };
  for (int64_t first = 0; first < width; first += kPairVectors * kLanes) {
    const int64_t columns = Min(kPairVectors * kLanes, width - first);
    for (int64_t pair = 0; pair < RoundUp(kPairs, kDepthUnit); ++pair) {
      for (int64_t c = 0; c < columns; c += kLanes, out += kLanes) {
        StoreWords(out, load(2 * pair, first + c) | load(2 * pair + 1, first + c) << 16);
      }
    }
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

// value(key, r), rounded, as tile.h's A: (keys, pairs of rows).
template <int kVectors, typename Value>
STAL_INLINE void StorePairsOfRows(int64_t keys, uint32_t* out, const Value& value) {
  constexpr int64_t kTiles = (kVectors + 1) / 2;
  for (int64_t key = 0; key < keys; ++key) {
    uint32_t* row = out + key / kTile * kTiles * kTileWords + key % kTile * kTile;
    for (int r = 0; r < kVectors; ++r) {
      const HalfVec half = ToHalf(value(key, r), DType::kBFloat16);
      memcpy(row + r / 2 * kTileWords + r % 2 * kTile / 2, &half, sizeof(half));
    }
    if (kVectors % 2) memset(row + (kTiles - 1) * kTileWords + kTile / 2, 0, kTile / 2 * 4);
  }
}

// out (keys, width) += the product of StorePairsOfRows and LoadPairsOfRows.
template <int kVectors>
void AddRowProducts(Tiles& tiles, const uint32_t* pairs, int64_t keys, const uint32_t* rows,
                    int64_t width, float* scratch, float* out) {
  constexpr int64_t kPairs = kVectors * kLanes / 2, kStep = (kVectors + 1) / 2 * kTileWords;
  for (int64_t first = 0; first < width; first += kPairVectors * kLanes) {
    const int64_t columns = Min(kPairVectors * kLanes, width - first);
    WithVectors<kPairVectors>(columns, [&](auto vectors) {
      UseProduct<decltype(vectors)::value>(tiles, pairs, keys, kStep, kPairs, rows, scratch,
                                           [&](int64_t key, int r, Vec x) {
                                             float* sum = out + key * width + first + r * kLanes;
                                             Store(sum, Load(sum) + x);
                                           });
    });
    rows += RoundUp(kPairs, kDepthUnit) * columns;
  }
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

// What ForwardPairs reads of one prompt and head.
void PackKeysAndValuesInPairs(const BlendedAttentionParams& p, const Prompt& prompt, int64_t head,
                              uint32_t* out) {
  PackRowPairs(At(p.k, p.dtype, prompt.k + head * p.k.strides.head), p.k.strides.row, p.dtype,
               prompt.length, p.head_dim, out);
  PackColumnPairs(At(p.v, p.dtype, prompt.v + head * p.v.strides.head), p.v.strides.row, p.dtype,
                  prompt.length, p.head_dim, out + PairSizes(p).packed_rows);
}

void PackPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  ForEachPack<uint32_t>(call, nullptr, PackedWordsOfPairs(p),
                        [&](const Prompt& prompt, int64_t head, uint32_t* out, int) {
                          PackKeysAndValuesInPairs(p, prompt, head, out);
                        });
}

void ForwardPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const PairSizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed = PackedWordsOfPairs(p);
  const int64_t per_thread = sizes.rows + 2 * sizes.tile + sizes.scores;
  float* memory = stal::Scratch(NumPacks(call) * packed + call.threads * per_thread);
  uint32_t* packs = reinterpret_cast<uint32_t*>(memory);
  float* tiles_of_threads = memory + NumPacks(call) * packed;

  const auto write = [&](const Prompt& prompt, int64_t head, uint32_t* out, int) {
    PackKeysAndValuesInPairs(p, prompt, head, out);
  };
  ForEachPackedBlock(call, packs, packed, kBlockRows, write, [&](RowBlock block, int thread) {
    float* scratch = tiles_of_threads + thread * per_thread;
    uint32_t* q_t = reinterpret_cast<uint32_t*>(scratch);
    float* out_t = scratch + sizes.rows;
    float* product = out_t + sizes.tile;
    float* scores = product + sizes.tile;
    Tiles tiles;
    WithVectors<kPairVectors>(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposedPairs<kVectors>(p.q, p.dtype, block, p.head_dim, nullptr, p.scale < 0, q_t);
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
        const uint32_t* pack = PackOf(call, packs, packed, e, block);
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
      StoreTransposed<kVectors>(p.out, p.dtype, block, p.head_dim, headroom.scale, out_t, product);
    });
  });
}

// Scores of q and of dout, and softmax. On return `s` holds 2^-bits exp(scores - max) and `sum` its
// sums; r = rowsum(A * G).
template <int kVectors>
STAL_INLINE void SoftmaxBackward(Tiles& tiles, const uint32_t* keys_of_k, const uint32_t* keys_of_v,
                                 int64_t keys, const BlendedAttentionParams& p, float bits,
                                 const uint32_t* q_t, const uint32_t* dout_t,
                                 const IVec (&mask)[kVectors], float* s, float* g,
                                 Vec (&sum)[kVectors], Vec (&r)[kVectors]) {
  const int64_t key_step = PairSizes(p).key_step;
  const Vec log2_scale = Set((p.scale < 0 ? -p.scale : p.scale) * kLog2e);
  Vec max[kVectors];
  ScoresAndMax<kVectors>(tiles, keys_of_k, keys, key_step, p.head_dim, q_t, s, max);
  Product<kVectors>(tiles, keys_of_v, keys, key_step, p.head_dim / 2, dout_t, g);
  for (int v = 0; v < kVectors; ++v) sum[v] = r[v] = Vec{};
  for (int64_t key = 0; key < keys; ++key) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* score = s + (key * kVectors + v) * kLanes;
      const Vec x = Exp2ForPairs((Load(score) - max[v]) * log2_scale, bits);
      sum[v] += x;
      r[v] += x * Load(g + (key * kVectors + v) * kLanes);
      Store(score, x);
    }
  }
  for (int v = 0; v < kVectors; ++v) r[v] = And(r[v] / sum[v], mask[v]);
}

// dq_t (head_dim, rows) += scale * dS K, from what SoftmaxBackward returns; overwrites g.
template <int kVectors>
STAL_INLINE void AddDq(Tiles& tiles, const uint32_t* channels_of_k, int64_t keys,
                       const BlendedAttentionParams& p, const Headroom& headroom,
                       const Lanes<kVectors>& lanes, const float* s, float* g,
                       const Vec (&sum)[kVectors], const Vec (&r)[kVectors], float* scratch,
                       float* dq_t) {
  Vec factor[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    factor[v] = lanes.weight[v] * p.scale / (sum[v] * headroom.scale);
  }
  StorePairs<kVectors>(keys, g, [&](int64_t key, int v) {
    const int64_t i = (key * kVectors + v) * kLanes;
    return Load(s + i) * (Load(g + i) - r[v]);
  });
  AddProduct<kVectors>(tiles, channels_of_k, p.head_dim, keys, g, factor, lanes.mask, scratch,
                       dq_t);
}

// dq and dweight, as BackwardQ.
void BackwardQPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const PairSizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed = 2 * sizes.packed_rows + (p.dq.data ? sizes.packed_columns : 0);
  const int64_t per_thread = 2 * sizes.rows + 2 * sizes.tile + 2 * sizes.scores;
  const int64_t shares = p.dweight.data ? call.num_entries * p.heads * p.seqlen_q : 0;
  float* memory = stal::Scratch(NumPacks(call) * packed + call.threads * per_thread + shares);
  uint32_t* packs = reinterpret_cast<uint32_t*>(memory);
  float* tiles_of_threads = memory + NumPacks(call) * packed;
  float* share = tiles_of_threads + call.threads * per_thread;  // (entries, heads, seqlen_q)

  const auto write = [&](const Prompt& prompt, int64_t head, auto* out, int thread) {
    const char* k = At(p.k, p.dtype, prompt.k + head * p.k.strides.head);
    const char* v = At(p.v, p.dtype, prompt.v + head * p.v.strides.head);
    PackRowPairs(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, out);
    PackRowPairs(v, p.v.strides.row, p.dtype, prompt.length, p.head_dim, out + sizes.packed_rows);
    if (p.dq.data) {
      PackColumnPairs(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim,
                      out + 2 * sizes.packed_rows);
    }
  };
  ForEachPackedBlock(call, packs, packed, kBlockRows, write, [&](RowBlock block, int thread) {
    float* scratch = tiles_of_threads + thread * per_thread;
    uint32_t* q_t = reinterpret_cast<uint32_t*>(scratch);
    uint32_t* dout_t = q_t + sizes.rows;
    float* dq_t = scratch + 2 * sizes.rows;
    float* product = dq_t + sizes.tile;
    float* s = product + sizes.tile;
    float* g = s + sizes.scores;
    Tiles tiles;
    WithVectors<kPairVectors>(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposedPairs<kVectors>(p.q, p.dtype, block, p.head_dim, nullptr, p.scale < 0, q_t);
      LoadTransposedPairs<kVectors>(p.dout, p.dtype, block, p.head_dim, nullptr, false, dout_t);
      PrefetchRows<false>(p, p.q, block, kBlockRows);
      PrefetchRows<false>(p, p.dout, block, kBlockRows);
      if (p.dq.data) PrefetchRows<true>(p, p.dq, block, kBlockRows);
      memset(dq_t, 0, RoundUp(p.head_dim, kTile) * kVectors * kLanes * sizeof(float));
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        const Lanes<kVectors> lanes(call, entry, block);
        const int64_t keys = prompt.length;
        Vec r[kVectors] = {};
        if (keys > 0 && lanes.any) {
          const uint32_t* pack = PackOf(call, packs, packed, e, block);
          Vec sum[kVectors];
          SoftmaxBackward<kVectors>(tiles, pack, pack + sizes.packed_rows, keys, p, headroom.bits,
                                    q_t, dout_t, lanes.mask, s, g, sum, r);
          if (p.dq.data) {
            AddDq<kVectors>(tiles, pack + 2 * sizes.packed_rows, keys, p, headroom, lanes, s, g,
                            sum, r, product, dq_t);
          }
        }
        if (p.dweight.data) {
          memcpy(share + (e * p.heads + block.head) * p.seqlen_q + block.first, r,
                 block.rows.count * 4);
        }
      }
      if (p.dq.data) {
        StoreTransposed<kVectors>(p.dq, p.dtype, block, p.head_dim, headroom.scale, dq_t, product);
      }
    });
  });
  if (p.dweight.data) SumShares(call, share);
}

// dk and dv of one prompt and head, and dq: see gradients.h.
class PairGradients {
 public:
  static constexpr int kMostVectors = kPairVectors;

  static int64_t Size(const BlendedAttentionParams& p, bool with_dq) {
    const PairSizes sizes(p);
    return 2 * sizes.rows + 2 * sizes.tile + 5 * sizes.scores + 2 * sizes.packed_rows +
           (with_dq ? sizes.packed_columns : 0) + 2 * GradientSize(p);
  }
  static int64_t DqTile(const BlendedAttentionParams& p) { return PairSizes(p).tile; }

  PairGradients(const BlendedAttentionParams& p, bool with_dq, float* memory)
      : p_(p),
        sizes_(p),
        headroom_(p.seqlen_k),
        product_(memory),
        s_(product_ + sizes_.tile + sizes_.scores),
        g_(s_ + sizes_.scores),
        dk_(g_ + sizes_.scores),
        dv_(dk_ + GradientSize(p)),
        p_of_rows_(reinterpret_cast<uint32_t*>(dv_ + GradientSize(p))),
        ds_of_rows_(p_of_rows_ + sizes_.scores),
        q_t_(ds_of_rows_ + sizes_.scores),
        dout_t_(q_t_ + sizes_.rows),
        q_of_rows_(dout_t_ + sizes_.rows),
        dout_of_rows_(q_of_rows_ + sizes_.tile / 2),
        keys_of_k_(dout_of_rows_ + sizes_.tile / 2),
        keys_of_v_(keys_of_k_ + sizes_.packed_rows),
        channels_of_k_(with_dq ? keys_of_v_ + sizes_.packed_rows : nullptr) {}

  void Begin(const Prompt& prompt, int64_t head) {
    memset(dk_, 0, 2 * GradientSize(p_) * sizeof(float));
    if (prompt.length == 0) return;
    const char* k = At(p_.k, p_.dtype, prompt.k + head * p_.k.strides.head);
    const char* v = At(p_.v, p_.dtype, prompt.v + head * p_.v.strides.head);
    PackRowPairs(k, p_.k.strides.row, p_.dtype, prompt.length, p_.head_dim, keys_of_k_);
    PackRowPairs(v, p_.v.strides.row, p_.dtype, prompt.length, p_.head_dim, keys_of_v_);
    if (channels_of_k_) {
      PackColumnPairs(k, p_.k.strides.row, p_.dtype, prompt.length, p_.head_dim, channels_of_k_);
    }
  }

  template <int kVectors>
  void Add(const Prompt& prompt, const RowBlock& block, const Lanes<kVectors>& lanes, float* dq_t,
           Vec (&r)[kVectors]) {
    const int64_t keys = prompt.length, width = RoundUp(p_.head_dim, kTile);
    LoadTransposedPairs<kVectors>(p_.q, p_.dtype, block, p_.head_dim, lanes.present, p_.scale < 0,
                                  q_t_);
    LoadTransposedPairs<kVectors>(p_.dout, p_.dtype, block, p_.head_dim, lanes.present, false,
                                  dout_t_);
    LoadPairsOfRows<kVectors>(p_.q, p_.dtype, block, p_.head_dim, lanes.present, q_of_rows_);
    LoadPairsOfRows<kVectors>(p_.dout, p_.dtype, block, p_.head_dim, lanes.present, dout_of_rows_);
    Vec sum[kVectors], factor[kVectors];
    SoftmaxBackward<kVectors>(tiles_, keys_of_k_, keys_of_v_, keys, p_, headroom_.bits, q_t_,
                              dout_t_, lanes.mask, s_, g_, sum, r);
    for (int v = 0; v < kVectors; ++v) factor[v] = lanes.weight[v] / sum[v];
    const auto attention = [&](int64_t key, int v) {
      return And(Load(s_ + (key * kVectors + v) * kLanes) * factor[v], lanes.mask[v]);
    };
    StorePairsOfRows<kVectors>(keys, p_of_rows_, attention);
    StorePairsOfRows<kVectors>(keys, ds_of_rows_, [&](int64_t key, int v) {
      const Vec g = Load(g_ + (key * kVectors + v) * kLanes);
      return And(attention(key, v) * p_.scale * (g - r[v]), lanes.mask[v]);
    });
    AddRowProducts<kVectors>(tiles_, ds_of_rows_, keys, q_of_rows_, width, product_, dk_);
    AddRowProducts<kVectors>(tiles_, p_of_rows_, keys, dout_of_rows_, width, product_, dv_);
    if (dq_t) {
      AddDq<kVectors>(tiles_, channels_of_k_, keys, p_, headroom_, lanes, s_, g_, sum, r, product_,
                      dq_t);
    }
  }

  template <int kVectors>
  void StoreDq(const RowBlock& block, const float* dq_t) const {
    StoreTransposed<kVectors>(p_.dq, p_.dtype, block, p_.head_dim, headroom_.scale, dq_t, product_);
  }

  void Store(const Prompt& prompt, int64_t head) const {
    const int64_t width = RoundUp(p_.head_dim, kTile);
    StoreKeys(p_.dk, p_.dtype, prompt.dk + head * p_.dk.strides.head, prompt.length, p_.seqlen_k,
              p_.head_dim, width, dk_);
    StoreKeys(p_.dv, p_.dtype, prompt.dv + head * p_.dv.strides.head, prompt.length, p_.seqlen_k,
              p_.head_dim, width, dv_);
  }

 private:
  static int64_t GradientSize(const BlendedAttentionParams& p) {
    return RoundUp(p.seqlen_k, kTile) * RoundUp(p.head_dim, kTile);
  }

  const BlendedAttentionParams& p_;
  const PairSizes sizes_;
  const Headroom headroom_;
  float* product_;
  float *s_, *g_;
  float *dk_, *dv_;  // (keys, width)
  uint32_t *p_of_rows_, *ds_of_rows_;
  uint32_t *q_t_, *dout_t_;
  uint32_t *q_of_rows_, *dout_of_rows_;
  uint32_t *keys_of_k_, *keys_of_v_, *channels_of_k_;
  Tiles tiles_;
};

void BackwardPairs(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  if (MakesAllAtOnce(call)) return BackwardAll<PairGradients>(call);
  if (p.dq.data || p.dweight.data) BackwardQPairs(call);
  if (p.dk.data) BackwardKV<PairGradients>(call);
}

STAL_INLINE bool AsPairs(const BlendedAttentionParams& p) {
  return p.dtype == DType::kBFloat16 || (p.dtype == DType::kFloat32 && p.bf16_products);
}

template <const stal::Kernels& kBase>
void ForwardOrBase(const Call& call) {
  (AsPairs(*call.params) ? ForwardPairs : kBase.forward)(call);
}

template <const stal::Kernels& kBase>
void BackwardOrBase(const Call& call) {
  (AsPairs(*call.params) ? BackwardPairs : kBase.backward)(call);
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
