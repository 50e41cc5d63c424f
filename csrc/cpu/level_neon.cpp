#define STAL_LEVEL_NEON
#include "cpu/kernel.h"

const stal::Kernels stal::kNeon = {"neon", Forward, Backward, PackedWords, Pack, Exp2All};
