// The CUDA library without CUDA: csrc/cuda/binding.cpp over the emulator, on tensors of the CPU,
// which stal_kernels can load in the other's place.
#include <tvm/ffi/function.h>

#include <cstdint>
#include <exception>
#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "test/cuda/forward.h"

namespace {

constexpr int kDlpackCpu = 1;  // kDLCPU of dlpack.h
int64_t multiprocessors = 2, seed = 0;

// order: by which lanes run, see emulator::Forward.
void Configure(int64_t blocks, int64_t order) {
  multiprocessors = blocks;
  seed = order;
}

}  // namespace

namespace stal::cuda {

int DeviceType() { return kDlpackCpu; }
int DriverVersion() { return 13000; }
int ToolkitVersion() { return 13000; }
int Capability(int) { return 90; }
int Multiprocessors(int) { return static_cast<int>(multiprocessors); }
CurrentDevice::CurrentDevice(int device) : before_(device), device_(device) {}
CurrentDevice::~CurrentDevice() {}

const char* launch_forward(const BlendedAttentionParams& params, int blocks, void*) {
  static std::string said;
  try {
    emulator::Forward(params, blocks, static_cast<uint64_t>(seed));
    return nullptr;
  } catch (const std::exception& error) {
    said = error.what();
    return said.c_str();
  }
}

}  // namespace stal::cuda

TVM_FFI_DLL_EXPORT_TYPED_FUNC(configure, Configure);
