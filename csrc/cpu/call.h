// A call, with the difference between dense and ragged resolved, and the kernels that run it.
#pragma once

#include <cstdint>

#include "blended_attention.h"

namespace stal {

// One encoded prompt: a row of the table, or one (batch, prompt) of the dense form.
struct Prompt {
  int64_t k, v;    // offsets of head 0, in elements
  int64_t dk, dv;  // likewise, for the gradients
  int64_t length;  // number of keys
  int64_t packed;  // which packed copy it reads; -1: no entry refers to it
  bool owner;      // writes that copy
  int64_t given;   // offset of head 0 in a pack, in words
  int64_t begin, end;  // its range in Call::users
};

// One prompt as one batch element sees it.
struct Entry {
  int64_t batch;
  int64_t prompt;
  int64_t weight, region, dweight;  // offsets of row 0, in elements
};

struct Call {
  const BlendedAttentionParams* params;
  const Prompt* prompts;
  int64_t num_prompts;
  int64_t num_packed;
  const Entry* entries;
  int64_t num_entries;
  const int64_t* begin;  // element b attends to entries begin[b] .. begin[b + 1]
  const int64_t* users;  // entries ordered by prompt, in ascending order within a prompt
  // (batch, seqlen_q): the rows of an element as blocks of out, dq and dweight take them, those
  // where the same prompts exist one after the other; null: as in memory. No bit depends on it.
  const int64_t* order;
  // With an order, copies of weight and region in it, (entries, seqlen_q), which all heads share.
  const float* weight;
  const uint8_t* region;
  int threads;
};

// Scratch memory of the calling thread, 64-byte aligned and not initialised; valid until the
// thread's next call of this function. Throws std::bad_alloc.
float* Scratch(int64_t floats);

// The kernels of one instruction level.
struct Kernels {
  const char* name;
  void (*forward)(const Call&);
  void (*backward)(const Call&);  // of dq, dweight, dk and dv those that are asked for
  // A pack: words of one prompt and head, a multiple of 16, and what writes those of all prompts.
  int64_t (*packed_words)(const BlendedAttentionParams&);
  void (*pack)(const Call&);
  void (*exp2)(const float* x, float* out, int64_t count);  // for tests of its accuracy
  // For tests of the instructions that multiply pairs of bfloat16, see DotAll; null: has none.
  void (*dot)(const float* sum, const uint32_t* a, const uint32_t* b, float* out,
              uint32_t* rounded) = nullptr;
};

extern const Kernels kPortable;
#if defined(STAL_LEVEL_AVX2)
extern const Kernels kAvx2;
#endif
#if defined(STAL_LEVEL_AVX512)
extern const Kernels kAvx512;
#endif
#if defined(STAL_LEVEL_AVX512_BF16)
extern const Kernels kAvx512Bf16;
#endif
#if defined(STAL_LEVEL_AMX)
extern const Kernels kAmx;
#endif
#if defined(STAL_LEVEL_NEON)
extern const Kernels kNeon;
#endif
extern const Kernels kAvx512Bf16Model;
extern const Kernels kAmxModel;

}  // namespace stal
