#define STAL_LEVEL_AVX512_BF16
#define STAL_MODEL
#include "cpu/kernel_bf16.h"

const stal::Kernels stal::kAvx512Bf16Model = {"avx512_bf16_model",
                                              ForwardOrBase<stal::kPortable>,
                                              BackwardOrBase<stal::kPortable>,
                                              PackedWordsOrBase<stal::kPortable>,
                                              PackOrBase<stal::kPortable>,
                                              Exp2All,
                                              DotAll};
