#include "cpu/call_storage.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace stal {

namespace {

// A larger block is returned to the system by the next call.
constexpr int64_t kKeptFloats = 16 << 20;  // 64 MiB a thread
constexpr int64_t kAlignment = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace

float* Scratch(int64_t floats) {
  static thread_local std::unique_ptr<float, Free> block;
  static thread_local int64_t capacity = 0;
  if (floats > capacity || capacity > kKeptFloats) {
    block.reset();
    capacity = 0;
    const int64_t bytes = (floats * 4 + kAlignment) / kAlignment * kAlignment;
    block.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (!block) throw std::bad_alloc();
    capacity = floats;
  }
  return block.get();
}

CallStorage::CallStorage(const BlendedAttentionParams& p, int threads) {
  const int64_t num_prompts = p.ragged ? p.prompts : p.batch * p.prompts;
  const int64_t num_entries = p.ragged ? p.entries : p.batch * p.prompts;
  // An expanded batch is packed once.
  const bool shared = !p.ragged && p.k.strides.batch == 0 && p.v.strides.batch == 0;

  entries_.resize(num_entries);
  begin_.resize(p.batch + 1);
  for (int64_t b = 0; b <= p.batch; ++b) begin_[b] = p.ragged ? p.offsets[b] : b * p.prompts;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t e = begin_[b]; e < begin_[b + 1]; ++e) {
      const int64_t i = p.ragged ? e : e - begin_[b];
      const int64_t batch = p.ragged ? 0 : b;
      const auto offset = [&](const Strides& s) { return batch * s.batch + i * s.prompt; };
      entries_[e] = {b, p.ragged ? p.prompt_ids[e] : e, offset(p.weight.strides),
                     offset(p.region.strides), offset(p.dweight.strides)};
    }
  }

  prompts_.resize(num_prompts);
  for (const Entry& entry : entries_) ++prompts_[entry.prompt].end;
  int64_t used = 0;
  call.num_packed = 0;
  for (int64_t t = 0; t < num_prompts; ++t) {
    Prompt& prompt = prompts_[t];
    const int64_t b = p.ragged ? 0 : t / p.prompts;
    const int64_t i = p.ragged ? t : t % p.prompts;
    const auto offset = [&](const Strides& s) { return b * s.batch + i * s.prompt; };
    prompt.k = offset(p.k.strides);
    prompt.v = offset(p.v.strides);
    prompt.dk = offset(p.dk.strides);
    prompt.dv = offset(p.dv.strides);
    prompt.length = p.key_lengths ? p.key_lengths[t] : p.seqlen_k;
    prompt.owner = prompt.end > 0 && !(shared && b > 0);
    prompt.packed = prompt.owner ? call.num_packed++ : shared ? i : -1;
    prompt.begin = used;
    used += prompt.end;
    prompt.end = prompt.begin;
  }
  users_.resize(num_entries);
  for (int64_t e = 0; e < num_entries; ++e) users_[prompts_[entries_[e].prompt].end++] = e;

  call.params = &p;
  call.prompts = prompts_.data();
  call.num_prompts = num_prompts;
  call.entries = entries_.data();
  call.num_entries = num_entries;
  call.begin = begin_.data();
  call.users = users_.data();
  call.threads = threads;
}

}  // namespace stal
