#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(, 64)

}  // namespace stal::cuda
