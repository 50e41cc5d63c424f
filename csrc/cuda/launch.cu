#include "cuda/launch.h"

#include <climits>

#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(extern, 40)
STAL_INSTANCES(extern, 64)
STAL_INSTANCES(extern, 80)
STAL_INSTANCES(extern, 128)
STAL_INSTANCES(extern, 160)

namespace {

template <typename T>
cudaError_t launch(const ForwardParams& params, int64_t head_dim, int blocks, cudaStream_t stream) {
  switch (head_dim) {
    case 40: return launch_instance<T, 40>(params, blocks, stream);
    case 64: return launch_instance<T, 64>(params, blocks, stream);
    case 80: return launch_instance<T, 80>(params, blocks, stream);
    case 128: return launch_instance<T, 128>(params, blocks, stream);
    case 160: return launch_instance<T, 160>(params, blocks, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

const char* launch_forward(const BlendedAttentionParams& params, int multiprocessors,
                           void* stream) {
  if (const char* reason = too_large(params)) return reason;
  const int blocks = blocks_of(params, multiprocessors);
  if (blocks == 0) return nullptr;
  const ForwardParams p = to_device(params, blocks);
  cudaStream_t in = static_cast<cudaStream_t>(stream);
  const cudaError_t error = params.dtype == DType::kBFloat16
                                ? launch<BFloat16>(p, params.head_dim, blocks, in)
                                : launch<Float16>(p, params.head_dim, blocks, in);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace stal::cuda
