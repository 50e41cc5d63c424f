#define STAL_LEVEL_AVX512
#define STAL_LEVEL_AVX512_BF16
#include "cpu/kernel_bf16.h"

const stal::Kernels stal::kAvx512Bf16 = {"avx512_bf16",
                                         ForwardOrBase<stal::kAvx512>,
                                         BackwardOrBase<stal::kAvx512>,
                                         PackedWordsOrBase<stal::kAvx512>,
                                         PackOrBase<stal::kAvx512>,
                                         Exp2All,
                                         DotAll};
