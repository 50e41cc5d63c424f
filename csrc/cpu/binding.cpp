// What stal_kernels/backends/cpu.py calls. Shapes, dtypes, strides and index values have been
// checked in Python (checks.py, library.py).
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <string>

#include "cpu/call_storage.h"
#include "cpu/levels.h"

namespace {

using tvm::ffi::Array;
using tvm::ffi::Optional;
using tvm::ffi::String;
using tvm::ffi::TensorView;

const stal::Kernels& FindKernels(const String& name) {
  for (const stal::Level& level : stal::Levels()) {
    if (name == level.name && level.why_not.empty()) return *level.kernels;
  }
  TVM_FFI_THROW(ValueError) << "level must be one that runs on this machine, got " << name;
}

stal::DType DTypeOf(const TensorView& tensor) {
  switch (tensor.dtype().code) {
    case kDLBfloat:
      return stal::DType::kBFloat16;
    default:
      return tensor.dtype().bits == 16 ? stal::DType::kFloat16 : stal::DType::kFloat32;
  }
}

// q, out, dout, dq: (batch, heads, seqlen_q, head_dim).
template <typename Pointer>
void SetRows(const TensorView& tensor, stal::Strided<Pointer>* out) {
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {tensor.stride(0), 0, tensor.stride(1), tensor.stride(2)};
}

// k, v, dk, dv: (batch, prompts, heads, seqlen_k, head_dim), without batch in the ragged form.
template <typename Pointer>
void SetKeys(const TensorView& tensor, stal::Strided<Pointer>* out) {
  const int first = tensor.ndim() - 4;
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {first ? tensor.stride(0) : 0, tensor.stride(first), tensor.stride(first + 1),
                  tensor.stride(first + 2)};
}

// weight, region, dweight: (batch, prompts, seqlen_q), without batch in the ragged form.
template <typename Pointer>
void SetWeights(const TensorView& tensor, stal::Strided<Pointer>* out) {
  const int first = tensor.ndim() - 2;
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {first ? tensor.stride(0) : 0, tensor.stride(first), 0, tensor.stride(first + 1)};
}

const int32_t* Indices(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const int32_t*>(tensor.value().data_ptr()) : nullptr;
}

stal::BlendedAttentionParams MakeParams(double scale, bool bf16_products, const TensorView& q,
                                        const TensorView& k, const TensorView& v,
                                        const TensorView& weight,
                                        const Optional<TensorView>& prompt_ids,
                                        const Optional<TensorView>& offsets,
                                        const Optional<TensorView>& region,
                                        const Optional<TensorView>& key_lengths) {
  stal::BlendedAttentionParams p{};
  p.dtype = DTypeOf(q);
  p.bf16_products = bf16_products;
  p.scale = static_cast<float>(scale);
  p.ragged = prompt_ids.has_value();
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.seqlen_q = q.size(2);
  p.head_dim = q.size(3);
  p.seqlen_k = k.size(-2);
  p.prompts = k.size(p.ragged ? 0 : 1);
  p.entries = p.ragged ? prompt_ids.value().size(0) : 0;
  SetRows(q, &p.q);
  SetKeys(k, &p.k);
  SetKeys(v, &p.v);
  SetWeights(weight, &p.weight);
  if (region.has_value()) SetWeights(region.value(), &p.region);
  p.prompt_ids = Indices(prompt_ids);
  p.offsets = Indices(offsets);
  p.key_lengths = Indices(key_lengths);
  return p;
}

void Forward(const String& level, int64_t threads, double scale, bool bf16_products, TensorView q,
             TensorView k, TensorView v, TensorView weight, Optional<TensorView> prompt_ids,
             Optional<TensorView> offsets, Optional<TensorView> region,
             Optional<TensorView> key_lengths, TensorView out) {
  stal::BlendedAttentionParams p =
      MakeParams(scale, bf16_products, q, k, v, weight, prompt_ids, offsets, region, key_lengths);
  SetRows(out, &p.out);
  FindKernels(level).forward(stal::CallStorage(p, static_cast<int>(threads)).call);
}

void Backward(const String& level, int64_t threads, double scale, bool bf16_products,
              TensorView dout, TensorView q, TensorView k, TensorView v, TensorView weight,
              Optional<TensorView> prompt_ids, Optional<TensorView> offsets,
              Optional<TensorView> region, Optional<TensorView> key_lengths,
              Optional<TensorView> dq, Optional<TensorView> dweight, Optional<TensorView> dk,
              Optional<TensorView> dv) {
  stal::BlendedAttentionParams p =
      MakeParams(scale, bf16_products, q, k, v, weight, prompt_ids, offsets, region, key_lengths);
  SetRows(dout, &p.dout);
  if (dq.has_value()) SetRows(dq.value(), &p.dq);
  if (dweight.has_value()) SetWeights(dweight.value(), &p.dweight);
  if (dk.has_value()) SetKeys(dk.value(), &p.dk);
  if (dv.has_value()) SetKeys(dv.value(), &p.dv);
  const stal::Kernels& kernels = FindKernels(level);
  const stal::CallStorage storage(p, static_cast<int>(threads));
  if (p.dq.data || p.dweight.data) kernels.backward_q(storage.call);
  if (p.dk.data) kernels.backward_kv(storage.call);
}

Array<String> LevelNames() {
  Array<String> names;
  for (const stal::Level& level : stal::Levels()) names.push_back(level.name);
  return names;
}

String WhyNot(const String& name) {
  for (const stal::Level& level : stal::Levels()) {
    if (name == level.name) return level.why_not;
  }
  return "no such level";
}

void Exp2(const String& level, TensorView x, TensorView out) {
  FindKernels(level).exp2(static_cast<const float*>(x.data_ptr()),
                          static_cast<float*>(out.data_ptr()), x.numel());
}

// sum, a, b, out, rounded: 16 words each.
void Dot(const String& level, TensorView sum, TensorView a, TensorView b, TensorView out,
         TensorView rounded) {
  const auto dot = FindKernels(level).dot;
  if (!dot) TVM_FFI_THROW(ValueError) << "level must be one that multiplies pairs, got " << level;
  dot(static_cast<const float*>(sum.data_ptr()), static_cast<const uint32_t*>(a.data_ptr()),
      static_cast<const uint32_t*>(b.data_ptr()), static_cast<float*>(out.data_ptr()),
      static_cast<uint32_t*>(rounded.data_ptr()));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(forward, Forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(backward, Backward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(levels, LevelNames);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(why_not, WhyNot);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(exp2, Exp2);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(dot, Dot);
