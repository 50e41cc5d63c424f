// What stal_kernels/backends/cuda.py calls. Shapes, dtypes, devices, strides and addresses are
// checked before anything is launched; nothing is allocated and nothing waits for the GPU. Hence
// the values of offsets, prompt_ids, key_lengths and of a plan are taken as they are. Whether a
// stream is one of q's device only CUDA knows, which refuses the launch otherwise; that a stream or
// an address is still alive nobody can tell.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/params.h"
#include "read_tensors.h"

namespace {

using stal::OptionalTensor;
using stal::Refuse;
using tvm::ffi::String;
using tvm::ffi::TensorView;

constexpr int64_t kHeadDims[] = {40, 64, 80, 128, 160};
constexpr int kCapability = 90;
constexpr int64_t kAlignment = 16;  // bytes

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Within one major version of CUDA a driver runs what newer toolkits built for a GPU.
std::string WhyNot() {
  const int driver = stal::cuda::DriverVersion();
  const int major = stal::cuda::ToolkitVersion() / 1000;
  if (driver == 0) return "no NVIDIA driver was found";
  if (driver / 1000 >= major) return "";
  return "the NVIDIA driver must support CUDA " + std::to_string(major) + ".0 or later, got CUDA " +
         VersionText(driver) + "; update it, or build with an older toolkit";
}

void CheckDevice(const TensorView& q, DLDevice* device) {
  *device = q.device();
  if (device->device_type != stal::cuda::DeviceType()) {
    Refuse("q", "be on a CUDA device", stal::Text(*device));
  }
  if (const std::string reason = WhyNot(); !reason.empty()) throw std::runtime_error(reason);
  const int capability = stal::cuda::Capability(device->device_id);
  if (capability == 0) Refuse("q", "be on a GPU of this machine", stal::Text(*device));
  if (capability != kCapability) {
    Refuse("q's GPU", "be of compute capability 9.0",
           std::to_string(capability / 10) + "." + std::to_string(capability % 10));
  }
}

std::string AddressText(const void* address) {
  std::ostringstream text;
  text << address;
  return text.str();
}

void CheckAddress(const char* name, const void* address, int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    Refuse(name, "begin at a multiple of " + std::to_string(bytes) + " bytes",
           AddressText(address));
  }
}

void CheckStride(const char* name, int64_t stride, int64_t bytes) {
  if (stride * bytes % kAlignment != 0) {
    Refuse(name, "have strides of multiples of " + std::to_string(kAlignment) + " bytes",
           std::to_string(stride) + " elements of " + std::to_string(bytes) +
               " bytes; use .contiguous()");
  }
}

// What is copied 16 bytes at a time.
template <typename Pointer>
void CheckAligned(const char* name, const stal::Strided<Pointer>& x, int64_t bytes) {
  CheckAddress(name, x.data, kAlignment);
  const stal::Strides& strides = x.strides;
  for (int64_t stride : {strides.row, strides.head, strides.prompt, strides.batch}) {
    CheckStride(name, stride, bytes);
  }
}

// A dimension of one element has no stride that counts.
void DropUnused(const stal::BlendedAttentionParams& params, int64_t prompts, int64_t rows,
                stal::Strides* strides) {
  if (params.batch == 1) strides->batch = 0;
  if (prompts == 1) strides->prompt = 0;
  if (params.heads == 1) strides->head = 0;
  if (rows == 1) strides->row = 0;
}

void CheckKernel(const stal::BlendedAttentionParams& params, const TensorView& q) {
  if (params.dtype == stal::DType::kFloat32) {
    Refuse("q", "be float16 or bfloat16", stal::Text(q.dtype()));
  }
  bool known = false;
  for (int64_t head_dim : kHeadDims) known = known || head_dim == params.head_dim;
  if (!known) Refuse("q", "have a head_dim of 40, 64, 80, 128 or 160", params.head_dim);
  if (params.seqlen_k > stal::cuda::kKeys) {
    Refuse("k", "have a seqlen_k of at most " + std::to_string(stal::cuda::kKeys), params.seqlen_k);
  }
}

// False: nothing was launched, since one of the sizes is 0; out is 0 everywhere.
bool Forward(int64_t stream, double scale, TensorView q, TensorView k, TensorView v,
             TensorView weight, OptionalTensor prompt_ids, OptionalTensor offsets,
             OptionalTensor region, OptionalTensor key_lengths, OptionalTensor order,
             OptionalTensor tiles, OptionalTensor planned, TensorView out) {
  bool launched = false;
  stal::Translated([&] {
    DLDevice device;
    CheckDevice(q, &device);
    const stal::Sizes sizes(q, k, v, weight, prompt_ids, offsets, region, key_lengths, order, tiles,
                            planned, device);
    sizes.CheckRows("out", out);
    stal::CheckApart("out", out);
    stal::BlendedAttentionParams params{};
    params.scale = static_cast<float>(scale);
    if (!std::isfinite(params.scale)) Refuse("scale", "be finite in float32", scale);
    SetSizes(sizes, stal::DTypeOf(q), false, &params);
    CheckKernel(params, q);
    const int64_t entries = sizes.ragged ? sizes.entries : sizes.prompts;
    for (int64_t size : {sizes.batch, sizes.seqlen_q, sizes.seqlen_k, sizes.prompts, entries}) {
      if (size == 0) return;
    }
    if (const char* rule = stal::cuda::too_large(params)) {
      throw std::invalid_argument(rule + std::string(", got ") +
                                  stal::Text(q.shape().data(), q.ndim()) + " and " +
                                  std::to_string(entries) + " entries");
    }

    SetRows(q, &params.q);
    SetKeys(k, &params.k);
    SetKeys(v, &params.v);
    SetRows(out, &params.out);
    SetWeights(weight, &params.weight);
    DropUnused(params, 1, params.seqlen_q, &params.q.strides);
    DropUnused(params, sizes.prompts, sizes.seqlen_k, &params.k.strides);
    DropUnused(params, sizes.prompts, sizes.seqlen_k, &params.v.strides);
    DropUnused(params, 1, params.seqlen_q, &params.out.strides);
    DropUnused(params, entries, params.seqlen_q, &params.weight.strides);
    const int64_t bytes = q.dtype().bits / 8;
    CheckAligned("q", params.q, bytes);
    CheckAligned("k", params.k, bytes);
    CheckAligned("v", params.v, bytes);
    CheckAligned("out", params.out, bytes);
    CheckAddress("weight", params.weight.data, sizeof(float));
    if (region.has_value()) {
      SetWeights(region.value(), &params.region);
      DropUnused(params, entries, params.seqlen_q, &params.region.strides);
    }
    params.prompt_ids = stal::Indices(prompt_ids);
    params.offsets = stal::Indices(offsets);
    params.key_lengths = stal::Indices(key_lengths);
    CheckAddress("prompt_ids", params.prompt_ids, sizeof(int32_t));
    CheckAddress("offsets", params.offsets, sizeof(int32_t));
    CheckAddress("key_lengths", params.key_lengths, sizeof(int32_t));
    if (order.has_value()) {
      params.order.data = stal::Indices(order);
      params.order.strides = {order.value().stride(0), 0, 0, order.value().stride(1)};
      DropUnused(params, 1, params.seqlen_q, &params.order.strides);
      CheckAddress("plan's order", params.order.data, sizeof(int32_t));
      const TensorView words = tiles.value();
      if (!words.IsContiguous()) {
        Refuse("plan's tiles", "be contiguous", stal::Text(words.strides().data(), words.ndim()));
      }
      params.tiles = static_cast<const int64_t*>(words.data_ptr());
      CheckAddress("plan's tiles", params.tiles, sizeof(int64_t));
    }

    const stal::cuda::CurrentDevice current(device.device_id);
    void* handle = reinterpret_cast<void*>(static_cast<intptr_t>(stream));
    const int multiprocessors = stal::cuda::Multiprocessors(device.device_id);
    if (const char* error = stal::cuda::launch_forward(params, multiprocessors, handle)) {
      throw std::runtime_error("the kernel was not launched on " + stal::Text(device) +
                               ", to which stream " + AddressText(handle) + " must belong: " +
                               error);
    }
    launched = true;
  });
  return launched;
}

// "": it can run on this machine, on a GPU of the right kind.
String Missing() { return WhyNot(); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(forward, Forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(missing, Missing);
