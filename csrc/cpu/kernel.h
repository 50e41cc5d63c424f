// The kernels of one instruction level. Included once by each level_*.cpp.
//
// A task is one block of query rows of one head, with regions of rows where the same prompts exist
// (Call::order): a prompt is computed for a whole block or not at all. Rows lie across vector
// lanes: a block is kept transposed, (head_dim, rows), and so are its scores, (keys, rows). Softmax
// then needs no work across lanes, 77 keys need no padding to a vector, and neither does any
// head_dim.
//
//   S   (keys, rows)      = K (scale * q)^T               Multiply, K packed by blocks of keys
//   P   (keys, rows)      = exp(S - max)                  unnormalised, in place of S
//   out (head_dim, rows) += (P V) * weight / rowsum(P)    Multiply, V packed by blocks of channels
//
// P and out are kept times a power of two that rules out overflow: see Headroom in rows.h. The
// blend is the multiplier of the last line, so K prompts cost K attentions and nothing more. Packed
// float32 copies of K and V are made once a call and shared by all blocks and, through the table,
// by all batch elements; a block's tiles (for 77 keys and head_dim 64 about 50 KB with AVX-512)
// stay in the first two cache levels. All rows of S are kept, whatever seqlen_k is: the score tile
// of 512 keys is read from the second level at a rate that the multiplications hide.
#pragma once

#include "cpu/rows.h"

namespace {

// A sum is added up in pieces of this many terms. Shorter sums round less, and the tile of P that
// a piece reads stays in the first cache level.
constexpr int64_t kDepth = 64;

// A (rows, head_dim) matrix by blocks of rows: (ceil(rows / kBlock), head_dim, kBlock).
// `scratch` holds two tiles of kLanes rows.
void PackKeys(const void* data, int64_t row_stride, DType dtype, int64_t rows, int64_t head_dim,
              float* scratch, float* out) {
  constexpr int64_t kKeys = kLanes < kBlock ? kLanes : kBlock;  // of one transposed tile and block
  const int64_t width = RoundUp(head_dim, kLanes);
  float* transposed = scratch + kLanes * width;
  for (int64_t first = 0; first < RoundUp(rows, kBlock); first += kLanes) {
    LoadRows<1>(static_cast<const char*>(data) + first * row_stride * ElementSize(dtype),
                row_stride, dtype, Rows{rows - first}, head_dim, nullptr, scratch);
    Transpose(scratch, 1, width / kLanes, transposed);
    for (int64_t i = 0; i < kLanes && first + i < RoundUp(rows, kBlock); i += kKeys) {
      const int64_t in_block = (first + i) % kBlock;
      float* block = out + (first + i - in_block) * head_dim + in_block;
      for (int64_t c = 0; c < head_dim; ++c) {
        memcpy(block + c * kBlock, transposed + c * kLanes + i, kKeys * sizeof(float));
      }
    }
  }
}

// The same matrix by blocks of channels: (head_dim / kBlock, rows, kBlock).
void PackChannels(const void* data, int64_t row_stride, DType dtype, int64_t rows, int64_t head_dim,
                  float* row_scratch, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    LoadRow(static_cast<const char*>(data) + i * row_stride * ElementSize(dtype), dtype, head_dim,
            row_scratch);
    for (int64_t c = 0; c < head_dim; c += kBlock) {
      memcpy(out + (c * rows + i * kBlock), row_scratch + c, kBlock * sizeof(float));
    }
  }
}

// ---- arithmetic on tiles ----

// acc[i][r] = sum_t a[t][r] * b(t, i), with b(t, i) at b[t * kDepthStep + i * kColumnStep].
template <int kDepthStep, int kColumnStep, int kVectors>
STAL_INLINE void Multiply(const float* a, int64_t a_step, const float* b, int64_t depth,
                          Vec (&acc)[kBlock][kVectors]) {
#pragma GCC unroll 8
  for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kVectors; ++r) acc[i][r] = Vec{};
  }
  for (int64_t t = 0; t < depth; ++t) {
    Vec row[kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kVectors; ++r) row[r] = Load(a + t * a_step + r * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
      const Vec x = Set(b[t * kDepthStep + i * kColumnStep]);
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) acc[i][r] += x * row[r];
    }
  }
}

// scores (keys rounded up to kBlock, rows) = packed keys times q^T (head_dim, rows).
template <int kVectors>
void Scores(const float* q_t, const float* packed, int64_t keys, int64_t head_dim, float* scores) {
  constexpr int64_t kRows = kVectors * kLanes;
  for (int64_t key = 0; key < keys; key += kBlock) {
    for (int64_t c = 0; c < head_dim; c += kDepth) {
      Vec acc[kBlock][kVectors];
      Multiply<kBlock, 1, kVectors>(q_t + c * kRows, kRows, packed + key * head_dim + c * kBlock,
                                    Min(kDepth, head_dim - c), acc);
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < kVectors; ++r) {
          float* score = scores + (key + i) * kRows + r * kLanes;
          Store(score, c == 0 ? acc[i][r] : Load(score) + acc[i][r]);
        }
      }
    }
  }
}

// out (head_dim, rows) += factor * p^T (keys, rows) times packed channels, where mask is set.
template <int kVectors>
void AddValues(const float* p, const float* packed, int64_t keys, int64_t head_dim,
               const Vec (&factor)[kVectors], const IVec (&mask)[kVectors], float* out) {
  constexpr int64_t kRows = kVectors * kLanes;
  for (int64_t key = 0; key < keys; key += kDepth) {
    for (int64_t c = 0; c < head_dim; c += kBlock) {
      Vec acc[kBlock][kVectors];
      Multiply<kBlock, 1, kVectors>(p + key * kRows, kRows, packed + c * keys + key * kBlock,
                                    Min(kDepth, keys - key), acc);
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < kVectors; ++r) {
          float* sum = out + (c + i) * kRows + r * kLanes;
          Store(sum, Load(sum) + And(acc[i][r] * factor[r], mask[r]));
        }
      }
    }
  }
}

// out (keys, width) += p (keys, rows) times the tile x (rows, width).
template <int kVectors, int kRows>
STAL_INLINE void AddRowProduct(const float* p, const float* x, int64_t keys, int64_t rows,
                               int64_t width, float* out) {
  for (int64_t key = 0; key < keys; key += kBlock) {
    Vec acc[kBlock][kVectors];
    Multiply<1, kRows, kVectors>(x, width, p + key * kRows, rows, acc);
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) {
        float* sum = out + (key + i) * width + r * kLanes;
        Store(sum, Load(sum) + acc[i][r]);
      }
    }
  }
}

template <int kRows>
void AddRowProducts(const float* p, const float* x, int64_t keys, int64_t rows, int64_t width,
                    float* out) {
  for (int64_t c = 0; c < width; c += kMaxRows) {
    WithVectors(Min(kMaxRows, width - c), [&](auto vectors) {
      AddRowProduct<decltype(vectors)::value, kRows>(p, x + c, keys, rows, width, out + c);
    });
  }
}

// term(key, r) summed over keys in pieces, each in two interleaved halves: less rounding, above all
// where many terms are equal, as those of padding are, and a shorter chain.
template <int kVectors, typename Term>
STAL_INLINE void SumOverKeys(int64_t keys, Vec (&sum)[kVectors], const Term& term) {
  for (int r = 0; r < kVectors; ++r) sum[r] = Vec{};
  for (int64_t key = 0; key < keys;) {
    const int64_t end = Min(keys, key + kDepth);
    Vec even[kVectors] = {}, odd[kVectors] = {};
    for (; key + 1 < end; key += 2) {
#pragma GCC unroll 4
      for (int r = 0; r < kVectors; ++r) {
        even[r] += term(key, r);
        odd[r] += term(key + 1, r);
      }
    }
    for (int r = 0; r < kVectors; ++r) {
      sum[r] += (key < end ? even[r] + term(key, r) : even[r]) + odd[r];
    }
    key = end;
  }
}

// scores -> 2^-bits exp(scores - max), in place; sum over keys.
template <int kVectors>
void Softmax(float* scores, int64_t keys, float bits, Vec (&sum)[kVectors]) {
  constexpr int64_t kRows = kVectors * kLanes;
  Vec max[kVectors];
  for (int r = 0; r < kVectors; ++r) max[r] = Load(scores + r * kLanes);
  for (int64_t key = 1; key < keys; ++key) {
#pragma GCC unroll 4
    for (int r = 0; r < kVectors; ++r) {
      max[r] = Max(Load(scores + key * kRows + r * kLanes), max[r]);
    }
  }
  SumOverKeys<kVectors>(keys, sum, [&](int64_t key, int r) {
    float* score = scores + key * kRows + r * kLanes;
    // The difference first: folding log2(e) into the scale would round it, and bias every score.
    const Vec p = Exp2((Load(score) - max[r]) * kLog2e, bits);
    Store(score, p);
    return p;
  });
}

// ---- tasks ----

// Sizes in floats, shared by all tasks of a call.
struct Sizes {
  int64_t width, keys, tile, scores;

  explicit Sizes(const BlendedAttentionParams& p)
      : width(RoundUp(p.head_dim, kLanes)),
        keys(RoundUp(p.seqlen_k, kBlock)),
        tile(kMaxRows * width),
        scores(keys * kMaxRows) {}
};

// Of one prompt and head: K by keys, then V by channels. A multiple of 16 floats keeps every tile
// aligned.
int64_t PackedWords(const BlendedAttentionParams& p) {
  return RoundUp((Sizes(p).keys + p.seqlen_k) * p.head_dim, 16);
}

// What Forward reads. Each thread has `per_thread` floats of `scratch`, two tiles of kLanes rows at
// least.
void PackAll(const Call& call, float* packs, float* scratch, int64_t per_thread) {
  const BlendedAttentionParams& p = *call.params;
  const int64_t packed_k = Sizes(p).keys * p.head_dim;
  const auto write = [&](const Prompt& prompt, int64_t head, float* out, int thread) {
    float* row = scratch + thread * per_thread;
    PackKeys(At(p.k, p.dtype, prompt.k + head * p.k.strides.head), p.k.strides.row, p.dtype,
             prompt.length, p.head_dim, row, out);
    PackChannels(At(p.v, p.dtype, prompt.v + head * p.v.strides.head), p.v.strides.row, p.dtype,
                 prompt.length, p.head_dim, row, out + packed_k);
  };
  ForEachPack(call, packs, PackedWords(p), write);
}

void Pack(const Call& call) {
  const int64_t per_thread = 2 * kLanes * Sizes(*call.params).width;
  PackAll(call, nullptr, stal::Scratch(call.threads * per_thread), per_thread);
}

void Forward(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const Sizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed_k = sizes.keys * p.head_dim;
  const int64_t packed = PackedWords(p);
  const int64_t per_thread = 3 * sizes.tile + sizes.scores;
  const int64_t own = p.packed.data ? 0 : call.num_packed * p.heads * packed;
  float* packs = stal::Scratch(own + call.threads * per_thread);
  float* tiles = packs + own;
  if (!p.packed.data) PackAll(call, packs, tiles, per_thread);

  ForEachBlock(call, kMaxRows, [&](RowBlock block, int thread) {
    float* rows_tile = tiles + thread * per_thread;
    float* q_t = rows_tile + sizes.tile;
    float* out_t = q_t + sizes.tile;
    float* scores = out_t + sizes.tile;
    WithVectors(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposed<kVectors>(p.q, p.dtype, block, p.head_dim, nullptr, p.scale, rows_tile, q_t);
      PrefetchRows<false>(p, p.q, block, kMaxRows);
      PrefetchRows<true>(p, p.out, block, kMaxRows);
      memset(out_t, 0, sizes.width * kVectors * kLanes * sizeof(float));
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        if (prompt.length == 0) continue;
        const Lanes<kVectors> lanes(call, entry, block);
        if (!lanes.any) continue;
        const float* pack = PackOf(call, packs, packed, prompt, block.head);
        Vec factor[kVectors];
        Scores<kVectors>(q_t, pack, prompt.length, p.head_dim, scores);
        Softmax<kVectors>(scores, prompt.length, headroom.bits, factor);
        for (int r = 0; r < kVectors; ++r) {
          factor[r] = lanes.weight[r] / (factor[r] * headroom.scale);
        }
        AddValues<kVectors>(scores, pack + packed_k, prompt.length, p.head_dim, factor, lanes.mask,
                            out_t);
      }
      StoreTransposed<kVectors>(p.out, p.dtype, block, p.head_dim, headroom.scale, rows_tile,
                                out_t);
    });
  });
}

// Scores of q and of dout, softmax, and r = rowsum(A * G). On return `s` holds weight * A with
// zeros where the prompt does not exist, and `g` holds scale * dS = scale * weight * A * (G - r).
template <int kVectors>
STAL_INLINE void SoftmaxBackward(const float* q_t, const float* dout_t, const float* keys_of_k,
                                 const float* keys_of_v, int64_t keys, int64_t head_dim,
                                 const Lanes<kVectors>& lanes, float scale, float* s, float* g,
                                 Vec (&r)[kVectors]) {
  constexpr int64_t kRows = kVectors * kLanes;
  Scores<kVectors>(q_t, keys_of_k, keys, head_dim, s);
  Scores<kVectors>(dout_t, keys_of_v, keys, head_dim, g);
  Vec sum[kVectors], normalise[kVectors], factor[kVectors];
  Softmax<kVectors>(s, keys, 0, sum);
  for (int v = 0; v < kVectors; ++v) {
    normalise[v] = 1.0f / sum[v];
    factor[v] = lanes.weight[v] / sum[v];
  }
  // Normalised before they are summed, for the reason of Headroom.
  SumOverKeys<kVectors>(keys, r, [&](int64_t key, int v) {
    const int64_t i = key * kRows + v * kLanes;
    return Load(s + i) * normalise[v] * Load(g + i);
  });
  for (int v = 0; v < kVectors; ++v) r[v] = And(r[v], lanes.mask[v]);
  for (int64_t key = 0; key < keys; ++key) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* sv = s + key * kRows + v * kLanes;
      float* gv = g + key * kRows + v * kLanes;
      const Vec a = And(Load(sv) * factor[v], lanes.mask[v]);
      Store(sv, a);
      Store(gv, And(a * scale * (Load(gv) - r[v]), lanes.mask[v]));
    }
  }
}

// dq and dweight. A task is a block of rows of one head, as in Forward; the heads' shares of
// dweight are kept apart and added in order at the end, whoever computed them.
void BackwardQ(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const Sizes sizes(p);
  const int64_t packed_k = sizes.keys * p.head_dim;
  const int64_t packed = RoundUp(2 * packed_k + p.seqlen_k * p.head_dim, 16);
  const int64_t per_thread = 4 * sizes.tile + 2 * sizes.scores;
  const int64_t shares = p.dweight.data ? call.num_entries * p.heads * p.seqlen_q : 0;
  float* packs =
      stal::Scratch(call.num_packed * p.heads * packed + call.threads * per_thread + shares);
  float* tiles = packs + call.num_packed * p.heads * packed;
  float* share = tiles + call.threads * per_thread;  // (entries, heads, seqlen_q)

  ForEachPack(call, packs, packed, [&](const Prompt& prompt, int64_t head, float* out, int thread) {
    float* row = tiles + thread * per_thread;
    const char* k = At(p.k, p.dtype, prompt.k + head * p.k.strides.head);
    const char* v = At(p.v, p.dtype, prompt.v + head * p.v.strides.head);
    PackKeys(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, row, out);
    PackKeys(v, p.v.strides.row, p.dtype, prompt.length, p.head_dim, row, out + packed_k);
    if (p.dq.data) {
      PackChannels(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, row, out + 2 * packed_k);
    }
  });

  ForEachBlock(call, kMaxRows, [&](RowBlock block, int thread) {
    float* rows_tile = tiles + thread * per_thread;
    float* q_t = rows_tile + sizes.tile;
    float* dout_t = q_t + sizes.tile;
    float* dq_t = dout_t + sizes.tile;
    float* s = dq_t + sizes.tile;
    float* g = s + sizes.scores;
    WithVectors(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposed<kVectors>(p.q, p.dtype, block, p.head_dim, nullptr, p.scale, rows_tile, q_t);
      LoadTransposed<kVectors>(p.dout, p.dtype, block, p.head_dim, nullptr, 1.0f, rows_tile,
                               dout_t);
      PrefetchRows<false>(p, p.q, block, kMaxRows);
      PrefetchRows<false>(p, p.dout, block, kMaxRows);
      if (p.dq.data) PrefetchRows<true>(p, p.dq, block, kMaxRows);
      memset(dq_t, 0, sizes.width * kVectors * kLanes * sizeof(float));
      Vec one[kVectors];
      for (int r = 0; r < kVectors; ++r) one[r] = Set(1.0f);
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        const Lanes<kVectors> lanes(call, entry, block);
        Vec r[kVectors] = {};
        if (prompt.length > 0 && lanes.any) {
          const float* pack = PackOf(call, packs, packed, prompt, block.head);
          SoftmaxBackward<kVectors>(q_t, dout_t, pack, pack + packed_k, prompt.length, p.head_dim,
                                    lanes, p.scale, s, g, r);
          if (p.dq.data) {
            AddValues<kVectors>(g, pack + 2 * packed_k, prompt.length, p.head_dim, one, lanes.mask,
                                dq_t);
          }
        }
        if (p.dweight.data) {
          memcpy(share + (e * p.heads + block.head) * p.seqlen_q + block.first, r,
                 block.rows.count * 4);
        }
      }
      if (p.dq.data) {
        StoreTransposed<kVectors>(p.dq, p.dtype, block, p.head_dim, 1.0f, rows_tile, dq_t);
      }
    });
  });

  if (p.dweight.data) SumShares(call, share);
}

// dk and dv. A task is one head of one prompt of the table, and walks all entries that refer to
// it and all their rows in order: no two tasks add into one place.
void BackwardKV(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const Sizes sizes(p);
  const int64_t packed = sizes.keys * p.head_dim;
  const int64_t gradient = sizes.keys * sizes.width;
  const int64_t per_thread = 4 * sizes.tile + 2 * sizes.scores + 2 * packed + 2 * gradient;
  float* scratch = stal::Scratch(call.threads * per_thread);

  ParallelFor(call.threads, call.num_prompts * p.heads, [&](int64_t task, int thread) {
    const Prompt& prompt = call.prompts[task / p.heads];
    const int64_t head = task % p.heads;
    float* q_rows = scratch + thread * per_thread;
    float* q_t = q_rows + sizes.tile;
    float* dout_rows = q_t + sizes.tile;
    float* dout_t = dout_rows + sizes.tile;
    float* s = dout_t + sizes.tile;
    float* g = s + sizes.scores;
    float* keys_of_k = g + sizes.scores;
    float* keys_of_v = keys_of_k + packed;
    float* dk = keys_of_v + packed;  // (keys, width)
    float* dv = dk + gradient;
    memset(dk, 0, 2 * gradient * sizeof(float));
    if (prompt.length > 0 && prompt.begin < prompt.end) {
      PackKeys(At(p.k, p.dtype, prompt.k + head * p.k.strides.head), p.k.strides.row, p.dtype,
               prompt.length, p.head_dim, q_rows, keys_of_k);
      PackKeys(At(p.v, p.dtype, prompt.v + head * p.v.strides.head), p.v.strides.row, p.dtype,
               prompt.length, p.head_dim, q_rows, keys_of_v);
      for (int64_t user = prompt.begin; user < prompt.end; ++user) {
        const Entry& entry = call.entries[call.users[user]];
        for (int64_t first = 0; first < p.seqlen_q; first += kMaxRows) {
          const RowBlock block = {entry.batch, head, first, {Min(kMaxRows, p.seqlen_q - first)}};
          WithVectors(block.rows.count, [&](auto vectors) {
            constexpr int kVectors = decltype(vectors)::value;
            const Lanes<kVectors> lanes(call, entry, block);
            if (!lanes.any) return;
            LoadTransposed<kVectors>(p.q, p.dtype, block, p.head_dim, lanes.present, p.scale,
                                     q_rows, q_t);
            LoadTransposed<kVectors>(p.dout, p.dtype, block, p.head_dim, lanes.present, 1.0f,
                                     dout_rows, dout_t);
            Vec r[kVectors];
            SoftmaxBackward<kVectors>(q_t, dout_t, keys_of_k, keys_of_v, prompt.length, p.head_dim,
                                      lanes, p.scale, s, g, r);
            constexpr int kRows = kVectors * kLanes;
            AddRowProducts<kRows>(g, q_rows, prompt.length, block.rows.count, sizes.width, dk);
            AddRowProducts<kRows>(s, dout_rows, prompt.length, block.rows.count, sizes.width, dv);
          });
        }
      }
      // Keys that only fill up the last block, or lie beyond key_lengths.
      const int64_t unused = (sizes.keys - prompt.length) * sizes.width;
      memset(dk + prompt.length * sizes.width, 0, unused * sizeof(float));
      memset(dv + prompt.length * sizes.width, 0, unused * sizeof(float));
    }
    const auto store = [&](const stal::Strided<void*>& tensor, int64_t offset, const float* rows) {
      for (int64_t key = 0; key < p.seqlen_k; ++key) {
        const int64_t element = offset + head * tensor.strides.head + key * tensor.strides.row;
        StoreRow(static_cast<char*>(tensor.data) + element * ElementSize(p.dtype), p.dtype,
                 p.head_dim, rows + key * sizes.width, 1.0f);
      }
    };
    store(p.dk, prompt.dk, dk);
    store(p.dv, prompt.dv, dv);
  });
}

}  // namespace
