#define STAL_LEVEL_AVX512
#include "cpu/kernel.h"

const stal::Kernels stal::kAvx512 = {"avx512", Forward, Backward, PackedWords, Pack, Exp2All};
