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

#include "cpu/gradients.h"

namespace {

// A sum is added up in pieces of this many terms. Shorter sums round less, and the tile of P that
// a piece reads stays in the first cache level.
constexpr int64_t kDepth = 64;

// A (rows, head_dim) matrix by blocks of rows, (ceil(rows / kBlock), head_dim, kBlock), with copies
// of the last row after it. `scratch` holds kLanes rows.
void PackKeys(const void* data, int64_t row_stride, DType dtype, int64_t rows, int64_t head_dim,
              float* scratch, float* out) {
  constexpr int64_t kKeys = kLanes < kBlock ? kLanes : kBlock;  // of one square and block
  for (int64_t first = 0; first < RoundUp(rows, kBlock); first += kLanes) {
    const char* address[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      address[i] = static_cast<const char*>(data) +
                   Min(first + i, rows - 1) * row_stride * ElementSize(dtype);
    }
    LoadColumns<1>(address, dtype, head_dim, 1.0f, scratch);
    for (int64_t i = 0; i < kLanes && first + i < RoundUp(rows, kBlock); i += kKeys) {
      const int64_t in_block = (first + i) % kBlock;
      float* block = out + (first + i - in_block) * head_dim + in_block;
      for (int64_t c = 0; c < head_dim; ++c) {
        memcpy(block + c * kBlock, scratch + c * kLanes + i, kKeys * sizeof(float));
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

// scores (keys rounded up to kBlock, rows) = packed keys times q^T (head_dim, rows), and also(r, x)
// for each vector x of them.
template <int kVectors, typename Also>
STAL_INLINE void Scores(const float* q_t, const float* packed, int64_t keys, int64_t head_dim,
                        float* scores, const Also& also) {
  constexpr int64_t kRows = kVectors * kLanes;
  for (int64_t key = 0; key < keys; key += kBlock) {
    for (int64_t c = 0; c < head_dim; c += kDepth) {
      Vec acc[kBlock][kVectors];
      Multiply<kBlock, 1, kVectors>(q_t + c * kRows, kRows, packed + key * head_dim + c * kBlock,
                                    Min(kDepth, head_dim - c), acc);
      const bool last = c + kDepth >= head_dim;
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < kVectors; ++r) {
          float* score = scores + (key + i) * kRows + r * kLanes;
          const Vec x = c == 0 ? acc[i][r] : Load(score) + acc[i][r];
          Store(score, x);
          if (last) also(r, x);
        }
      }
    }
  }
}

// The scores of a block and their maximum over keys. What fills up the packed keys are copies of
// the last one, so their scores may count.
template <int kVectors>
void ScoresAndMax(const float* q_t, const float* packed, int64_t keys, int64_t head_dim,
                  float* scores, Vec (&max)[kVectors]) {
  for (int r = 0; r < kVectors; ++r) max[r] = Set(-__builtin_inff());
  Scores<kVectors>(q_t, packed, keys, head_dim, scores,
                   [&](int r, Vec x) { max[r] = Max(x, max[r]); });
}

// out (head_dim, rows) = or += factor * p^T (keys, rows) times packed channels, where mask is set.
// What comes first is added to zero, which turns -0 into +0: the sign of a zero must not tell which
// prompts the other rows of a block have.
template <int kVectors>
void AddValues(const float* p, const float* packed, int64_t keys, int64_t head_dim,
               const Vec (&factor)[kVectors], const IVec (&mask)[kVectors], bool add, float* out) {
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
          const Vec x = And(acc[i][r] * factor[r], mask[r]);
          Store(sum, (add || key > 0 ? Load(sum) : Vec{}) + x);
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
void Softmax(float* scores, int64_t keys, const Vec (&max)[kVectors], float bits,
             Vec (&sum)[kVectors]) {
  constexpr int64_t kRows = kVectors * kLanes;
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

// What Forward reads of one prompt and head. `scratch` holds kLanes rows.
void PackKeysAndValues(const BlendedAttentionParams& p, const Prompt& prompt, int64_t head,
                       float* scratch, float* out) {
  PackKeys(At(p.k, p.dtype, prompt.k + head * p.k.strides.head), p.k.strides.row, p.dtype,
           prompt.length, p.head_dim, scratch, out);
  PackChannels(At(p.v, p.dtype, prompt.v + head * p.v.strides.head), p.v.strides.row, p.dtype,
               prompt.length, p.head_dim, scratch, out + Sizes(p).keys * p.head_dim);
}

void Pack(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const int64_t per_thread = kLanes * Sizes(p).width;
  float* scratch = stal::Scratch(call.threads * per_thread);
  ForEachPack<float>(call, nullptr, PackedWords(p),
                     [&](const Prompt& prompt, int64_t head, float* out, int thread) {
                       PackKeysAndValues(p, prompt, head, scratch + thread * per_thread, out);
                     });
}

void Forward(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const Sizes sizes(p);
  const Headroom headroom(p.seqlen_k);
  const int64_t packed_k = sizes.keys * p.head_dim;
  const int64_t packed = PackedWords(p);
  const int64_t per_thread = 2 * sizes.tile + sizes.scores;
  float* packs = stal::Scratch(NumPacks(call) * packed + call.threads * per_thread);
  float* tiles = packs + NumPacks(call) * packed;

  const auto write = [&](const Prompt& prompt, int64_t head, float* out, int thread) {
    PackKeysAndValues(p, prompt, head, tiles + thread * per_thread, out);
  };
  ForEachPackedBlock(call, packs, packed, kMaxRows, write, [&](RowBlock block, int thread) {
    float* q_t = tiles + thread * per_thread;
    float* out_t = q_t + sizes.tile;
    float* scores = out_t + sizes.tile;
    WithVectors(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposed<kVectors>(p.q, p.dtype, block, p.head_dim, p.scale, q_t);
      PrefetchRows<false>(p, p.q, block, kMaxRows);
      PrefetchRows<true>(p, p.out, block, kMaxRows);
      bool begun = false;  // whether there is anything in out_t
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        if (prompt.length == 0) continue;
        const Lanes<kVectors> lanes(call, entry, block);
        if (!lanes.any) continue;
        const float* pack = PackOf(call, packs, packed, e, block);
        Vec max[kVectors], factor[kVectors];
        ScoresAndMax<kVectors>(q_t, pack, prompt.length, p.head_dim, scores, max);
        Softmax<kVectors>(scores, prompt.length, max, headroom.bits, factor);
        for (int r = 0; r < kVectors; ++r) {
          factor[r] = lanes.weight[r] / (factor[r] * headroom.scale);
        }
        AddValues<kVectors>(scores, pack + packed_k, prompt.length, p.head_dim, factor, lanes.mask,
                            begun, out_t);
        begun = true;
      }
      if (!begun) memset(out_t, 0, sizes.width * kVectors * kLanes * sizeof(float));
      StoreTransposed<kVectors>(p.out, p.dtype, block, p.head_dim, headroom.scale, out_t, q_t);
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
  Vec max[kVectors], sum[kVectors], normalise[kVectors], factor[kVectors];
  ScoresAndMax<kVectors>(q_t, keys_of_k, keys, head_dim, s, max);
  Scores<kVectors>(dout_t, keys_of_v, keys, head_dim, g, [](int, Vec) {});
  Softmax<kVectors>(s, keys, max, 0, sum);
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
  const int64_t per_thread = 3 * sizes.tile + 2 * sizes.scores;
  const int64_t shares = p.dweight.data ? call.num_entries * p.heads * p.seqlen_q : 0;
  float* packs = stal::Scratch(NumPacks(call) * packed + call.threads * per_thread + shares);
  float* tiles = packs + NumPacks(call) * packed;
  float* share = tiles + call.threads * per_thread;  // (entries, heads, seqlen_q)

  const auto write = [&](const Prompt& prompt, int64_t head, float* out, int thread) {
    float* row = tiles + thread * per_thread;
    const char* k = At(p.k, p.dtype, prompt.k + head * p.k.strides.head);
    const char* v = At(p.v, p.dtype, prompt.v + head * p.v.strides.head);
    PackKeys(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, row, out);
    PackKeys(v, p.v.strides.row, p.dtype, prompt.length, p.head_dim, row, out + packed_k);
    if (p.dq.data) {
      PackChannels(k, p.k.strides.row, p.dtype, prompt.length, p.head_dim, row, out + 2 * packed_k);
    }
  };
  ForEachPackedBlock(call, packs, packed, kMaxRows, write, [&](RowBlock block, int thread) {
    float* q_t = tiles + thread * per_thread;
    float* dout_t = q_t + sizes.tile;
    float* dq_t = dout_t + sizes.tile;
    float* s = dq_t + sizes.tile;
    float* g = s + sizes.scores;
    WithVectors(block.rows.count, [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      LoadTransposed<kVectors>(p.q, p.dtype, block, p.head_dim, p.scale, q_t);
      LoadTransposed<kVectors>(p.dout, p.dtype, block, p.head_dim, 1.0f, dout_t);
      PrefetchRows<false>(p, p.q, block, kMaxRows);
      PrefetchRows<false>(p, p.dout, block, kMaxRows);
      if (p.dq.data) PrefetchRows<true>(p, p.dq, block, kMaxRows);
      bool begun = false;  // whether there is anything in dq_t
      Vec one[kVectors];
      for (int r = 0; r < kVectors; ++r) one[r] = Set(1.0f);
      for (int64_t e = call.begin[block.batch]; e < call.begin[block.batch + 1]; ++e) {
        const Entry& entry = call.entries[e];
        const Prompt& prompt = call.prompts[entry.prompt];
        const Lanes<kVectors> lanes(call, entry, block);
        Vec r[kVectors] = {};
        if (prompt.length > 0 && lanes.any) {
          const float* pack = PackOf(call, packs, packed, e, block);
          SoftmaxBackward<kVectors>(q_t, dout_t, pack, pack + packed_k, prompt.length, p.head_dim,
                                    lanes, p.scale, s, g, r);
          if (p.dq.data) {
            AddValues<kVectors>(g, pack + 2 * packed_k, prompt.length, p.head_dim, one, lanes.mask,
                                begun, dq_t);
            begun = true;
          }
        }
        if (p.dweight.data) {
          memcpy(share + (e * p.heads + block.head) * p.seqlen_q + block.first, r,
                 block.rows.count * 4);
        }
      }
      if (p.dq.data) {
        if (!begun) memset(dq_t, 0, sizes.width * kVectors * kLanes * sizeof(float));
        StoreTransposed<kVectors>(p.dq, p.dtype, block, p.head_dim, 1.0f, dq_t, q_t);
      }
    });
  });

  if (p.dweight.data) SumShares(call, share);
}

// q or dout of one block: (rows, width), zeros where `present` says so, and its transpose, scaled.
template <int kVectors>
void LoadBoth(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block,
              int64_t head_dim, const uint8_t* present, float scale, float* rows, float* columns) {
  const int64_t width = RoundUp(head_dim, kLanes);
  LoadRows<kVectors>(At(tensor, dtype, RowOffset(tensor, block)), tensor.strides.row, dtype,
                     block.rows, head_dim, present, rows);
  Transpose(rows, kVectors, width / kLanes, columns);
  for (int64_t i = 0; i < width * kVectors; ++i) {
    Store(columns + i * kLanes, Load(columns + i * kLanes) * scale);
  }
}

// dk and dv of one prompt and head, and dq: see gradients.h.
class Gradients {
 public:
  static constexpr int kMostVectors = kRowVectors;

  static int64_t Size(const BlendedAttentionParams& p, bool with_dq) {
    const Sizes sizes(p);
    const int64_t channels = with_dq ? p.seqlen_k * p.head_dim : 0;
    const int64_t keys = 2 * sizes.keys * (p.head_dim + sizes.width);
    return RoundUp(4 * sizes.tile + 2 * sizes.scores + keys + channels, 16);
  }
  static int64_t DqTile(const BlendedAttentionParams& p) { return Sizes(p).tile; }

  Gradients(const BlendedAttentionParams& p, bool with_dq, float* memory)
      : p_(p),
        sizes_(p),
        q_rows_(memory),
        q_t_(q_rows_ + sizes_.tile),
        dout_rows_(q_t_ + sizes_.tile),
        dout_t_(dout_rows_ + sizes_.tile),
        s_(dout_t_ + sizes_.tile),
        g_(s_ + sizes_.scores),
        keys_of_k_(g_ + sizes_.scores),
        keys_of_v_(keys_of_k_ + sizes_.keys * p.head_dim),
        dk_(keys_of_v_ + sizes_.keys * p.head_dim),
        dv_(dk_ + sizes_.keys * sizes_.width),
        channels_of_k_(with_dq ? dv_ + sizes_.keys * sizes_.width : nullptr) {}

  void Begin(const Prompt& prompt, int64_t head) {
    memset(dk_, 0, 2 * sizes_.keys * sizes_.width * sizeof(float));
    if (prompt.length == 0) return;
    const char* k = At(p_.k, p_.dtype, prompt.k + head * p_.k.strides.head);
    const char* v = At(p_.v, p_.dtype, prompt.v + head * p_.v.strides.head);
    PackKeys(k, p_.k.strides.row, p_.dtype, prompt.length, p_.head_dim, q_rows_, keys_of_k_);
    PackKeys(v, p_.v.strides.row, p_.dtype, prompt.length, p_.head_dim, q_rows_, keys_of_v_);
    if (channels_of_k_) {
      PackChannels(k, p_.k.strides.row, p_.dtype, prompt.length, p_.head_dim, q_rows_,
                   channels_of_k_);
    }
  }

  template <int kVectors>
  void Add(const Prompt& prompt, const RowBlock& block, const Lanes<kVectors>& lanes, float* dq_t,
           Vec (&r)[kVectors]) {
    constexpr int kRows = kVectors * kLanes;
    LoadBoth<kVectors>(p_.q, p_.dtype, block, p_.head_dim, lanes.present, p_.scale, q_rows_, q_t_);
    LoadBoth<kVectors>(p_.dout, p_.dtype, block, p_.head_dim, lanes.present, 1.0f, dout_rows_,
                       dout_t_);
    SoftmaxBackward<kVectors>(q_t_, dout_t_, keys_of_k_, keys_of_v_, prompt.length, p_.head_dim,
                              lanes, p_.scale, s_, g_, r);
    AddRowProducts<kRows>(g_, q_rows_, prompt.length, block.rows.count, sizes_.width, dk_);
    AddRowProducts<kRows>(s_, dout_rows_, prompt.length, block.rows.count, sizes_.width, dv_);
    if (dq_t) {
      Vec one[kVectors];
      for (int v = 0; v < kVectors; ++v) one[v] = Set(1.0f);
      AddValues<kVectors>(g_, channels_of_k_, prompt.length, p_.head_dim, one, lanes.mask, true,
                          dq_t);
    }
  }

  template <int kVectors>
  void StoreDq(const RowBlock& block, const float* dq_t) const {
    StoreTransposed<kVectors>(p_.dq, p_.dtype, block, p_.head_dim, 1.0f, dq_t, q_rows_);
  }

  void Store(const Prompt& prompt, int64_t head) const {
    StoreKeys(p_.dk, p_.dtype, prompt.dk + head * p_.dk.strides.head, prompt.length, p_.seqlen_k,
              p_.head_dim, sizes_.width, dk_);
    StoreKeys(p_.dv, p_.dtype, prompt.dv + head * p_.dv.strides.head, prompt.length, p_.seqlen_k,
              p_.head_dim, sizes_.width, dv_);
  }

 private:
  const BlendedAttentionParams& p_;
  const Sizes sizes_;
  float *q_rows_, *q_t_, *dout_rows_, *dout_t_;
  float *s_, *g_;
  float *keys_of_k_, *keys_of_v_;
  float *dk_, *dv_;  // (keys, width)
  float* channels_of_k_;
};

void Backward(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  if (MakesAllAtOnce(call)) return BackwardAll<Gradients>(call);
  if (p.dq.data || p.dweight.data) BackwardQ(call);
  if (p.dk.data) BackwardKV<Gradients>(call);
}

}  // namespace
