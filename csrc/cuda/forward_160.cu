#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(, 160)

}  // namespace stal::cuda
