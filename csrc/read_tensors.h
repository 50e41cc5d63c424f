// From the tensors of a call, which have passed check_arguments.h, to BlendedAttentionParams; and
// from what C++ throws to Python's errors.
#pragma once

#include <tvm/ffi/error.h>

#include <new>
#include <stdexcept>

#include "blended_attention.h"
#include "check_arguments.h"

namespace stal {

// Calls body(); what it throws becomes an error of Python.
template <typename Body>
void Translated(const Body& body) {
  try {
    body();
  } catch (const std::invalid_argument& error) {
    TVM_FFI_THROW(ValueError) << error.what();
  } catch (const std::bad_alloc&) {
    TVM_FFI_THROW(MemoryError) << "blended_attention needs more memory than there is";
  } catch (const std::runtime_error& error) {
    TVM_FFI_THROW(RuntimeError) << error.what();
  }
}

inline DType DTypeOf(const TensorView& tensor) {
  switch (tensor.dtype().code) {
    case kDLBfloat:
      return DType::kBFloat16;
    default:
      return tensor.dtype().bits == 16 ? DType::kFloat16 : DType::kFloat32;
  }
}

// q, out, dout, dq: (batch, heads, seqlen_q, head_dim).
template <typename Pointer>
void SetRows(const TensorView& tensor, Strided<Pointer>* out) {
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {tensor.stride(0), 0, tensor.stride(1), tensor.stride(2)};
}

// k, v, dk, dv: (batch, prompts, heads, seqlen_k, head_dim), without batch in the ragged form.
template <typename Pointer>
void SetKeys(const TensorView& tensor, Strided<Pointer>* out) {
  const int first = tensor.ndim() - 4;
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {first ? tensor.stride(0) : 0, tensor.stride(first), tensor.stride(first + 1),
                  tensor.stride(first + 2)};
}

// weight, region, dweight: (batch, prompts, seqlen_q), without batch in the ragged form.
template <typename Pointer>
void SetWeights(const TensorView& tensor, Strided<Pointer>* out) {
  const int first = tensor.ndim() - 2;
  out->data = static_cast<Pointer>(tensor.data_ptr());
  out->strides = {first ? tensor.stride(0) : 0, tensor.stride(first), 0, tensor.stride(first + 1)};
}

inline void SetSizes(const Sizes& sizes, DType dtype, bool bf16_products,
                     BlendedAttentionParams* params) {
  params->dtype = dtype;
  params->bf16_products = bf16_products;
  params->ragged = sizes.ragged;
  params->batch = sizes.batch;
  params->heads = sizes.heads;
  params->seqlen_q = sizes.seqlen_q;
  params->head_dim = sizes.head_dim;
  params->seqlen_k = sizes.seqlen_k;
  params->prompts = sizes.prompts;
  params->entries = sizes.entries;
}

inline const int32_t* Indices(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const int32_t*>(tensor.value().data_ptr()) : nullptr;
}

}  // namespace stal
