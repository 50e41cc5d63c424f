// A pack: K and V of each prompt as the forward pass of one level reads them (`words`), and what
// tells a pack that a call cannot use: what it was made for (`stamp`) and the last key of each
// prompt and head with its value (`sample`). Included by binding.cpp alone.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/call.h"
#include "check_arguments.h"

namespace stal {

struct Pack {
  Strided<void*> words;     // (.., heads, words): strides batch, prompt, head
  Strided<int32_t*> stamp;  // (.., kStampSize): strides batch, prompt
  Strided<void*> sample;    // (.., heads, 2, head_dim), key and value: batch, prompt, head, row
};

// By number. Those that pack nothing leave 0.
constexpr const char* kStampLevels[] = {
    "none", "amx", "avx512_bf16", "avx512", "avx2", "neon", "portable", "avx512_bf16_model",
    "amx_model"};

inline const char* StampLevel(int32_t number) {
  const int32_t count = sizeof(kStampLevels) / sizeof(kStampLevels[0]);
  return number >= 0 && number < count ? kStampLevels[number] : "unknown";
}

inline int32_t StampNumber(const char* level) {
  for (int32_t number = 1; StampLevel(number) != std::string("unknown"); ++number) {
    if (std::strcmp(StampLevel(number), level) == 0) return number;
  }
  throw std::logic_error(std::string("a level must have a number, got ") + level);
}

// Of all prompts of a call, but for their lengths.
inline std::array<int32_t, kStampSize> StampOf(const BlendedAttentionParams& p,
                                               const Kernels& kernels) {
  std::array<int32_t, kStampSize> stamp{};
  stamp[kLevel] = StampNumber(kernels.name);
  stamp[kElements] = static_cast<int32_t>(p.dtype);
  stamp[kRounded] = kernels.dot && p.dtype == DType::kFloat32 && p.bf16_products;
  stamp[kSeqlenK] = static_cast<int32_t>(p.seqlen_k);
  stamp[kHeadDim] = static_cast<int32_t>(p.head_dim);
  return stamp;
}

// body(prompt, its index, its row of the stamp, offset of its head 0 in the sample).
template <typename Body>
void ForEachPrompt(const Call& call, const Pack& pack, const Body& body) {
  const BlendedAttentionParams& p = *call.params;
  for (int64_t t = 0; t < call.num_prompts; ++t) {
    const int64_t b = p.ragged ? 0 : t / p.prompts;
    const int64_t i = p.ragged ? t : t % p.prompts;
    const auto offset = [&](const Strides& s) { return b * s.batch + i * s.prompt; };
    body(call.prompts[t], t, pack.stamp.data + offset(pack.stamp.strides),
         offset(pack.sample.strides));
  }
}

// body(row of k or v, row of the sample, bytes) for the last key of a prompt, of each head.
template <typename Body>
void ForEachSample(const BlendedAttentionParams& p, const Prompt& prompt,
                   const Strided<void*>& sample, int64_t offset, const Body& body) {
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  const auto at = [&](const auto& x, int64_t prompt_offset, int64_t head, int64_t row) {
    return (char*)x.data + (prompt_offset + head * x.strides.head + row * x.strides.row) * size;
  };
  for (int64_t head = 0; prompt.length > 0 && head < p.heads; ++head) {
    const int64_t last = prompt.length - 1;
    body(at(p.k, prompt.k, head, last), at(sample, offset, head, 0), p.head_dim * size);
    body(at(p.v, prompt.v, head, last), at(sample, offset, head, 1), p.head_dim * size);
  }
}

inline void WriteStamps(const Call& call, const Kernels& kernels, const Pack& pack) {
  auto right = StampOf(*call.params, kernels);
  ForEachPrompt(call, pack, [&](const Prompt& prompt, int64_t, int32_t* stamp, int64_t offset) {
    right[kLength] = static_cast<int32_t>(prompt.length);
    std::memcpy(stamp, right.data(), sizeof(right));
    ForEachSample(*call.params, prompt, pack.sample, offset,
                  [](const char* x, char* copy, int64_t bytes) { std::memcpy(copy, x, bytes); });
  });
}

inline std::string Text(StampField field, int32_t value) {
  const std::string number = std::to_string(value);
  switch (field) {
    case kLevel:
      return std::string("for level ") + StampLevel(value);
    case kElements:
      return value == 0 ? "of float32" : value == 1 ? "of bfloat16" : "of float16";
    case kRounded:
      return value ? "with float32 matmul precision medium" : "without medium precision";
    case kSeqlenK:
      return "with seqlen_k " + number;
    case kHeadDim:
      return "with head_dim " + number;
    default:
      return "with key length " + number;
  }
}

// Throws std::invalid_argument for a pack that was made for another call. Of prompts that no entry
// refers to k and v are not read.
inline void CheckStamps(const Call& call, const Kernels& kernels, const Pack& pack) {
  auto right = StampOf(*call.params, kernels);
  ForEachPrompt(call, pack, [&](const Prompt& prompt, int64_t t, int32_t* stamp, int64_t offset) {
    right[kLength] = static_cast<int32_t>(prompt.length);
    const auto where = [&] { return " at prompt " + std::to_string(t); };
    for (int i = 0; i < kStampSize; ++i) {
      if (stamp[i] == right[i]) continue;
      const StampField field = static_cast<StampField>(i);
      Refuse("packed", "be made " + Text(field, right[i]),
             "one made " + Text(field, stamp[i]) + where());
    }
    if (prompt.begin == prompt.end) return;
    ForEachSample(*call.params, prompt, pack.sample, offset,
                  [&](const char* x, const char* copy, int64_t bytes) {
                    if (std::memcmp(x, copy, bytes) == 0) return;
                    Refuse("packed", "be made of k and v", "one made of others" + where());
                  });
  });
}

}  // namespace stal
