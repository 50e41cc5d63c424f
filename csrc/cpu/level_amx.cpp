#define STAL_LEVEL_AVX512
#define STAL_LEVEL_AMX
#include "cpu/kernel_bf16.h"

const stal::Kernels stal::kAmx = {"amx",
                                  ForwardOrBase<stal::kAvx512>,
                                  BackwardOrBase<stal::kAvx512>,
                                  PackedWordsOrBase<stal::kAvx512>,
                                  PackOrBase<stal::kAvx512>,
                                  Exp2All,
                                  DotAll};
