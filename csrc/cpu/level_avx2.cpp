#define STAL_LEVEL_AVX2
#include "cpu/kernel.h"

const stal::Kernels stal::kAvx2 = {"avx2", Forward, Backward, PackedWords, Pack, Exp2All};
