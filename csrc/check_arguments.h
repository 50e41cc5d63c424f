// What the tensors of a call must be: shape, dtype, device, strides. Whoever calls the library, a
// tensor that is wrong is an error here and never read or written. Values of index tensors and of
// plans are checked by CallStorage, which copies them, those of packs in pack.h.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/optional.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace stal {

using tvm::ffi::TensorView;
using OptionalTensor = tvm::ffi::Optional<TensorView>;

constexpr DLDataType kSingle = {kDLFloat, 32, 1};
constexpr DLDataType kIndex = {kDLInt, 32, 1};

// Throws std::invalid_argument.
template <typename Value>
[[noreturn]] void Refuse(const std::string& name, const std::string& rule, const Value& got) {
  std::ostringstream message;
  message << name << " must " << rule << ", got " << got;
  throw std::invalid_argument(message.str());
}

inline std::string Text(const int64_t* sizes, int64_t count) {
  std::ostringstream text;
  for (int64_t i = 0; i < count; ++i) text << (i ? ", " : "(") << sizes[i];
  text << (count == 0 ? "()" : count == 1 ? ",)" : ")");
  return text.str();
}

inline std::string Text(DLDataType dtype) {
  std::string kind = "a dtype of code " + std::to_string(dtype.code) + " and bits ";
  if (dtype.code == kDLInt) kind = "int";
  if (dtype.code == kDLUInt) kind = "uint";
  if (dtype.code == kDLFloat) kind = "float";
  if (dtype.code == kDLBfloat) kind = "bfloat";
  return dtype.code == kDLBool ? "bool" : kind + std::to_string(dtype.bits);
}

inline std::string Text(DLDevice device) {
  const char* names[] = {"?", "cpu", "cuda", "cuda_host"};
  const bool known = device.device_type >= kDLCPU && device.device_type <= kDLCUDAHost;
  const std::string id = std::to_string(device.device_id);
  if (known) return names[device.device_type] + (":" + id);
  return "device type " + std::to_string(device.device_type) + ", number " + id;
}

inline bool IsSame(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

inline void CheckDType(const char* name, const TensorView& x, DLDataType dtype) {
  if (!IsSame(x.dtype(), dtype)) Refuse(name, "be " + Text(dtype), Text(x.dtype()));
}

inline void CheckDims(const char* name, const TensorView& x, int dims, const char* shape) {
  if (x.ndim() != dims) {
    Refuse(name, std::string("have shape ") + shape, Text(x.shape().data(), x.ndim()));
  }
}

constexpr DLDevice kHost = {kDLCPU, 0};

// `place`: a GPU, or kHost, which pinned memory is part of.
inline void CheckPlace(const char* name, const TensorView& x, DLDevice place) {
  const DLDevice device = x.device();
  if (place.device_type == kDLCPU) {
    const DLDeviceType type = device.device_type;
    if (type != kDLCPU && type != kDLCUDAHost && type != kDLROCMHost) {
      Refuse(name, "be on the CPU", "device type " + std::to_string(type));
    }
  } else if (device.device_type != place.device_type || device.device_id != place.device_id) {
    Refuse(name, "be on " + Text(place), Text(device));
  }
}

// Shape, device and strides. `contiguous`: the last dimension must be.
inline void CheckMemory(const char* name, const TensorView& x, std::initializer_list<int64_t> shape,
                        bool contiguous, DLDevice place = kHost) {
  const int64_t dims = x.ndim(), count = static_cast<int64_t>(shape.size());
  const int64_t* sizes = x.shape().data();
  bool same = dims == count;
  for (int64_t i = 0; same && i < dims; ++i) same = sizes[i] == shape.begin()[i];
  if (!same) Refuse(name, "have shape " + Text(shape.begin(), count), Text(sizes, dims));
  CheckPlace(name, x, place);
  if (x.byte_offset() != 0) Refuse(name, "begin at its address", x.byte_offset());
  const int64_t* strides = x.strides().data();
  if (contiguous && sizes[dims - 1] > 1 && strides[dims - 1] != 1) {
    Refuse(name, "have a contiguous last dimension",
           "stride " + std::to_string(strides[dims - 1]) + "; use .contiguous()");
  }
  int64_t last = 0;  // the last element that has an address
  for (int64_t i = 0; i < dims; ++i) {
    if (sizes[i] == 0) return;  // nothing is read or written
    if (sizes[i] == 1) continue;
    if (strides[i] < 0) Refuse(name, "have no negative stride", Text(strides, dims));
    int64_t step;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) ||
        __builtin_add_overflow(last, step, &last) ||
        last > std::numeric_limits<int64_t>::max() / 8) {
      Refuse(name, "lie in memory", "strides " + Text(strides, dims));
    }
  }
  if (x.data_ptr() == nullptr) Refuse(name, "lie in memory", "an empty storage");
}

// For what is written: no two elements may share memory.
inline void CheckApart(const char* name, const TensorView& x) {
  std::pair<int64_t, int64_t> ascending[8];  // stride, size
  int count = 0;
  for (int i = 0; i < x.ndim(); ++i) {
    if (x.size(i) == 0) return;
    if (x.size(i) == 1) continue;
    int at = count++;
    for (; at > 0 && ascending[at - 1].first > x.stride(i); --at) ascending[at] = ascending[at - 1];
    ascending[at] = {x.stride(i), x.size(i)};
  }
  int64_t last = 0;
  for (int i = 0; i < count; ++i) {
    if (ascending[i].first <= last) {
      Refuse(name, "have elements that share no memory", Text(x.strides().data(), x.ndim()));
    }
    last += (ascending[i].second - 1) * ascending[i].first;
  }
}

// What a row of a pack's stamp holds: what the pack is made for, and the length of one prompt.
enum StampField { kLevel, kElements, kRounded, kSeqlenK, kHeadDim, kLength, kStampSize };

// The sizes of a call, which each of its tensors must have. Constructing them checks the inputs.
struct Sizes {
  bool ragged;
  int64_t batch, heads, seqlen_q, head_dim, seqlen_k;
  int64_t prompts;  // ragged: rows of the table
  int64_t entries;  // ragged only
  DLDataType dtype;
  DLDevice place = kHost;  // of all tensors

  Sizes(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& weight,
        const OptionalTensor& prompt_ids, const OptionalTensor& offsets,
        const OptionalTensor& region, const OptionalTensor& key_lengths,
        const OptionalTensor& order, const OptionalTensor& tiles, const OptionalTensor& planned,
        DLDevice place = kHost)
      : ragged(prompt_ids.has_value()), place(place) {
    if (ragged != offsets.has_value()) {
      Refuse("prompt_ids", "come with offsets", ragged ? "it alone" : "offsets alone");
    }
    if (!ragged && key_lengths.has_value()) {
      Refuse("key_lengths", "come with prompt_ids", "it alone");
    }
    CheckDims("q", q, 4, "(batch, heads, seqlen_q, head_dim)");
    CheckDims("k", k, ragged ? 4 : 5,
              ragged ? "(table, heads, seqlen_k, head_dim)"
                     : "(batch, prompts, heads, seqlen_k, head_dim)");
    if (ragged) CheckDims("prompt_ids", prompt_ids.value(), 1, "(entries,)");
    batch = q.size(0);
    heads = q.size(1);
    seqlen_q = q.size(2);
    head_dim = q.size(3);
    prompts = k.size(ragged ? 0 : 1);
    seqlen_k = k.size(-2);
    entries = ragged ? prompt_ids.value().size(0) : 0;
    dtype = q.dtype();
    CheckSupported("q", q);
    CheckRows("q", q);
    CheckKeys("k", k);
    CheckKeys("v", v);
    CheckWeights("weight", weight);
    CheckDType("weight", weight, kSingle);
    if (region.has_value()) {
      CheckWeights("region", region.value());
      const DLDataType found = region.value().dtype();
      if (!IsSame(found, {kDLBool, 8, 1}) && !IsSame(found, {kDLUInt, 8, 1})) {
        Refuse("region", "be bool", Text(found));
      }
    }
    if (order.has_value() || tiles.has_value() || planned.has_value()) {
      if (!region.has_value()) Refuse("plan", "come with region", "it alone");
      if (!order.has_value() || !tiles.has_value() || !planned.has_value()) {
        Refuse("plan", "have order, tiles and region", "some of them");
      }
      CheckMemory("plan's order", order.value(), {batch, seqlen_q}, false, place);
      CheckDType("plan's order", order.value(), kIndex);
      CheckMemory("plan's tiles", tiles.value(), {batch, (seqlen_q + 31) / 32}, false, place);
      CheckDType("plan's tiles", tiles.value(), {kDLInt, 64, 1});
      CheckWeights("plan's region", planned.value());
      CheckDType("plan's region", planned.value(), {kDLBool, 8, 1});
    }
    if (!ragged) return;
    CheckIndices("prompt_ids", prompt_ids.value(), entries);
    CheckIndices("offsets", offsets.value(), batch + 1);
    if (key_lengths.has_value()) CheckIndices("key_lengths", key_lengths.value(), prompts);
  }

  // Those of a table alone: a call without rows, of one element that attends to all of it.
  Sizes(const TensorView& k, const TensorView& v, const OptionalTensor& key_lengths)
      : ragged(true), batch(1), seqlen_q(0) {
    CheckDims("k", k, 4, "(table, heads, seqlen_k, head_dim)");
    prompts = entries = k.size(0);
    heads = k.size(1);
    seqlen_k = k.size(2);
    head_dim = k.size(3);
    dtype = k.dtype();
    CheckSupported("k", k);
    CheckKeys("k", k);
    CheckKeys("v", v);
    if (key_lengths.has_value()) CheckIndices("key_lengths", key_lengths.value(), prompts);
  }

  // Of a pack: all but the number of its words and the values of its stamp.
  void CheckPack(const TensorView& words, const TensorView& stamp, const TensorView& sample) const {
    CheckDims("packed's words", words, ragged ? 3 : 4, "(.., heads, words)");
    const int64_t count = words.size(-1);
    if (ragged) {
      CheckMemory("packed's words", words, {prompts, heads, count}, true);
      CheckMemory("packed's stamp", stamp, {prompts, kStampSize}, true);
      CheckMemory("packed's sample", sample, {prompts, heads, 2, head_dim}, true);
    } else {
      CheckMemory("packed's words", words, {batch, prompts, heads, count}, true);
      CheckMemory("packed's stamp", stamp, {batch, prompts, kStampSize}, true);
      CheckMemory("packed's sample", sample, {batch, prompts, heads, 2, head_dim}, true);
    }
    CheckDType("packed's words", words, kIndex);
    CheckDType("packed's stamp", stamp, kIndex);
    CheckDType("packed's sample", sample, dtype);
  }

  // q, out and their gradients.
  void CheckRows(const char* name, const TensorView& x) const {
    CheckMemory(name, x, {batch, heads, seqlen_q, head_dim}, true, place);
    CheckDType(name, x, dtype);
  }

  // k, v and their gradients.
  void CheckKeys(const char* name, const TensorView& x) const {
    if (ragged) {
      CheckMemory(name, x, {prompts, heads, seqlen_k, head_dim}, true, place);
    } else {
      CheckMemory(name, x, {batch, prompts, heads, seqlen_k, head_dim}, true, place);
    }
    CheckDType(name, x, dtype);
  }

  // weight, region, dweight; not their dtype.
  void CheckWeights(const char* name, const TensorView& x) const {
    if (ragged) {
      CheckMemory(name, x, {entries, seqlen_q}, false, place);
    } else {
      CheckMemory(name, x, {batch, prompts, seqlen_q}, false, place);
    }
  }

 private:
  // Of the first tensor of a call, whose heads and head_dim are those of all.
  void CheckSupported(const char* name, const TensorView& x) const {
    if (!IsSame(dtype, {kDLFloat, 16, 1}) && !IsSame(dtype, {kDLBfloat, 16, 1}) &&
        !IsSame(dtype, kSingle)) {
      Refuse(name, "be float16, bfloat16 or float32", Text(dtype));
    }
    if (heads < 1 || head_dim < 8 || head_dim > 256 || head_dim % 8) {
      Refuse(name, "have heads and a head_dim that is a multiple of 8 and at most 256",
             Text(x.shape().data(), 4));
    }
  }

  void CheckIndices(const char* name, const TensorView& x, int64_t count) const {
    CheckMemory(name, x, {count}, true, place);
    CheckDType(name, x, kIndex);
  }
};

}  // namespace stal
