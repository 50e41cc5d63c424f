#include "test/cuda/forward.h"

#include <algorithm>
#include <array>

#include "cuda/kernel.h"

namespace stal::emulator {

namespace {

// From the first element to the last; dimensions in the order of Strides, then the columns.
template <typename Pointer>
void AddTensor(const char* name, const Strided<Pointer>& tensor, std::array<int64_t, 5> sizes,
               int64_t element_bytes, bool writable, std::vector<Range>* memory) {
  if (tensor.data == nullptr) return;
  const Strides& s = tensor.strides;
  const int64_t strides[] = {s.batch, s.prompt, s.head, s.row, 1};
  int64_t last = 0;
  for (int i = 0; i < 5; ++i) last += std::max<int64_t>(sizes[i] - 1, 0) * strides[i];
  memory->push_back({tensor.data, static_cast<size_t>((last + 1) * element_bytes), writable, name});
}

void AddList(const char* name, const void* data, int64_t bytes, std::vector<Range>* memory) {
  if (data) memory->push_back({data, static_cast<size_t>(bytes), false, name});
}

std::vector<Range> MemoryOf(const BlendedAttentionParams& p) {
  std::vector<Range> memory;
  const int64_t batch = p.ragged ? 1 : p.batch, weights = p.ragged ? p.entries : p.prompts;
  const std::array<int64_t, 5> rows = {p.batch, 1, p.heads, p.seqlen_q, p.head_dim};
  const std::array<int64_t, 5> keys = {batch, p.prompts, p.heads, p.seqlen_k, p.head_dim};
  const std::array<int64_t, 5> of_entries = {batch, weights, 1, p.seqlen_q, 1};
  AddTensor("q", p.q, rows, 2, false, &memory);
  AddTensor("k", p.k, keys, 2, false, &memory);
  AddTensor("v", p.v, keys, 2, false, &memory);
  AddTensor("weight", p.weight, of_entries, 4, false, &memory);
  AddTensor("region", p.region, of_entries, 1, false, &memory);
  AddTensor("order", p.order, {p.batch, 1, 1, p.seqlen_q, 1}, 4, false, &memory);
  AddTensor("out", p.out, rows, 2, true, &memory);
  AddList("prompt_ids", p.prompt_ids, p.entries * 4, &memory);
  AddList("offsets", p.offsets, (p.batch + 1) * 4, &memory);
  AddList("key_lengths", p.key_lengths, p.prompts * 4, &memory);
  AddList("tiles", p.tiles, p.batch * ((p.seqlen_q + 31) / 32) * 8, &memory);
  return memory;
}

template <typename T, int HeadDim>
void Run(const BlendedAttentionParams& params, int multiprocessors, uint64_t seed,
         std::vector<Product>* products) {
  using X = cuda::Traits<HeadDim>;
  const int blocks = cuda::blocks_of(params, multiprocessors);
  const cuda::ForwardParams p = cuda::to_device(params, blocks);
  Launch({blocks, X::kThreads, X::kSharedBytes, seed, MemoryOf(params), products},
         [&] { cuda::forward<T, HeadDim>(p); });
}

template <typename T>
void RunHeadDim(const BlendedAttentionParams& params, int multiprocessors, uint64_t seed,
                std::vector<Product>* products) {
#if defined(STAL_ONE_HEAD_DIM)  // a smaller program
  if (params.head_dim == STAL_ONE_HEAD_DIM) {
    return Run<T, STAL_ONE_HEAD_DIM>(params, multiprocessors, seed, products);
  }
  throw Error("head_dim must be " + std::to_string(STAL_ONE_HEAD_DIM) + " in this build, got " +
              std::to_string(params.head_dim));
#else
  switch (params.head_dim) {
    case 40:
      return Run<T, 40>(params, multiprocessors, seed, products);
    case 64:
      return Run<T, 64>(params, multiprocessors, seed, products);
    case 80:
      return Run<T, 80>(params, multiprocessors, seed, products);
    case 128:
      return Run<T, 128>(params, multiprocessors, seed, products);
    case 160:
      return Run<T, 160>(params, multiprocessors, seed, products);
  }
  throw Error("head_dim must be 40, 64, 80, 128 or 160, got " + std::to_string(params.head_dim));
#endif
}

}  // namespace

void Forward(const BlendedAttentionParams& params, int multiprocessors, uint64_t seed,
             std::vector<Product>* products) {
  if (const char* reason = cuda::too_large(params)) throw Error(reason);
  if (params.dtype == DType::kFloat16) {
    RunHeadDim<cuda::Float16>(params, multiprocessors, seed, products);
  } else {
    RunHeadDim<cuda::BFloat16>(params, multiprocessors, seed, products);
  }
}

}  // namespace stal::emulator
