// The forward kernel of csrc/cuda in the emulator.
#pragma once

#include <cstdint>
#include <vector>

#include "blended_attention.h"
#include "test/cuda/block.h"

namespace stal::emulator {

// As cuda::launch_forward with so many multiprocessors; every tensor is the bytes that its sizes
// and strides span, and nothing else may be touched. Throws Error.
// products: gets what warpgroups multiply, in order.
void Forward(const BlendedAttentionParams& params, int multiprocessors, uint64_t seed,
             std::vector<Product>* products = nullptr);

}  // namespace stal::emulator
