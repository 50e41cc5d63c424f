#include "cpu/kernel.h"

const stal::Kernels stal::kPortable = {"portable", Forward, Backward, PackedWords, Pack, Exp2All};
