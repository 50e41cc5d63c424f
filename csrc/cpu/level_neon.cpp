#define STAL_LEVEL_NEON
#include "cpu/kernel.h"

const stal::Kernels stal::kNeon = {"neon", Forward, BackwardQ, BackwardKV,
                                   PackedWords, Pack, Exp2All};
