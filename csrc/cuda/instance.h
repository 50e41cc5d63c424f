// How the host starts the kernel of one dtype and head_dim. A .cu file for each head_dim holds its
// instances, so that they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/kernel.h"

namespace stal::cuda {

template <typename T, int HeadDim>
cudaError_t launch_instance(ForwardParams params, int blocks, cudaStream_t stream) {
  using X = Traits<HeadDim>;
  const void* kernel = reinterpret_cast<const void*>(&forward<T, HeadDim>);
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  // More than 48 KB of shared memory must be asked for, once on each device.
  static std::atomic<uint64_t> ready{0};
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (!(ready.load(std::memory_order_acquire) & bit)) {
    if (const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, X::kSharedBytes)) {
      return error;
    }
    ready.fetch_or(bit, std::memory_order_release);
  }
  void* arguments[] = {&params};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(X::kThreads), arguments, X::kSharedBytes,
                          stream);
}

#define STAL_INSTANCES(word, head_dim)                                                           \
  word template cudaError_t launch_instance<Float16, head_dim>(ForwardParams, int, cudaStream_t); \
  word template cudaError_t launch_instance<BFloat16, head_dim>(ForwardParams, int, cudaStream_t);

}  // namespace stal::cuda
