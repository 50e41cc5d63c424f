// The formula of blended_attention.h and its gradients in double precision, and how far a kernel
// may be from each value.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "case.h"

namespace stal::test {

// Values in logical order (batch, prompt, head, row, column), of SizesOf the tensor.
struct Exact {
  std::vector<double> value, slack;
};

// `inputs` holds q, k, v, weight and dout by name, in logical order. What no present entry attends
// to is not read and may be NaN. `region` holds one value for each weight; empty: all present.
//
// The slack is a bound for each element, not a guess: the kernel's scores, softmax and sums are
// those of float32, and it may round probabilities, their gradient and the result to the dtype, and
// flush what is smaller than the smallest normal float32 times the next power of two above the
// number of keys. It is infinite where that says nothing. `unit`: a kernel may also round
// exp(score - the row's greatest) to multiples of it.
std::map<std::string, Exact> ComputeExact(const Case& c,
                                          const std::map<std::string, std::vector<double>>& inputs,
                                          const std::vector<uint8_t>& region, double unit = 0);

}  // namespace stal::test
