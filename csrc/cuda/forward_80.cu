#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(, 80)

}  // namespace stal::cuda
