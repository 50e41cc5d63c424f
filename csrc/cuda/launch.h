// What the host calls: blended attention's forward pass on one Hopper GPU (sm_90a).
#pragma once

#include <cstdint>

#include "blended_attention.h"

namespace stal::cuda {

// Entries that one batch element may have: their keys and values lie in shared memory at once.
// 0 where there is no kernel for this head_dim.
int most_entries(int64_t head_dim);

// Puts the kernel into `stream`, a cudaStream_t of the current device, which has
// `multiprocessors` of them; with fewer the result is the same to rounding. Nothing is allocated
// and nothing waits, so that a CUDA graph may capture it. Returns null, or why nothing was put
// there: a message for people.
//
// What the caller has checked: the device is of compute capability 9.0; dtype is float16 or
// bfloat16; head_dim is 40, 64, 80, 128 or 160; seqlen_k is at most 80; rows of q, k, v and out
// begin at multiples of 16 bytes, that is, data pointers are multiples of 16 bytes and strides
// of 8 elements (0 too); no element has more than most_entries(head_dim) entries. A ragged
// element that has more, which the host cannot see, ends in a trap.
const char* launch_forward(const BlendedAttentionParams& params, int multiprocessors, void* stream);

}  // namespace stal::cuda
