#include "cpu/kernel.h"

const stal::Kernels stal::kPortable = {"portable", Forward, BackwardQ, BackwardKV,
                                       PackedWords, Pack, Exp2All};
