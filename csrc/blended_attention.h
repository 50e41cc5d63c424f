// Blended attention: what the host hands to the kernels of any device.
//
//   out[b,h,n,:] = sum_p weight[b,p,n] * softmax_l(scale * q[b,h,n,:] . k[b,p,h,l,:]) @ v[b,p,h,:,:]
//
// Dense: element b attends to prompts b * prompts .. of k, v (batch, prompts, heads, seqlen_k, d).
// Ragged: element b attends to entries offsets[b] .. offsets[b+1]; entry e reads row
// prompt_ids[e] of a table k, v (table, heads, seqlen_k, d) and row e of weight and region.
#pragma once

#include <cstdint>

namespace stal {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Address of one (row, head_dim) matrix of a 4- or 5-dimensional tensor whose last dimension is
// contiguous. Strides count elements. `batch` is 0 for a table.
struct Strides {
  int64_t batch = 0;
  int64_t prompt = 0;
  int64_t head = 0;
  int64_t row = 0;
};

template <typename Pointer>
struct Strided {
  Pointer data = nullptr;
  Strides strides;
};

struct BlendedAttentionParams {
  DType dtype;  // of q, k, v, out and their gradients
  // float32 only: factors of products may be rounded to bfloat16, where that is faster.
  bool bf16_products = false;
  float scale;
  bool ragged;
  int64_t batch, heads, seqlen_q, seqlen_k, head_dim;
  int64_t prompts;  // dense: prompts per element; ragged: rows of the table
  int64_t entries;  // ragged only

  Strided<const void*> q;                // strides: batch, head, row
  Strided<const void*> k, v;             // strides: batch, prompt, head, row
  Strided<const float*> weight;          // strides: batch, prompt, row
  Strided<const uint8_t*> region;        // as weight; null: every prompt exists everywhere
  const int32_t* prompt_ids = nullptr;   // (entries,)
  const int32_t* offsets = nullptr;      // (batch + 1,)
  const int32_t* key_lengths = nullptr;  // (table,); null: seqlen_k

  // Of a plan: an order of the rows of each element, in which blocks of them meet few prompts, and
  // the region that it was made of. Both or neither; no result depends on it.
  Strided<const int32_t*> order;    // strides: batch, row
  Strided<const uint8_t*> planned;  // as region
  // Of the same plan, read by CUDA kernels, which do not read `planned`: bit i of the word of 32
  // rows of `order` is set where entry i of the element exists at any of them. Contiguous,
  // (batch, ceil(seqlen_q / 32)).
  const int64_t* tiles = nullptr;

  // Of a pack: K and V as the forward pass of one level reads them, in words of 4 bytes; null: it
  // packs its own. Strides: batch, prompt, head. No result depends on it.
  Strided<void*> packed;

  Strided<void*> out;          // forward, as q
  Strided<const void*> dout;   // backward, as q
  Strided<void*> dq;           // null: not asked for
  Strided<float*> dweight;     // null: not asked for
  Strided<void*> dk, dv;       // both or neither
};

}  // namespace stal
