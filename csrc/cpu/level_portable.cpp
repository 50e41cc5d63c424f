#include "cpu/kernel.h"

const stal::Kernels stal::kPortable = {"portable", Forward, BackwardQ, BackwardKV, Exp2All};
