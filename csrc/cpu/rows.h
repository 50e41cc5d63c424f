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
STAL_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
STAL_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
STAL_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
constexpr int64_t ElementSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

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

template <DType kValue>
struct Type {
  static constexpr DType value = kValue;
};

// body(Type<dtype>).
template <typename Body>
STAL_INLINE void WithDType(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(Type<DType::kFloat32>{});
  if (dtype == DType::kBFloat16) return body(Type<DType::kBFloat16>{});
  body(Type<DType::kFloat16>{});
}

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

STAL_INLINE Vec LoadElements(const char* p, DType dtype) {
  return dtype == DType::kFloat32 ? LoadFloat(p) : FromHalf(LoadHalves(p), dtype);
}

// kTail elements, and zeros.
STAL_INLINE Vec LoadTail(const char* p, DType dtype) {
  const bool single = dtype == DType::kFloat32;
  const UVec tail = LoadFirstWords(p, single ? kTail : kTail / 2);
  return single ? (Vec)tail : FromHalf(FirstHalves(tail), dtype);
}

// The first kCount elements, rounded to dtype.
template <int64_t kCount>
STAL_INLINE void StoreElements(char* p, DType dtype, Vec x) {
  if (dtype == DType::kFloat32) {
    memcpy(p, &x, kCount * 4);
  } else {
    const HalfVec half = ToHalf(x, dtype);
    memcpy(p, &half, kCount * 2);
  }
}

// One row to float32, zero padded to a multiple of kLanes.
STAL_INLINE void LoadRow(const void* row, DType dtype, int64_t head_dim, float* out) {
  const char* p = static_cast<const char*>(row);
  const int64_t size = ElementSize(dtype);
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) Store(out + i, LoadElements(p + i * size, dtype));
  if (i < head_dim) Store(out + i, LoadTail(p + i * size, dtype));
}

// One row of `in` times `factor`, rounded to dtype.
STAL_INLINE void StoreRow(void* row, DType dtype, int64_t head_dim, const float* in, float factor) {
  char* p = static_cast<char*>(row);
  WithDType(dtype, [&](auto type) {
    constexpr DType kType = decltype(type)::value;
    int64_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) {
      StoreElements<kLanes>(p + i * ElementSize(kType), kType, Load(in + i) * factor);
    }
    if (kTail && i < head_dim) {
      StoreElements<kTail>(p + i * ElementSize(kType), kType, Load(in + i) * factor);
    }
  });
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

// (n * kLanes, m * kLanes) -> its transpose.
STAL_INLINE void Transpose(const float* in, int64_t n, int64_t m, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) x[r] = Load(in + ((i * kLanes + r) * m + j) * kLanes);
      TransposeSquare(x);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) Store(out + ((j * kLanes + r) * n + i) * kLanes, x[r]);
    }
  }
}

// Rows of a matrix, times `scale` -> (head_dim rounded up to kLanes, rows), zeros in channels after
// the last one.
template <int kVectors>
void LoadColumns(const char* const (&rows)[kVectors * kLanes], DType dtype, int64_t head_dim,
                 float scale, float* out) {
  WithDType(dtype, [&](auto type) {
    constexpr DType kType = decltype(type)::value;
    const auto square = [&](int v, int64_t c, const auto& load) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        x[r] = load(rows[v * kLanes + r] + c * ElementSize(kType)) * scale;
      }
      TransposeSquare(x);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) Store(out + ((c + r) * kVectors + v) * kLanes, x[r]);
    };
    for (int v = 0; v < kVectors; ++v) {
      int64_t c = 0;
      for (; c + kLanes <= head_dim; c += kLanes) {
        square(v, c, [](const char* p) { return LoadElements(p, kType); });
      }
      if (kTail && c < head_dim) square(v, c, [](const char* p) { return LoadTail(p, kType); });
    }
  });
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
  int64_t packs = -1;  // where those of its element and head begin, see ForEachPackedBlock

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

RowBlock BlockAt(const Call& call, int64_t batch, int64_t head, int64_t first, int64_t block_rows) {
  const int64_t seqlen_q = call.params->seqlen_q;
  const int64_t* order = call.order ? call.order + batch * seqlen_q + first : nullptr;
  return {batch, head, first, {Min(block_rows, seqlen_q - first), order}};
}

// body(block, thread) for all blocks of `block_rows` rows; the last one of a head may be shorter.
//
// A task is a few blocks of one head, and the next ones are the same rows of the other heads: those
// of a tensor (batch, seqlen_q, heads, head_dim) are read and written as they lie in memory. On AMD
// Zen 3 a call takes 5 to 20% less time than one that goes through all rows of a head first.
template <typename Body>
void ForEachBlock(const Call& call, int64_t block_rows, const Body& body) {
  constexpr int64_t kTaskRows = 192;  // 96 to 576 take as long
  constexpr int64_t kTasks = 8;       // of a thread, at least: the last ones should end together
  const BlendedAttentionParams& p = *call.params;
  const int64_t blocks = CeilDiv(p.seqlen_q, block_rows);
  const int64_t share = p.batch * p.heads * blocks / (kTasks * call.threads);
  const int64_t task_blocks = Max(1, Min(share, kTaskRows / block_rows));
  const int64_t runs = CeilDiv(blocks, task_blocks);
  ParallelFor(call.threads, p.batch * runs * p.heads, [&](int64_t task, int thread) {
    const int64_t batch = task / p.heads / runs, head = task % p.heads;
    const int64_t begin = task / p.heads % runs * task_blocks;
    for (int64_t block = begin; block < Min(begin + task_blocks, blocks); ++block) {
      body(BlockAt(call, batch, head, block * block_rows, block_rows), thread);
    }
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

// write(prompt, head, pack, thread) for all packed copies, by batch element and head as the blocks
// that read them: mostly the thread that packs one also reads it.
template <typename Element, typename Write>
void ForEachPack(const Call& call, Element* packs, int64_t size, const Write& write) {
  const int64_t heads = call.params->heads, prompts = call.params->prompts;
  ParallelFor(call.threads, call.num_prompts * heads, [&](int64_t task, int thread) {
    const int64_t head = task / prompts % heads;
    const Prompt& prompt = call.prompts[task / (prompts * heads) * prompts + task % prompts];
    if (prompt.owner) write(prompt, head, PackOf(call, packs, size, prompt, head), thread);
  });
}

// Whether a task may be one head of one batch element with all that it reads: nothing of that is
// read by another, and the heads occupy the threads, a fifth of whose time may be idle.
bool HeadsAreTasks(const Call& call) {
  for (int64_t t = 0; t < call.num_prompts; ++t) {
    const Prompt& prompt = call.prompts[t];
    if (prompt.end - prompt.begin > 1 || (prompt.end > prompt.begin && !prompt.owner)) return false;
  }
  const int64_t tasks = call.params->batch * call.params->heads;
  return 4 * RoundUp(tasks, call.threads) <= 5 * tasks;
}

// Whether each task packs what it reads. With few rows to a key packing is a good part of the work
// (a third of a forward pass at 64 rows and 77 keys, AMD Zen 3), and packs of all prompts and heads
// do not fit the caches: two threads then pack no faster than one.
bool PacksInTasks(const Call& call) {
  if (call.params->packed.data) return false;
  return call.params->seqlen_q <= 4 * call.params->seqlen_k && HeadsAreTasks(call);
}

// How many packed copies ForEachPackedBlock has at a time, beside those of a pack.
int64_t NumPacks(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  if (p.packed.data) return 0;
  if (!PacksInTasks(call)) return call.num_packed * p.heads;
  int64_t most = 0;
  for (int64_t b = 0; b < p.batch; ++b) most = Max(most, call.begin[b + 1] - call.begin[b]);
  return call.threads * most;
}

// write(prompt, head, pack, thread) for all packed copies and body(block, thread) for all blocks,
// after the copies that it reads. `packs` has room for NumPacks of them.
template <typename Element, typename Write, typename Body>
void ForEachPackedBlock(const Call& call, Element* packs, int64_t size, int64_t block_rows,
                        const Write& write, const Body& body) {
  if (!PacksInTasks(call)) {
    if (!call.params->packed.data) ForEachPack(call, packs, size, write);
    ForEachBlock(call, block_rows, body);
    return;
  }
  const BlendedAttentionParams& p = *call.params;
  const int64_t most = NumPacks(call) / call.threads;
  ParallelFor(call.threads, p.batch * p.heads, [&](int64_t task, int thread) {
    const int64_t batch = task / p.heads, head = task % p.heads;
    for (int64_t e = call.begin[batch]; e < call.begin[batch + 1]; ++e) {
      const int64_t pack = thread * most + e - call.begin[batch];
      write(call.prompts[call.entries[e].prompt], head, packs + pack * size, thread);
    }
    for (int64_t first = 0; first < p.seqlen_q; first += block_rows) {
      RowBlock block = BlockAt(call, batch, head, first, block_rows);
      block.packs = thread * most;
      body(block, thread);
    }
  });
}

// The packed copy that entry `e` reads in a block.
template <typename Element>
STAL_INLINE Element* PackOf(const Call& call, Element* packs, int64_t size, int64_t e,
                            const RowBlock& block) {
  if (block.packs >= 0) return packs + (block.packs + e - call.begin[block.batch]) * size;
  return PackOf(call, packs, size, call.prompts[call.entries[e].prompt], block.head);
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

// Of the rows of one block; lanes after the last row repeat it.
template <int kVectors>
struct RowAddresses {
  const char* row[kVectors * kLanes];

  RowAddresses(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block) {
    const char* base = At(tensor, dtype, RowOffset(tensor, block));
    const int64_t row_bytes = tensor.strides.row * ElementSize(dtype);
    for (int64_t i = 0; i < kVectors * kLanes; ++i) {
      row[i] = base + block.rows[Min(i, block.rows.count - 1)] * row_bytes;
    }
  }
};

// q or dout of one block -> (head_dim, rows), times `scale`.
template <int kVectors>
void LoadTransposed(const stal::Strided<const void*>& tensor, DType dtype, const RowBlock& block,
                    int64_t head_dim, float scale, float* out) {
  LoadColumns<kVectors>(RowAddresses<kVectors>(tensor, dtype, block).row, dtype, head_dim, scale,
                        out);
}

// (head_dim, rows) times `factor` -> rows of out or dq. They are put together in `scratch`: writing
// each square as it is transposed, 32 bytes of each of 8 rows, takes longer (AMD Zen 3).
template <int kVectors>
void StoreTransposed(const stal::Strided<void*>& tensor, DType dtype, const RowBlock& block,
                     int64_t head_dim, float factor, const float* tile, float* scratch) {
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
