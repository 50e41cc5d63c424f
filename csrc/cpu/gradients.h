// The tasks that make dk and dv, alone or together with dq and dweight, for the arithmetic of
// kernel.h and of kernel_bf16.h, which is a class with these members:
//
//   kMostVectors                  a block of rows has as many vectors, or fewer
//   Size(p, with_dq)              floats of scratch memory of an object
//   DqTile(p)                     floats of dq of one block
//   Gradients(p, with_dq, memory)
//   Begin(prompt, head)           packs K and V; dk and dv are zero
//   Add(prompt, block, lanes, dq_t, r)
//                                 a block's part of dk, dv and, unless dq_t is null, of dq;
//                                 r = rowsum(A * G)
//   StoreDq(block, dq_t)
//   Store(prompt, head)           writes dk and dv
//
// Rows are taken as they lie in memory: sums over rows must not depend on Call::order.
#pragma once

#include "cpu/rows.h"

namespace {

// body(block, Int<ceil(rows / kLanes)>) for the blocks of one head.
template <int kMostVectors, typename Body>
STAL_INLINE void ForEachBlockInMemory(const BlendedAttentionParams& p, int64_t batch, int64_t head,
                                      const Body& body) {
  constexpr int64_t kRows = kMostVectors * kLanes;
  for (int64_t first = 0; first < p.seqlen_q; first += kRows) {
    const RowBlock block = {batch, head, first, {Min(kRows, p.seqlen_q - first)}};
    WithVectors<kMostVectors>(block.rows.count, [&](auto vectors) { body(block, vectors); });
  }
}

// (keys, width), of which `count` are meant -> the rows of dk or dv; zeros after them.
void StoreKeys(const stal::Strided<void*>& tensor, DType dtype, int64_t offset, int64_t count,
               int64_t seqlen_k, int64_t head_dim, int64_t width, float* keys) {
  memset(keys + count * width, 0, (seqlen_k - count) * width * sizeof(float));
  for (int64_t key = 0; key < seqlen_k; ++key) {
    const int64_t element = offset + key * tensor.strides.row;
    StoreRow(static_cast<char*>(tensor.data) + element * ElementSize(dtype), dtype, head_dim,
             keys + key * width, 1.0f);
  }
}

// dk and dv. A task is one head of one prompt of the table, and walks all entries that refer to
// it and all their rows in order: no two tasks add into one place.
template <typename Gradients>
void BackwardKV(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  const int64_t per_thread = Gradients::Size(p, false);
  float* scratch = stal::Scratch(call.threads * per_thread);

  ParallelFor(call.threads, call.num_prompts * p.heads, [&](int64_t task, int thread) {
    const Prompt& prompt = call.prompts[task / p.heads];
    const int64_t head = task % p.heads;
    Gradients gradients(p, false, scratch + thread * per_thread);
    gradients.Begin(prompt, head);
    for (int64_t user = prompt.begin; prompt.length > 0 && user < prompt.end; ++user) {
      const Entry& entry = call.entries[call.users[user]];
      ForEachBlockInMemory<Gradients::kMostVectors>(
          p, entry.batch, head, [&](const RowBlock& block, auto vectors) {
            constexpr int kVectors = decltype(vectors)::value;
            const Lanes<kVectors> lanes(call, entry, block);
            Vec r[kVectors];
            if (lanes.any) gradients.Add(prompt, block, lanes, nullptr, r);
          });
    }
    gradients.Store(prompt, head);
  });
}

// Whether BackwardAll is to make all gradients, so that scores are computed once and not twice:
// each prompt must have one entry.
bool MakesAllAtOnce(const Call& call) {
  const BlendedAttentionParams& p = *call.params;
  if (!p.dk.data || (!p.dq.data && !p.dweight.data)) return false;
  return call.num_entries == call.num_prompts && HeadsAreTasks(call);
}

// All gradients, equal to those apart bit for bit. A task is one head of one batch element, with
// prompts outside and rows inside: what it adds to is dk and dv of one prompt and dq of all rows.
template <typename Gradients>
void BackwardAll(const Call& ordered) {
  Call call = ordered;
  call.order = nullptr;
  const BlendedAttentionParams& p = *call.params;
  constexpr int kMostVectors = Gradients::kMostVectors;
  constexpr int64_t kRows = kMostVectors * kLanes;
  const bool with_dq = p.dq.data != nullptr;
  const int64_t dq_tile = Gradients::DqTile(p);
  const int64_t dq_size = with_dq ? CeilDiv(p.seqlen_q, kRows) * dq_tile : 0;
  const int64_t size = Gradients::Size(p, with_dq), per_thread = size + dq_size;
  const int64_t shares = p.dweight.data ? call.num_entries * p.heads * p.seqlen_q : 0;
  float* scratch = stal::Scratch(call.threads * per_thread + shares);
  float* share = scratch + call.threads * per_thread;  // (entries, heads, seqlen_q)

  ParallelFor(call.threads, p.batch * p.heads, [&](int64_t task, int thread) {
    const int64_t batch = task / p.heads, head = task % p.heads;
    Gradients gradients(p, with_dq, scratch + thread * per_thread);
    float* dq_t = scratch + thread * per_thread + size;
    const auto dq_of = [&](const RowBlock& block) { return dq_t + block.first / kRows * dq_tile; };
    memset(dq_t, 0, dq_size * sizeof(float));
    for (int64_t e = call.begin[batch]; e < call.begin[batch + 1]; ++e) {
      const Entry& entry = call.entries[e];
      const Prompt& prompt = call.prompts[entry.prompt];
      gradients.Begin(prompt, head);
      ForEachBlockInMemory<kMostVectors>(p, batch, head, [&](const RowBlock& block, auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        const Lanes<kVectors> lanes(call, entry, block);
        Vec r[kVectors] = {};
        if (prompt.length > 0 && lanes.any) {
          gradients.Add(prompt, block, lanes, with_dq ? dq_of(block) : nullptr, r);
        }
        if (p.dweight.data) {
          memcpy(share + (e * p.heads + head) * p.seqlen_q + block.first, r, block.rows.count * 4);
        }
      });
      gradients.Store(prompt, head);
    }
    if (!with_dq) return;
    ForEachBlockInMemory<kMostVectors>(p, batch, head, [&](const RowBlock& block, auto vectors) {
      gradients.template StoreDq<decltype(vectors)::value>(block, dq_of(block));
    });
  });
  if (p.dweight.data) SumShares(call, share);
}

}  // namespace
