// One call of the kernels, as one line of text.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "blended_attention.h"

namespace stal::test {

// The line holds key=value pairs: the fields below by name, and a pair for each tensor, whose value
// is its strides `batch,prompt,head,row`. tests/stal_kernels/test_sanitizers.py writes such lines,
// and so does the driver for a case that fails. Lists are separated by commas.
struct Case {
  std::string name;
  DType dtype = DType::kFloat32;
  float scale = 1;
  int64_t batch = 1, heads = 1, seqlen_q = 1, seqlen_k = 1, head_dim = 8, prompts = 1;
  bool ragged = false;
  std::vector<int32_t> prompt_ids, offsets;         // ragged only
  std::optional<std::vector<int32_t>> key_lengths;  // ragged only
  std::optional<std::string> region;                // (entries, seqlen_q), a 0 or 1 each
  std::string values = "normal";                    // what q, k, v and dout hold: see Fill
  uint64_t seed = 0;                                // of the values, and of where buffers start
  std::map<std::string, Strides> strides;           // by name: q, k, v, weight, region, dout, ...

  int64_t entries() const { return ragged ? prompt_ids.size() : batch * prompts; }
};

// (batch, prompt, head, row, column) of a tensor by name; dimensions that it lacks are 1.
std::array<int64_t, 5> SizesOf(const Case& c, const std::string& tensor);

// Throw std::invalid_argument.
Case ParseCase(const std::string& line);
std::string FormatCase(const Case& c);

// A case of any shape, strides, dtype, region and values; equal seeds draw equal cases.
Case DrawCase(uint64_t seed);

// splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t Integer(int64_t low, int64_t high) { return low + Next() % (high - low + 1); }
  double Uniform() { return (Next() >> 11) * 0x1p-53; }
  bool Chance(double probability) { return Uniform() < probability; }
  // Of mean 0 and variance 1, never beyond 3.5.
  double Bell() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += Uniform();
    return (sum - 2) * 1.7320508;
  }

 private:
  uint64_t state_;
};

inline constexpr const char* kInputs[] = {"q", "k", "v", "weight", "region", "dout"};
inline constexpr const char* kOutputs[] = {"out", "dq", "dweight", "dk", "dv"};

}  // namespace stal::test
