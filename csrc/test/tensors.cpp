#include "tensors.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <vector>

namespace stal::test {

int64_t ElementSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

double Decode(const char* p, DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, p, ElementSize(dtype));
  if (dtype == DType::kFloat16) {
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    double x = std::ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    if (exponent == 31) x = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
    return bits >> 15 ? -x : x;
  }
  if (dtype == DType::kBFloat16) bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void Encode(double x, DType dtype, char* p) {
  if (dtype == DType::kFloat16) {
    uint16_t bits = std::isnan(x) ? 0x7e00 : 0x7bff;
    const double magnitude = std::fabs(x);
    if (magnitude < 0x1p-14) {
      bits = static_cast<uint16_t>(std::ldexp(magnitude, 24));
    } else if (magnitude < 65504) {
      const int exponent = std::ilogb(magnitude);
      const double fraction = std::ldexp(magnitude, 10 - exponent) - 1024;
      bits = static_cast<uint16_t>((exponent + 15) << 10 | static_cast<int>(fraction));
    }
    if (std::signbit(x)) bits |= 0x8000;
    std::memcpy(p, &bits, 2);
    return;
  }
  const float single = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (dtype == DType::kBFloat16) bits >>= 16;
  std::memcpy(p, &bits, ElementSize(dtype));
}

DType DTypeOf(const Case& c, const std::string& name) {
  return name == "weight" || name == "dweight" ? DType::kFloat32 : c.dtype;
}

Tensor Allocate(const Case& c, const std::string& name, int64_t alignment) {
  Random random(c.seed ^ std::hash<std::string>()(name));
  if (c.strides.count(name) == 0) {
    throw std::invalid_argument("a case must give the strides of " + name + ", got " + c.name);
  }
  // float* is aligned to a float, uint8_t* to nothing.
  if (name == "weight" || name == "dweight") alignment = 4;
  if (name == "region") alignment = 1;
  const int64_t shift = alignment * random.Integer(0, 63 / alignment);
  const int64_t size = name == "region" ? 1 : ElementSize(DTypeOf(c, name));
  return Tensor(SizesOf(c, name), c.strides.at(name), size, shift);
}

namespace {

double Weight(Random& random) {
  if (random.Chance(0.1)) return random.Chance(0.5) ? 0.0 : -0.0;
  return random.Bell();
}

// One value of q, k, v or dout.
double Value(const std::string& values, const std::string& name, Random& random) {
  if (values == "normal") return random.Bell();
  if (values == "large") return random.Bell() * (name == "q" || name == "k" ? 30 : 1000);
  const auto power = [&](int low, int high) { return static_cast<int>(random.Integer(low, high)); };
  if (values == "tiny") return std::ldexp(random.Bell(), power(-150, -10));
  if (values == "wide") return std::ldexp(random.Bell(), power(-20, 10));
  if (values == "constant") return name == "q" ? 0 : 1;
  if (values == "huge" && name == "v") return std::ldexp(1 + random.Uniform(), 122);
  if (values == "huge") return random.Bell() * (name == "dout" ? 1e-6 : 1);
  throw std::invalid_argument("values must be normal, large, tiny, wide, constant or huge, got " +
                              values);
}

}  // namespace

std::map<std::string, Tensor> Fill(const Case& c, int64_t alignment) {
  std::map<std::string, Tensor> inputs;
  for (const char* name : kInputs) {
    if (name != std::string("region") || c.region) inputs[name] = Allocate(c, name, alignment);
  }
  const int64_t entries = c.entries();
  std::vector<char> entry_present(entries * c.seqlen_q, 1);
  if (c.region) {
    if (static_cast<int64_t>(c.region->size()) != entries * c.seqlen_q) {
      throw std::invalid_argument("present must have a digit for each weight, got " + *c.region);
    }
    inputs["region"].ForEach([&](char* p, int64_t i) { *p = (*c.region)[i] == '1'; });
    inputs["region"].ForEach([&](char* p, int64_t i) { entry_present[i] = *p; });
  }
  std::vector<bool> row_present(c.batch * c.seqlen_q);
  std::vector<bool> key_present((c.ragged ? 1 : c.batch) * c.prompts * c.seqlen_k);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t first = c.ragged ? c.offsets[b] : b * c.prompts;
    const int64_t last = c.ragged ? c.offsets[b + 1] : first + c.prompts;
    for (int64_t e = first; e < last; ++e) {
      const int64_t prompt = c.ragged ? c.prompt_ids[e] : e;
      const int64_t length = c.key_lengths ? (*c.key_lengths)[prompt] : c.seqlen_k;
      bool somewhere = false;
      for (int64_t n = 0; n < c.seqlen_q; ++n) {
        if (length == 0) entry_present[e * c.seqlen_q + n] = 0;
        if (!entry_present[e * c.seqlen_q + n]) continue;
        somewhere = row_present[b * c.seqlen_q + n] = true;
      }
      for (int64_t l = 0; somewhere && l < length; ++l) key_present[prompt * c.seqlen_k + l] = true;
    }
  }
  const auto present = [&](const std::string& name, int64_t i) -> bool {
    if (name == "weight") return entry_present[i];
    const int64_t row = i / c.head_dim;  // of (batch, heads, seqlen_q) or (.., heads, seqlen_k)
    if (name == "q" || name == "dout") {
      return row_present[row / c.seqlen_q / c.heads * c.seqlen_q + row % c.seqlen_q];
    }
    return key_present[row / c.seqlen_k / c.heads * c.seqlen_k + row % c.seqlen_k];
  };
  for (const std::string name : {"q", "k", "v", "weight", "dout"}) {
    const DType dtype = DTypeOf(c, name);
    Random random(c.seed + std::hash<std::string>()(name));
    inputs[name].ForEach([&](char* p, int64_t) { Encode(std::nan(""), dtype, p); });
    inputs[name].ForEach([&](char* p, int64_t i) {
      const double x = name == "weight" ? Weight(random) : Value(c.values, name, random);
      if (present(name, i)) Encode(x, dtype, p);
    });
  }
  return inputs;
}

BlendedAttentionParams ParamsOf(const Case& c) {
  BlendedAttentionParams p{};
  p.dtype = c.dtype;
  p.scale = c.scale;
  p.ragged = c.ragged;
  p.batch = c.batch;
  p.heads = c.heads;
  p.seqlen_q = c.seqlen_q;
  p.seqlen_k = c.seqlen_k;
  p.head_dim = c.head_dim;
  p.prompts = c.prompts;
  p.entries = c.ragged ? c.entries() : 0;
  p.prompt_ids = c.ragged ? c.prompt_ids.data() : nullptr;
  p.offsets = c.ragged ? c.offsets.data() : nullptr;
  p.key_lengths = c.key_lengths ? c.key_lengths->data() : nullptr;
  return p;
}

std::string Number(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", x);
  return text;
}

std::string Compare(const std::string& name, const Tensor& actual, DType dtype,
                    const Exact& exact) {
  std::string said;
  actual.ForEach([&](const char* p, int64_t i) {
    const double x = Decode(p, dtype);
    if (std::isinf(exact.slack[i]) || std::fabs(x - exact.value[i]) <= exact.slack[i]) return;
    if (said.empty()) {
      said = name + "[" + std::to_string(i) + "] must be " + Number(exact.value[i]) + " within " +
             Number(exact.slack[i]) + ", got " + Number(x);
    }
  });
  return said;
}

}  // namespace stal::test
