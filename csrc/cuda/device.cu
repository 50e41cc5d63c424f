// The machine, by CUDA's runtime, which is linked statically: where there is no driver the library
// loads all the same, and the calls below say so.
#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace stal::cuda {
namespace {

constexpr int kDlpackCuda = 2;  // kDLCUDA of dlpack.h

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

}  // namespace

int DeviceType() { return kDlpackCuda; }

int DriverVersion() {
  static const int kVersion = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
  }();
  return kVersion;
}

int ToolkitVersion() { return CUDART_VERSION; }

int Capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return 10 * major + minor;
}

int Multiprocessors(int device) {
  int count = 0;
  Check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return count;
}

CurrentDevice::CurrentDevice(int device) : before_(device), device_(device) {
  Check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != device_) Check(cudaSetDevice(device_), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace stal::cuda
