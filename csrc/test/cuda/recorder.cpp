// In the place of the kernel and of the machine: keeps what the binding hands over, on a machine as
// a test wants it. With csrc/cuda/binding.cpp it is a library that stal_kernels can load.
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace {

using tvm::ffi::Map;
using tvm::ffi::String;

struct Machine {
  int64_t device_type = 1;  // kDLCPU
  int64_t driver = 13000;
  int64_t toolkit = 13000;
  int64_t capability = 90;
  int64_t devices = 2;
  int64_t current = 0;
  std::string refusal;  // what the launch says
} machine;

Map<String, int64_t> call;
int64_t calls = 0;
bool keeps = true;

int64_t Address(const void* pointer) { return reinterpret_cast<intptr_t>(pointer); }

template <typename Pointer>
void Keep(const std::string& name, const stal::Strided<Pointer>& x) {
  call.Set(name, Address(x.data));
  call.Set(name + ".batch", x.strides.batch);
  call.Set(name + ".prompt", x.strides.prompt);
  call.Set(name + ".head", x.strides.head);
  call.Set(name + ".row", x.strides.row);
}

void Configure(int64_t device_type, int64_t driver, int64_t toolkit, int64_t capability,
               int64_t devices, int64_t current, String refusal) {
  machine = {device_type, driver, toolkit, capability, devices, current, refusal};
}

// Without it a call costs no more than a launch that does nothing, for benchmarks.
void Keeps(bool value) { keeps = value; }

int64_t Current() { return machine.current; }
int64_t Calls() { return calls; }
Map<String, int64_t> Call() { return call; }

}  // namespace

namespace stal::cuda {

int DeviceType() { return static_cast<int>(machine.device_type); }
int DriverVersion() { return static_cast<int>(machine.driver); }
int ToolkitVersion() { return static_cast<int>(machine.toolkit); }

int Capability(int device) {
  return device < machine.devices ? static_cast<int>(machine.capability) : 0;
}

int Multiprocessors(int device) { return 132 + device; }

CurrentDevice::CurrentDevice(int device)
    : before_(static_cast<int>(machine.current)), device_(device) {
  machine.current = device_;
}

CurrentDevice::~CurrentDevice() { machine.current = before_; }

const char* launch_forward(const BlendedAttentionParams& p, int multiprocessors, void* stream) {
  ++calls;
  if (!keeps) return nullptr;
  call = {};
  call.Set("device", machine.current);
  call.Set("multiprocessors", multiprocessors);
  call.Set("stream", Address(stream));
  call.Set("dtype", static_cast<int64_t>(p.dtype));
  call.Set("scale", static_cast<int64_t>(p.scale * 1024));
  call.Set("ragged", p.ragged);
  call.Set("batch", p.batch);
  call.Set("heads", p.heads);
  call.Set("seqlen_q", p.seqlen_q);
  call.Set("seqlen_k", p.seqlen_k);
  call.Set("head_dim", p.head_dim);
  call.Set("prompts", p.prompts);
  call.Set("entries", p.entries);
  Keep("q", p.q);
  Keep("k", p.k);
  Keep("v", p.v);
  Keep("weight", p.weight);
  Keep("region", p.region);
  Keep("order", p.order);
  Keep("out", p.out);
  call.Set("prompt_ids", Address(p.prompt_ids));
  call.Set("offsets", Address(p.offsets));
  call.Set("key_lengths", Address(p.key_lengths));
  call.Set("tiles", Address(p.tiles));
  return machine.refusal.empty() ? nullptr : machine.refusal.c_str();
}

}  // namespace stal::cuda

TVM_FFI_DLL_EXPORT_TYPED_FUNC(configure, Configure);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(keeps, Keeps);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(current_device, Current);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(calls, Calls);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(call, Call);
