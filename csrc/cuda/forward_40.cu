#include "cuda/instance.h"

namespace stal::cuda {

STAL_INSTANCES(, 40)

}  // namespace stal::cuda
