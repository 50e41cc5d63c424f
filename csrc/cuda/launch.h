// What the host calls: blended attention's forward pass on one Hopper GPU (sm_90a).
#pragma once

#include "blended_attention.h"

namespace stal::cuda {

// Puts the kernel into `stream`, a cudaStream_t of the current device, which has
// `multiprocessors` of them; their number may change the last bits of a result. Nothing is
// allocated and nothing waits, so that a CUDA graph may capture it. Returns null, or why nothing
// was put there: a message for people.
//
// What the caller has checked: the device is of compute capability 9.0; dtype is float16 or
// bfloat16; head_dim is 40, 64, 80, 128 or 160; seqlen_k is at most 80; rows of q, k, v and out
// begin at multiples of 16 bytes, that is, data pointers are multiples of 16 bytes and strides
// of 8 elements (0 too).
const char* launch_forward(const BlendedAttentionParams& params, int multiprocessors, void* stream);

}  // namespace stal::cuda
