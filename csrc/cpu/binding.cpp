// What stal_kernels/backends/cpu.py calls. Nothing is taken for granted: the tensors are checked in
// check_arguments.h, the values of index tensors and plans in call_storage.cpp, in both passes,
// those of packs in pack.h.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/call_storage.h"
#include "cpu/levels.h"
#include "cpu/pack.h"
#include "read_tensors.h"

namespace {

using stal::DTypeOf;
using stal::Indices;
using stal::OptionalTensor;
using stal::SetSizes;
using stal::Translated;
using tvm::ffi::Array;
using tvm::ffi::String;
using tvm::ffi::TensorView;

const stal::Kernels& FindKernels(const String& name) {
  for (const stal::Level& level : stal::Levels()) {
    if (name == level.name && level.why_not.empty()) return *level.kernels;
  }
  TVM_FFI_THROW(ValueError) << "level must be one that runs on this machine, got " << name;
}

// A pack, whose tensors are (batch, prompts, ..), without batch in the ragged form.
stal::Pack PackOf(bool ragged, const TensorView& words, const TensorView& stamp,
                  const TensorView& sample) {
  const int first = ragged ? 0 : 1;
  const auto strides = [&](const TensorView& x, bool heads, bool rows) -> stal::Strides {
    return {first ? x.stride(0) : 0, x.stride(first), heads ? x.stride(first + 1) : 0,
            rows ? x.stride(first + 2) : 0};
  };
  return {{words.data_ptr(), strides(words, true, false)},
          {static_cast<int32_t*>(stamp.data_ptr()), strides(stamp, false, false)},
          {sample.data_ptr(), strides(sample, true, true)}};
}

void CheckThreads(int64_t threads) {
  if (threads < 1 || threads > std::numeric_limits<int>::max()) {
    stal::Refuse("threads", "be a positive int", threads);
  }
}

// The arguments that both passes have in common, checked.
class Arguments {
 public:
  Arguments(const String& level, int64_t threads, double scale, bool bf16_products,
            const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& weight,
            const OptionalTensor& prompt_ids, const OptionalTensor& offsets,
            const OptionalTensor& region, const OptionalTensor& key_lengths,
            const OptionalTensor& order, const OptionalTensor& tiles, const OptionalTensor& planned)
      : kernels(FindKernels(level)),
        sizes(q, k, v, weight, prompt_ids, offsets, region, key_lengths, order, tiles, planned) {
    CheckThreads(threads);
    params.scale = static_cast<float>(scale);
    if (!std::isfinite(params.scale)) stal::Refuse("scale", "be finite in float32", scale);
    SetSizes(sizes, DTypeOf(q), bf16_products, &params);
    SetRows(q, &params.q);
    SetKeys(k, &params.k);
    SetKeys(v, &params.v);
    SetWeights(weight, &params.weight);
    if (region.has_value()) SetWeights(region.value(), &params.region);
    params.prompt_ids = Indices(prompt_ids);
    params.offsets = Indices(offsets);
    params.key_lengths = Indices(key_lengths);
    if (order.has_value()) {
      params.order.data = Indices(order);
      params.order.strides = {order.value().stride(0), 0, 0, order.value().stride(1)};
      SetWeights(planned.value(), &params.planned);
    }
  }

  // What is written: out, dq; dk, dv; dweight.
  void WriteRows(const char* name, const TensorView& x, stal::Strided<void*>* to) const {
    sizes.CheckRows(name, x);
    stal::CheckApart(name, x);
    SetRows(x, to);
  }
  void WriteKeys(const char* name, const TensorView& x, stal::Strided<void*>* to) const {
    sizes.CheckKeys(name, x);
    stal::CheckApart(name, x);
    SetKeys(x, to);
  }
  void WriteWeights(const char* name, const TensorView& x, stal::Strided<float*>* to) const {
    sizes.CheckWeights(name, x);
    stal::CheckDType(name, x, stal::kSingle);
    stal::CheckApart(name, x);
    SetWeights(x, to);
  }

  const stal::Kernels& kernels;
  const stal::Sizes sizes;
  stal::BlendedAttentionParams params{};
};

void CheckWords(const stal::Kernels& kernels, const stal::BlendedAttentionParams& params,
                const TensorView& words) {
  const int64_t count = kernels.packed_words(params);
  if (words.size(-1) != count) {
    stal::Refuse("packed's words", "be " + std::to_string(count) + " of a prompt and head",
                 words.size(-1));
  }
}

void Forward(const String& level, int64_t threads, double scale, bool bf16_products, TensorView q,
             TensorView k, TensorView v, TensorView weight, OptionalTensor prompt_ids,
             OptionalTensor offsets, OptionalTensor region, OptionalTensor key_lengths,
             OptionalTensor order, OptionalTensor tiles, OptionalTensor planned,
             OptionalTensor words, OptionalTensor stamp, OptionalTensor sample, TensorView out) {
  Translated([&] {
    Arguments arguments(level, threads, scale, bf16_products, q, k, v, weight, prompt_ids, offsets,
                        region, key_lengths, order, tiles, planned);
    arguments.WriteRows("out", out, &arguments.params.out);
    stal::Pack pack;
    if (words.has_value() || stamp.has_value() || sample.has_value()) {
      if (!words.has_value() || !stamp.has_value() || !sample.has_value()) {
        stal::Refuse("packed", "have words, stamp and sample", "some of them");
      }
      arguments.sizes.CheckPack(words.value(), stamp.value(), sample.value());
      pack = PackOf(arguments.sizes.ragged, words.value(), stamp.value(), sample.value());
      arguments.params.packed = pack.words;
    }
    const stal::CallStorage storage(arguments.params, static_cast<int>(threads));
    if (words.has_value()) {
      stal::CheckStamps(storage.call, arguments.kernels, pack);
      CheckWords(arguments.kernels, arguments.params, words.value());
    }
    arguments.kernels.forward(storage.call);
  });
}

// Of one prompt and head, before there is a tensor.
int64_t PackedWords(const String& level, const String& dtype, bool bf16_products, int64_t seqlen_k,
                    int64_t head_dim) {
  int64_t count = 0;
  Translated([&] {
    constexpr int64_t kMost = int64_t{1} << 48;  // of keys; far from where integers overflow
    stal::BlendedAttentionParams params{};
    params.dtype = dtype == "float32"    ? stal::DType::kFloat32
                   : dtype == "bfloat16" ? stal::DType::kBFloat16
                                         : stal::DType::kFloat16;
    params.bf16_products = bf16_products;
    params.seqlen_k = seqlen_k;
    params.head_dim = head_dim;
    if (seqlen_k < 0 || seqlen_k > kMost) stal::Refuse("seqlen_k", "be in memory", seqlen_k);
    if (head_dim < 8 || head_dim > 256) stal::Refuse("head_dim", "be in 8 .. 256", head_dim);
    count = FindKernels(level).packed_words(params);
  });
  return count;
}

// k, v: (table, heads, seqlen_k, head_dim). Writes the rest: a pack.
void MakePack(const String& level, int64_t threads, bool bf16_products, TensorView k, TensorView v,
              OptionalTensor key_lengths, TensorView words, TensorView stamp, TensorView sample) {
  Translated([&] {
    const stal::Kernels& kernels = FindKernels(level);
    CheckThreads(threads);
    const stal::Sizes sizes(k, v, key_lengths);
    sizes.CheckPack(words, stamp, sample);
    stal::BlendedAttentionParams params{};
    SetSizes(sizes, DTypeOf(k), bf16_products, &params);
    CheckWords(kernels, params, words);
    stal::CheckApart("packed's words", words);
    stal::CheckApart("packed's stamp", stamp);
    stal::CheckApart("packed's sample", sample);
    const stal::Pack pack = PackOf(true, words, stamp, sample);
    std::vector<int32_t> ids(sizes.prompts);
    std::iota(ids.begin(), ids.end(), 0);
    const int32_t offsets[] = {0, static_cast<int32_t>(sizes.prompts)};
    SetKeys(k, &params.k);
    SetKeys(v, &params.v);
    params.prompt_ids = ids.data();
    params.offsets = offsets;
    params.key_lengths = Indices(key_lengths);
    params.packed = pack.words;
    const stal::CallStorage storage(params, static_cast<int>(threads));
    stal::WriteStamps(storage.call, kernels, pack);
    if (params.packed.data) kernels.pack(storage.call);
  });
}

void Backward(const String& level, int64_t threads, double scale, bool bf16_products,
              TensorView dout, TensorView q, TensorView k, TensorView v, TensorView weight,
              OptionalTensor prompt_ids, OptionalTensor offsets, OptionalTensor region,
              OptionalTensor key_lengths, OptionalTensor order, OptionalTensor tiles,
              OptionalTensor planned, OptionalTensor dq, OptionalTensor dweight,
              OptionalTensor dk, OptionalTensor dv) {
  Translated([&] {
    Arguments arguments(level, threads, scale, bf16_products, q, k, v, weight, prompt_ids, offsets,
                        region, key_lengths, order, tiles, planned);
    stal::BlendedAttentionParams& p = arguments.params;
    arguments.sizes.CheckRows("dout", dout);
    SetRows(dout, &p.dout);
    if (dq.has_value()) arguments.WriteRows("dq", dq.value(), &p.dq);
    if (dweight.has_value()) arguments.WriteWeights("dweight", dweight.value(), &p.dweight);
    if (dk.has_value() != dv.has_value()) stal::Refuse("dk", "come with dv", "one of them");
    if (dk.has_value()) {
      arguments.WriteKeys("dk", dk.value(), &p.dk);
      arguments.WriteKeys("dv", dv.value(), &p.dv);
    }
    const stal::CallStorage storage(p, static_cast<int>(threads));
    arguments.kernels.backward(storage.call);
  });
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

// Those below are for tests.
Array<String> LevelOrder(const String& vendor) {
  Array<String> names;
  for (const std::string& name : stal::LevelOrder(vendor)) names.push_back(name);
  return names;
}

const void* Words(const char* name, const TensorView& x, int64_t count, bool single) {
  stal::CheckDims(name, x, 1, "(count,)");
  stal::CheckMemory(name, x, {count}, true);
  stal::CheckDType(name, x, single ? stal::kSingle : stal::kIndex);
  return x.data_ptr();
}

void Exp2(const String& level, TensorView x, TensorView out) {
  Translated([&] {
    const auto& kernels = FindKernels(level);
    stal::CheckDims("x", x, 1, "(count,)");
    const auto* in = static_cast<const float*>(Words("x", x, x.size(0), true));
    void* written = const_cast<void*>(Words("out", out, x.size(0), true));
    kernels.exp2(in, static_cast<float*>(written), x.size(0));
  });
}

// sum, a, b, out, rounded: 16 words each.
void Dot(const String& level, TensorView sum, TensorView a, TensorView b, TensorView out,
         TensorView rounded) {
  Translated([&] {
    const auto dot = FindKernels(level).dot;
    if (!dot) stal::Refuse("level", "be one that multiplies pairs", level);
    const auto words = [](const char* name, const TensorView& x) {
      return const_cast<uint32_t*>(static_cast<const uint32_t*>(Words(name, x, 16, false)));
    };
    const auto floats = [](const char* name, const TensorView& x) {
      return const_cast<float*>(static_cast<const float*>(Words(name, x, 16, true)));
    };
    dot(floats("sum", sum), words("a", a), words("b", b), floats("out", out),
        words("rounded", rounded));
  });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(forward, Forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(backward, Backward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(packed_words, PackedWords);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack, MakePack);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(levels, LevelNames);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(why_not, WhyNot);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(level_order, LevelOrder);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(exp2, Exp2);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(dot, Dot);
