// What the kernels of every level are made of: sizes, rows in memory and tiles, lanes, tasks.
#pragma once

#include "cpu/call.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace {

using stal::BlendedAttentionParams;
using stal::Call;
using stal::DType;
using stal::Entry;
using stal::Prompt;

constexpr int kMaxRows = kRowVectors * kLanes;
constexpr float kLog2e = 1.44269504088896341f;

STAL_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
STAL_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
STAL_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
STAL_INLINE int64_t ElementSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

template <typename Body>
void ParallelFor(int threads, int64_t tasks, const Body& body) {
  stal::ParallelFor(
      threads, tasks,
      [](void* context, int64_t task, int thread) {
        (*static_cast<const Body*>(context))(task, thread);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// body(Int<ceil(rows / kLanes)>): the last block of a head is computed no wider than it must be.
template <int kMost = kRowVectors, typename Body>
STAL_INLINE void WithVectors(int64_t rows, const Body& body) {
  const int64_t vectors = CeilDiv(rows, kLanes);
  if (vectors == 1) return body(Int<1>{});
  if constexpr (kMost >= 3) {
    if (vectors == 3) return body(Int<3>{});
  }
  body(Int<2>{});
}

// ---- rows in memory <-> tiles ----

// head_dim is a multiple of 8, so a row ends with a whole vector or with half of one of 16 lanes.
// Copies of a constant size compile to moves, others to calls.
constexpr int64_t kTail = kLanes == 16 ? 8 : 0;

// One row to float32, zero padded to a multiple of kLanes.
STAL_INLINE void LoadRow(const void* row, DType dtype, int64_t head_dim, float* out) {
  const char* p = static_cast<const char*>(row);
  const bool single = dtype == DType::kFloat32;
  const int64_t size = ElementSize(dtype);
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    const char* x = p + i * size;
    Store(out + i, single ? LoadFloat(x) : FromHalf(LoadHalves(x), dtype));
  }
  if (i == head_dim) return;
  const char* x = p + i * size;
  const UVec tail = LoadFirstWords(x, single ? kTail : kTail / 2);
  Store(out + i, single ? (Vec)tail : FromHalf(FirstHalves(tail), dtype));
}

// One row of `in` times `factor`, rounded to dtype.
STAL_INLINE void StoreRow(void* row, DType dtype, int64_t head_dim, const float* in, float factor) {
  char* p = static_cast<char*>(row);
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    for (; i + kLanes <= head_dim; i += kLanes) {
      const Vec x = Load(in + i) * factor;
      memcpy(p + i * 4, &x, kLanes * 4);
    }
    if (i == head_dim) return;
    const Vec x = Load(in + i) * factor;
    memcpy(p + i * 4, &x, kTail * 4);
    return;
  }
  for (; i + kLanes <= head_dim; i += kLanes) {
    const HalfVec half = ToHalf(Load(in + i) * factor, dtype);
    memcpy(p + i * 2, &half, kLanes * 2);
  }
  if (i == head_dim) return;
  const HalfVec half = ToHalf(Load(in + i) * factor, dtype);
  memcpy(p + i * 2, &half, kTail * 2);
}

// Which rows of a matrix are meant: `count` of them, consecutive ones without `order`.
struct Rows {
  int64_t count;
  const int64_t* order = nullptr;

  STAL_INLINE int64_t operator[](int64_t i) const { return order ? order[i] : i; }
};

// Rows of a matrix -> tile (kMaxRows or fewer, width), with zeros after the last row and, where
// `present` is given, in rows that it leaves out.
template <int kVectors>
void LoadRows(const void* data, int64_t row_stride, DType dtype, Rows rows, int64_t head_dim,
              const uint8_t* present, float* tile) {
  const int64_t width = RoundUp(head_dim, kLanes);
  for (int64_t i = 0; i < kVectors * kLanes; ++i) {
    float* out = tile + i * width;
    if (i < rows.count && (present == nullptr || present[i])) {
      LoadRow(static_cast<const char*>(data) + rows[i] * row_stride * ElementSize(dtype), dtype,
              head_dim, out);
    } else {
      memset(out, 0, width * sizeof(float));
    }
  }
}

// (n * kLanes, m * kLanes) -> its transpose, in log2(kLanes) rounds of interleaving a square.
STAL_INLINE void Transpose(const float* in, int64_t n, int64_t m, float* out) {
#if defined(STAL_MODEL)
  // Shuffles of vectors that the machine lacks would be spelled out element by element.
  for (int64_t i = 0; i < n * kLanes; ++i) {
    for (int64_t j = 0; j < m * kLanes; ++j) {
      memcpy(out + j * n * kLanes + i, in + i * m * kLanes + j, sizeof(float));
    }
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) x[r] = Load(in + ((i * kLanes + r) * m + j) * kLanes);
#pragma GCC unroll 4
      for (int step = 1; step < kLanes; step *= 2) {
        Vec y[kLanes];
#pragma GCC unroll 8
        for (int r = 0; r < kLanes / 2; ++r) {
          y[2 * r] = InterleaveLow(x[r], x[r + kLanes / 2]);
          y[2 * r + 1] = InterleaveHigh(x[r], x[r + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) x[r] = y[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) Store(out + ((j * kLanes + r) * n + i) * kLanes, x[r]);
    }
  }
#endif
}

// ---- range ----

// Unnormalised probabilities reach 1, and the sum of as many values as there are keys can overflow
// where their mean does not. Kernels therefore compute 2^-bits of each probability, a sum of which
// is at most 1, keep accumulators 2^-bits of what they stand for, and undo it where they are
// stored. The powers are exact, so only two overflows remain: of a result, and of a score.
// At the other end a probability counts as 0 from 2^(bits - 126) of the largest one down.
struct Headroom {
  float bits = 0, scale = 1;  // scale = 2^bits

  explicit Headroom(int64_t keys) {
    for (; scale < static_cast<float>(keys); scale *= 2) ++bits;
  }
};

// ---- tasks ----

// A block of query rows of one head of one batch element. `rows` counts from row 0 of the head
// where it has an order, else from row `first`.
struct RowBlock {
  int64_t batch, head, first;
  Rows rows;

  int64_t Base() const { return rows.order ? 0 : first; }
};

// The weights of one entry in one block of rows, and the lanes where the prompt exists.
template <int kVectors>
struct Lanes {
  Vec weight[kVectors];
  IVec mask[kVectors];
  uint8_t present[kVectors * kLanes];
  bool any;

  Lanes(const Call& call, const Entry& entry, RowBlock block) {
    const BlendedAttentionParams& p = *call.params;
    const int64_t count = block.rows.count;
    int64_t weight_step = p.weight.strides.row, region_step = p.region.strides.row;
    const float* weights = p.weight.data + entry.weight + block.first * weight_step;
    const uint8_t* region =
        p.region.data ? p.region.data + entry.region + block.first * region_step : nullptr;
    if (block.rows.order) {
      const int64_t first = (&entry - call.entries) * p.seqlen_q + block.first;
      weights = call.weight + first;
      region = call.region + first;
      weight_step = region_step = 1;
    }
    const bool whole = count == kVectors * kLanes;
    float w[kVectors * kLanes] = {};
    memset(present, 0, sizeof(present));
    if (region && region_step == 1 && whole) {
      memcpy(present, region, sizeof(present));
    } else {
      for (int64_t i = 0; i < count; ++i) present[i] = !region || region[i * region_step];
    }
    uint8_t seen = 0;
    for (const uint8_t here : present) seen |= here;
    any = seen != 0;
    if (!any) return;
    if (weight_step == 1 && whole) {
      memcpy(w, weights, sizeof(w));
    } else {
      for (int64_t i = 0; i < count; ++i) w[i] = weights[i * weight_step];
    }
    for (int r = 0; r < kVectors; ++r) {
      ByteVec bytes;
      memcpy(&bytes, present + r * kLanes, sizeof(bytes));
      mask[r] = __builtin_convertvector(bytes, IVec) != 0;
      weight[r] = And(Load(w + r * kLanes), mask[r]);
    }
  }
};

template <typename Pointer>
STAL_INLINE const char* At(const stal::Strided<Pointer>& tensor, DType dtype, int64_t offset) {
  return static_cast<const char*>(tensor.data) + offset * ElementSize(dtype);
}

template <typename Pointer>
STAL_INLINE int64_t RowOffset(const stal::Strided<Pointer>& tensor, int64_t batch, int64_t head,
                              int64_t row) {
  return batch * tensor.strides.batch + head * tensor.strides.head + row * tensor.strides.row;
}

// Of the row that block.rows counts from.
template <typename Pointer>
STAL_INLINE int64_t RowOffset(const stal::Strided<Pointer>& tensor, const RowBlock& block) {
  return RowOffset(tensor, block.batch, block.head, block.Base());
}

// body(block, thread) for all blocks of `block_rows` rows; the last one of a head may be shorter.
template <typename Body>
void ForEachBlock(const Call& call, int64_t block_rows, const Body& body) {
  const BlendedAttentionParams& p = *call.params;
  const int64_t blocks = CeilDiv(p.seqlen_q, block_rows);
  ParallelFor(call.threads, p.batch * p.heads * blocks, [&](int64_t task, int thread) {
    const int64_t head = task / blocks, first = task % blocks * block_rows;
    const int64_t batch = head / p.heads;
    const int64_t* order = call.order ? call.order + batch * p.seqlen_q + first : nullptr;
    const Rows rows = {Min(block_rows, p.seqlen_q - first), order};
    body(RowBlock{batch, head % p.heads, first, rows}, thread);
  });
}

// The packed copy of one prompt and head, of which each has `size` elements: that of a pack, where
// the call has one, else among `packs`.
template <typename Element>
STAL_INLINE Element* PackOf(const Call& call, Element* packs, int64_t size, const Prompt& prompt,
                            int64_t head) {
  const stal::Strided<void*>& packed = call.params->packed;
  if (packed.data) {
    return static_cast<Element*>(packed.data) + prompt.given + head * packed.strides.head;
  }
  return packs + (prompt.packed * call.params->heads + head) * size;
}

// write(prompt, head, pack, thread) for all packed copies.
template <typename Element, typename Write>
void ForEachPack(const Call& call, Element* packs, int64_t size, const Write& write) {
  const int64_t heads = call.params->heads;
  ParallelFor(call.threads, call.num_prompts * heads, [&](int64_t task, int thread) {
    const Prompt& prompt = call.prompts[task / heads];
    const int64_t head = task % heads;
    if (prompt.owner) write(prompt, head, PackOf(call, packs, size, prompt, head), thread);
  });
}

// Asks the caches for rows, as far as there are any: of q and dout for those of the next block,
// while `block` is computed, of out and dq (kWrite) for its own, when it begins. Calls with one
// prompt take up to 8% less (measured on AMD Zen 5).
template <bool kWrite, typename Pointer>
STAL_INLINE void PrefetchRows(const BlendedAttentionParams& p, const stal::Strided<Pointer>& tensor,
                              const RowBlock& block, int64_t block_rows) {
  constexpr int64_t kLine = 64;
  const int64_t bytes = p.head_dim * ElementSize(p.dtype);
  const int64_t skipped = kWrite ? 0 : block_rows;
  const int64_t end = Min(skipped + block_rows, p.seqlen_q - block.first);
  const int64_t base = RowOffset(tensor, block);
  for (int64_t i = skipped; i < end; ++i) {
    const char* row = At(tensor, p.dtype, base + block.rows[i] * tensor.strides.row);
    for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(row + b, kWrite);
  }
}

// q or dout of one block, scaled and transposed to (head_dim, rows); `rows_tile` keeps the rows.
template <int kVectors>
void LoadTransposed(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block,
                    int64_t head_dim, const uint8_t* present, float scale, float* rows_tile,
                    float* out) {
  const int64_t width = RoundUp(head_dim, kLanes);
  LoadRows<kVectors>(At(tensor, dtype, RowOffset(tensor, block)), tensor.strides.row, dtype,
                     block.rows, head_dim, present, rows_tile);
  Transpose(rows_tile, kVectors, width / kLanes, out);
  if (scale == 1.0f) return;
  for (int64_t i = 0; i < width * kVectors; ++i) {
    Store(out + i * kLanes, Load(out + i * kLanes) * scale);
  }
}

// (head_dim, rows) times `factor` -> rows of out or dq.
template <int kVectors>
void StoreTransposed(const stal::Strided<void*>& tensor, DType dtype, const RowBlock& block,
                     int64_t head_dim, float factor, float* scratch, const float* tile) {
  const int64_t width = RoundUp(head_dim, kLanes);
  const int64_t base = RowOffset(tensor, block);
  Transpose(tile, width / kLanes, kVectors, scratch);
  for (int64_t i = 0; i < block.rows.count; ++i) {
    const int64_t element = base + block.rows[i] * tensor.strides.row;
    StoreRow(static_cast<char*>(tensor.data) + element * ElementSize(dtype), dtype, head_dim,
             scratch + i * width, factor);
  }
}

// dweight from the shares of the heads, (entries, heads, seqlen_q).
void SumShares(const Call& call, const float* shares) {
  const BlendedAttentionParams& p = *call.params;
  ParallelFor(call.threads, call.num_entries, [&](int64_t e, int) {
    float* out = p.dweight.data + call.entries[e].dweight;
    const int64_t* order = call.order ? call.order + call.entries[e].batch * p.seqlen_q : nullptr;
    const Rows rows = {p.seqlen_q, order};
    const float* share = shares + e * p.heads * p.seqlen_q;
    for (int64_t n = 0; n < p.seqlen_q; ++n) {
      float sum = 0;
      for (int64_t head = 0; head < p.heads; ++head) sum += share[head * p.seqlen_q + n];
      out[rows[n] * p.dweight.strides.row] = sum;
    }
  });
}

void Exp2All(const float* x, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    float tail[kLanes] = {};
    const int64_t n = Min(kLanes, count - i);
    memcpy(tail, x + i, n * sizeof(float));
    Store(tail, Exp2(Load(tail)));
    memcpy(out + i, tail, n * sizeof(float));
  }
}

}  // namespace
