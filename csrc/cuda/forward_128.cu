#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(, 128)

}  // namespace stal::cuda
