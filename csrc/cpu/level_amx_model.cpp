#define STAL_LEVEL_AMX
#define STAL_MODEL
#include "cpu/kernel_bf16.h"

const stal::Kernels stal::kAmxModel = {"amx_model",
                                       ForwardOrBase<stal::kPortable>,
                                       BackwardOrBase<stal::kPortable>,
                                       PackedWordsOrBase<stal::kPortable>,
                                       PackOrBase<stal::kPortable>,
                                       Exp2All,
                                       DotAll};
