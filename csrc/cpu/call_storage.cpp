#include "cpu/call_storage.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/parallel.h"

namespace stal {

namespace {

// A larger block is returned to the system by the next call.
constexpr int64_t kKeptFloats = 16 << 20;  // 64 MiB a thread
constexpr int64_t kAlignment = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Throws std::bad_alloc where so many bytes cannot be had. The system may promise more than there
// is and end the process when it is used.
void RequireMemory(double bytes) {
  static const double most = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (bytes > most) throw std::bad_alloc();
}

// Consecutive rows where the same prompts exist.
struct Run {
  int64_t first, end;
};

// Not 0 at rows where a prompt begins or ends to exist.
void MarkChanges(const uint8_t* region, int64_t step, std::vector<uint8_t>* changes) {
  const int64_t rows = static_cast<int64_t>(changes->size());
  uint8_t* out = changes->data();
  if (step == 1) {  // compilers make vectors of it
    for (int64_t n = 1; n < rows; ++n) out[n] |= region[n] ^ region[n - 1];
  } else {
    for (int64_t n = 1; n < rows; ++n) out[n] |= region[n * step] ^ region[(n - 1) * step];
  }
}

// Whether two regions of so many rows are not the same.
bool Differ(const uint8_t* x, int64_t x_step, const uint8_t* y, int64_t y_step, int64_t rows) {
  uint8_t seen = 0;
  if (x_step == 1 && y_step == 1) {  // compilers make vectors of it
    for (int64_t n = 0; n < rows; ++n) seen |= (x[n] != 0) ^ (y[n] != 0);
  } else {
    for (int64_t n = 0; n < rows; ++n) seen |= (x[n * x_step] != 0) ^ (y[n * y_step] != 0);
  }
  return seen != 0;
}

[[noreturn]] void RefuseValue(const std::string& rule, int64_t got, const std::string& where = "") {
  throw std::invalid_argument(rule + ", got " + std::to_string(got) + where);
}

}  // namespace

float* Scratch(int64_t floats) {
  static thread_local std::unique_ptr<float, Free> block;
  static thread_local int64_t capacity = 0;
  if (floats > capacity || capacity > kKeptFloats) {
    block.reset();
    capacity = 0;
    RequireMemory(4.0 * floats);
    const int64_t bytes = (floats * 4 + kAlignment) / kAlignment * kAlignment;
    block.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (!block) throw std::bad_alloc();
    capacity = floats;
  }
  return block.get();
}

CallStorage::CallStorage(const BlendedAttentionParams& p, int threads) {
  CheckSizes(p, threads);
  const int64_t num_prompts = p.ragged ? p.prompts : p.batch * p.prompts;
  const int64_t num_entries = p.ragged ? p.entries : p.batch * p.prompts;
  // An expanded batch is packed once.
  const bool shared = !p.ragged && p.k.strides.batch == 0 && p.v.strides.batch == 0;

  CopyIndices(p);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t e = begin_[b]; e < begin_[b + 1]; ++e) {
      const int64_t i = p.ragged ? e : e - begin_[b];
      const int64_t batch = p.ragged ? 0 : b;
      const auto offset = [&](const Strides& s) { return batch * s.batch + i * s.prompt; };
      entries_[e] = {b, p.ragged ? entries_[e].prompt : e, offset(p.weight.strides),
                     offset(p.region.strides), offset(p.dweight.strides)};
    }
  }

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
    prompt.given = offset(p.packed.strides);
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
  // Each thread has scratch memory. A block of rows has at least 8 of them.
  const int64_t blocks = p.batch * p.heads * ((p.seqlen_q + 7) / 8);
  const int64_t tasks = std::max({num_prompts * p.heads, blocks, num_entries, int64_t{1}});
  call.threads = static_cast<int>(std::min<int64_t>(threads, tasks));

  call.order = nullptr;
  call.weight = nullptr;
  call.region = nullptr;
  if (p.order.data) {
    CheckPlanned(p);
    TakeOrder(p);
  } else if (p.region.data) {
    OrderRows(p);
  }
  // dk and dv take rows as in memory.
  if (call.order && (p.out.data || p.dq.data || p.dweight.data)) CopyInOrder();
}

// Expanded tensors have sizes that no memory bears out.
void CallStorage::CheckSizes(const BlendedAttentionParams& p, int threads) {
  constexpr double kMost = 1e17;  // floats; far from where integers overflow
  const double prompts = static_cast<double>(p.ragged ? 1 : p.batch) * p.prompts;
  const double entries = p.ragged ? p.entries : prompts;
  const double keys = p.seqlen_k + 64.0, rows = p.seqlen_q + 64.0, channels = p.head_dim + 64.0;
  const double packed = prompts * p.heads * keys * channels;
  const double shares = (entries + p.batch) * p.heads * rows * channels;
  if (packed + shares + threads * keys * channels > kMost) throw std::bad_alloc();
  // With the copies in it.
  const double order = p.region.data ? (8.0 * p.batch + 5.0 * entries) * p.seqlen_q : 0;
  RequireMemory(prompts * sizeof(Prompt) + entries * (sizeof(Entry) + 8) + p.batch * 8.0 + order);
}

// The values are read once, so that what is checked is what the kernels use even where another
// thread writes to the index tensors.
void CallStorage::CopyIndices(const BlendedAttentionParams& p) {
  begin_.resize(p.batch + 1);
  for (int64_t b = 0; b <= p.batch; ++b) begin_[b] = p.ragged ? p.offsets[b] : b * p.prompts;
  prompts_.resize(p.ragged ? p.prompts : p.batch * p.prompts);
  for (size_t t = 0; t < prompts_.size(); ++t) {
    prompts_[t].length = p.key_lengths ? p.key_lengths[t] : p.seqlen_k;
  }
  entries_.resize(p.ragged ? p.entries : p.batch * p.prompts);
  if (!p.ragged) return;

  if (begin_[0] != 0) RefuseValue("offsets must begin at 0", begin_[0]);
  for (int64_t b = 0; b < p.batch; ++b) {
    if (begin_[b] <= begin_[b + 1]) continue;
    const std::string next = std::to_string(begin_[b + 1]);
    RefuseValue("offsets must ascend", begin_[b],
           " before " + next + " at element " + std::to_string(b));
  }
  if (begin_[p.batch] != p.entries) {
    const std::string entries = std::to_string(p.entries);
    RefuseValue("offsets must end at the number of entries " + entries, begin_[p.batch]);
  }
  for (int64_t e = 0; e < p.entries; ++e) {
    const int64_t prompt = entries_[e].prompt = p.prompt_ids[e];
    if (prompt >= 0 && prompt < p.prompts) continue;
    const std::string last = std::to_string(p.prompts - 1);
    RefuseValue("prompt_ids must be in 0 .. " + last + " (rows of k)", prompt,
           " at entry " + std::to_string(e));
  }
  for (int64_t t = 0; t < p.prompts; ++t) {
    const int64_t length = prompts_[t].length;
    if (length >= 0 && length <= p.seqlen_k) continue;
    RefuseValue("key_lengths must be in 0 .. " + std::to_string(p.seqlen_k) + " (seqlen_k)", length,
           " at row " + std::to_string(t));
  }
}

// A block computes a prompt for all of its rows where it exists at one of them, and of boxes and
// painted masks a block of consecutive rows meets several. Neighbours mostly agree, so runs of rows
// are sorted, not rows.
void CallStorage::OrderRows(const BlendedAttentionParams& p) {
  const int64_t step = p.region.strides.row;
  std::vector<uint8_t> changes(p.seqlen_q);
  std::vector<Run> runs;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::fill(changes.begin(), changes.end(), 0);
    for (int64_t e = begin_[b]; e < begin_[b + 1]; ++e) {
      MarkChanges(p.region.data + entries_[e].region, step, &changes);
    }
    runs.clear();
    for (int64_t n = 0; n < p.seqlen_q; ++n) {
      if (n == 0 || changes[n]) runs.push_back({n, n});
      runs.back().end = n + 1;
    }
    // By the last prompt first, each time without a change among equals.
    for (int64_t e = begin_[b + 1]; e-- > begin_[b];) {
      const uint8_t* region = p.region.data + entries_[e].region;
      std::stable_partition(runs.begin(), runs.end(),
                            [&](const Run& run) { return region[run.first * step] != 0; });
    }
    const bool ordered = std::is_sorted(runs.begin(), runs.end(), [](const Run& x, const Run& y) {
      return x.first < y.first;
    });
    if (ordered && order_.empty()) continue;
    if (order_.empty()) {  // the elements before this one stay as they are
      order_.resize(p.batch * p.seqlen_q);
      for (int64_t i = 0; i < b * p.seqlen_q; ++i) order_[i] = i % p.seqlen_q;
    }
    int64_t* out = order_.data() + b * p.seqlen_q;
    for (const Run& run : runs) {
      for (int64_t n = run.first; n < run.end; ++n) *out++ = n;
    }
  }
  if (!order_.empty()) call.order = order_.data();
}

// The order of a plan, of which kernels rely on nothing but that it names each row once.
void CallStorage::TakeOrder(const BlendedAttentionParams& p) {
  order_.resize(p.batch * p.seqlen_q);
  std::vector<uint8_t> seen(p.seqlen_q);
  bool ordered = true;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::fill(seen.begin(), seen.end(), 0);
    const int32_t* rows = p.order.data + b * p.order.strides.batch;
    int64_t* out = order_.data() + b * p.seqlen_q;
    for (int64_t n = 0; n < p.seqlen_q; ++n) {
      const int64_t row = out[n] = rows[n * p.order.strides.row];
      if (row < 0 || row >= p.seqlen_q || seen[row]) {
        throw std::invalid_argument(
            "plan's order must hold each of the rows 0 .. " + std::to_string(p.seqlen_q - 1) +
            " of an element once, got others at element " + std::to_string(b));
      }
      seen[row] = 1;
      ordered &= row == n;
    }
  }
  if (!ordered) call.order = order_.data();
}

void CallStorage::CheckPlanned(const BlendedAttentionParams& p) const {
  const Strides& strides = p.planned.strides;
  for (int64_t e = 0; e < call.num_entries; ++e) {
    const Entry& entry = entries_[e];
    const int64_t batch = p.ragged ? 0 : entry.batch;
    const int64_t i = p.ragged ? e : e - begin_[batch];
    const uint8_t* planned = p.planned.data + batch * strides.batch + i * strides.prompt;
    const uint8_t* region = p.region.data + entry.region;
    if (Differ(planned, strides.row, region, p.region.strides.row, p.seqlen_q)) {
      throw std::invalid_argument(
          "plan's region must equal region, of which the plan is made, got another at entry " +
          std::to_string(e));
    }
  }
}

// Once a call, since every head of an element asks for the same.
void CallStorage::CopyInOrder() {
  const int64_t size = call.num_entries * call.params->seqlen_q;
  weight_.reset(new float[size]);
  region_.reset(new uint8_t[size]);
  call.weight = weight_.get();
  call.region = region_.get();
  const auto copy = [](void* storage, int64_t e, int) {
    auto& self = *static_cast<CallStorage*>(storage);
    const BlendedAttentionParams& p = *self.call.params;
    const Entry& entry = self.entries_[e];
    const int64_t* rows = self.order_.data() + entry.batch * p.seqlen_q;
    const float* weight = p.weight.data + entry.weight;
    const uint8_t* region = p.region.data + entry.region;
    float* weight_out = self.weight_.get() + e * p.seqlen_q;
    uint8_t* region_out = self.region_.get() + e * p.seqlen_q;
    for (int64_t n = 0; n < p.seqlen_q; ++n) {
      weight_out[n] = weight[rows[n] * p.weight.strides.row];
      region_out[n] = region[rows[n] * p.region.strides.row];
    }
  };
  ParallelFor(call.threads, call.num_entries, copy, this);
}

}  // namespace stal
