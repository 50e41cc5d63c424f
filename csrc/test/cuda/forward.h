// The forward kernel of csrc/cuda in the emulator.
#pragma once

#include <cstdint>

#include "blended_attention.h"

namespace stal::emulator {

// As cuda::launch_forward with so many multiprocessors; every tensor is the bytes that its sizes
// and strides span, and nothing else may be touched. Throws Error.
void Forward(const BlendedAttentionParams& params, int multiprocessors, uint64_t seed);

}  // namespace stal::emulator
