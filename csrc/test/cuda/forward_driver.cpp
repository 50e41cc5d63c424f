// Runs the CUDA forward kernel in the emulator (emulator.h), on random cases.
//
//   forward_driver --seed S --cases N    cases drawn from the seeds S .. S + N - 1
//   forward_driver --table FILE          a case on each line (case.h)
//   forward_driver --products D          instead: the wgmma of one tile and one prompt, of head_dim
//                                        D, a line each: n and, in hexadecimal, the descriptors
//                  --head-dim D          of the cases that are drawn
//                  --orders K            K orders in which lanes run, instead of 2
//                  --failures F          ends after F failures
//
// For each case: out against double precision; the same bits in every order of lanes and, where
// there are regions, with a plan in any order. What may not be read holds NaN, and nothing may be
// written between the rows of out. The emulator refuses what a GPU would punish. Prints a line that
// replays the case for each failure, and returns 1 if there was any, 2 for a wrong command line.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/case.h"
#include "test/cuda/forward.h"
#include "test/exact.h"
#include "test/tensors.h"

namespace stal::test {

namespace {

constexpr int64_t kAlignment = 16;  // bytes, of rows of q, k, v and out
constexpr int64_t kStep = 8;        // the same in elements

// ---- cases ----

// Dense in a random order of dimensions, with or without gaps; an input may also repeat itself.
Strides DrawStrides(Random& random, const std::array<int64_t, 5>& sizes, int64_t step, bool input) {
  std::array<int, 4> order = {0, 1, 2, 3};
  if (random.Chance(0.5)) {
    for (int i = 3; i > 0; --i) std::swap(order[i], order[random.Integer(0, i)]);
  }
  std::array<int64_t, 4> strides = {};
  const bool gaps = random.Chance(0.3);
  int64_t extent = (sizes[4] + step - 1) / step * step;
  for (int i = 3; i >= 0; --i) {
    extent += gaps ? random.Integer(0, 2) * step : 0;
    strides[order[i]] = extent;
    extent *= std::max<int64_t>(sizes[order[i]], 1);
  }
  for (int64_t i = 0; i < 4; ++i) {
    if (input && random.Chance(0.1)) strides[i] = 0;
    if (input && random.Chance(0.03)) strides[i] = random.Integer(1, 9) * step;
  }
  return {strides[0], strides[1], strides[2], strides[3]};
}

// A first tile that takes longer than all others.
std::string SlowBegin(int64_t entries, int64_t rows) {
  std::string region;
  for (int64_t e = 0; e < entries; ++e) {
    for (int64_t n = 0; n < rows; ++n) region += e == 0 || n < 64 ? '1' : '0';
  }
  return region;
}

std::string DrawRegion(Random& random, int64_t entries, int64_t rows) {
  std::string region;
  const double share = random.Uniform();
  const int64_t run = random.Chance(0.3) ? 1 : random.Integer(8, 64);
  for (int64_t e = 0; e < entries; ++e) {
    const bool nowhere = random.Chance(0.2), everywhere = random.Chance(0.2);
    char bit = '0';
    for (int64_t n = 0; n < rows; ++n) {
      if (n % run == 0) bit = !nowhere && random.Chance(share) ? '1' : '0';
      region += everywhere ? '1' : bit;
    }
  }
  return region;
}

int64_t DrawLength(Random& random, int64_t most) {
  return random.Chance(0.1) ? 0 : random.Integer(1, most);
}

// head_dim 0: any.
Case DrawForwardCase(uint64_t seed, int64_t head_dim) {
  Random random(seed);
  Case c;
  c.name = "seed" + std::to_string(seed);
  c.seed = seed;
  c.dtype = random.Chance(0.5) ? DType::kBFloat16 : DType::kFloat16;
  const int64_t head_dims[] = {40, 64, 80, 128, 160};
  c.head_dim = head_dim ? head_dim : head_dims[seed % 5];
  c.batch = random.Integer(1, 3);
  c.heads = random.Integer(1, 2);
  // More than 8 do not fit a block's shared memory at once.
  c.prompts = random.Chance(0.3) ? random.Integer(5, 20) : random.Integer(1, 4);
  c.seqlen_q = random.Chance(0.3) ? 64 * random.Integer(1, 3) + random.Integer(-1, 1)
                                  : random.Integer(1, 200);
  c.seqlen_k = random.Chance(0.5) ? 77 : random.Integer(1, 80);
  // Many small cases find more than a few large ones.
  while (c.batch * c.heads * c.prompts * ((c.seqlen_q + 63) / 64) > 24) {
    int64_t* const sizes[] = {&c.batch, &c.heads, &c.prompts, &c.seqlen_q};
    int64_t& size = *sizes[random.Integer(0, 3)];
    size = (size + 1) / 2;
  }
  c.scale = random.Chance(0.8) ? 1 / std::sqrt(static_cast<float>(c.head_dim))
                               : static_cast<float>(random.Uniform() * 2 - 1);
  if (random.Chance(0.02)) c.scale = 0;
  c.ragged = random.Chance(0.5);
  if (c.ragged) {
    const int64_t most = random.Chance(0.3) ? 20 : 4;
    c.offsets.assign(c.batch + 1, 0);
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t count = c.prompts == 0 ? 0 : DrawLength(random, most);
      c.offsets[b + 1] = static_cast<int32_t>(c.offsets[b] + count);
    }
    c.prompt_ids = std::vector<int32_t>(c.offsets[c.batch]);
    for (int32_t& id : c.prompt_ids) id = static_cast<int32_t>(random.Integer(0, c.prompts - 1));
    if (random.Chance(0.6)) {
      c.key_lengths = std::vector<int32_t>(c.prompts);
      for (int32_t& length : *c.key_lengths) {
        length = static_cast<int32_t>(DrawLength(random, c.seqlen_k));
      }
    }
  }
  if (random.Chance(0.6)) c.region = DrawRegion(random, c.entries(), c.seqlen_q);
  if (random.Chance(0.1)) {
    // Many tiles in a block.
    c.batch = c.heads = 1;
    c.ragged = false;
    c.key_lengths.reset();
    c.prompts = random.Integer(1, 3);
    c.seqlen_q = c.prompts == 1 ? random.Integer(500, 2500) : random.Integer(500, 1200);
    c.region = SlowBegin(c.prompts, c.seqlen_q);
  }
  const char* values[] = {"normal", "normal", "large", "tiny", "wide", "constant", "huge"};
  c.values = values[random.Integer(0, 6)];
  const bool plain = random.Chance(0.3);
  for (const std::string name : kInputs) {
    const int64_t step = name == "weight" || name == "region" ? 1 : kStep;
    c.strides[name] = DrawStrides(random, SizesOf(c, name), step, !plain);
  }
  c.strides["out"] = DrawStrides(random, SizesOf(c, "out"), kStep, false);
  return c;
}

// ---- plans ----

// Any order of the rows of each element, and which entries exist in each 32 of them.
struct Plan {
  std::vector<int32_t> order;
  std::vector<int64_t> tiles;
};

Plan DrawPlan(const Case& c, const Tensor& region) {
  std::vector<char> exists;
  region.ForEach([&](const char* x, int64_t) { exists.push_back(*x); });
  Random random(c.seed);
  Plan plan;
  const int64_t words = (c.seqlen_q + 31) / 32;
  plan.tiles.resize(c.batch * words);
  for (int64_t b = 0; b < c.batch; ++b) {
    const size_t start = plan.order.size();
    for (int64_t n = 0; n < c.seqlen_q; ++n) {
      plan.order.push_back(static_cast<int32_t>(n));
      std::swap(plan.order.back(), plan.order[start + random.Integer(0, n)]);
    }
    const int64_t first = c.ragged ? c.offsets[b] : b * c.prompts;
    const int64_t last = c.ragged ? c.offsets[b + 1] : first + c.prompts;
    for (int64_t n = 0; n < c.seqlen_q; ++n) {
      const int64_t row = plan.order[start + n];
      for (int64_t e = first; e < last && e < first + 64; ++e) {
        const int64_t bit = exists[e * c.seqlen_q + row] ? 1 : 0;
        plan.tiles[b * words + n / 32] |= bit << (e - first);
      }
    }
  }
  plan.order.shrink_to_fit();
  return plan;
}

// ---- checks ----

Tensor Run(const Case& c, const std::map<std::string, Tensor>& inputs, const Plan* plan,
           int multiprocessors, uint64_t order,
           std::vector<emulator::Product>* products = nullptr) {
  std::map<std::string, Tensor> outputs;
  outputs["out"] = Allocate(c, "out", kAlignment);
  BlendedAttentionParams p = ParamsOf(c);
  Set(inputs, "q", &p.q);
  Set(inputs, "k", &p.k);
  Set(inputs, "v", &p.v);
  Set(inputs, "weight", &p.weight);
  Set(inputs, "region", &p.region);
  Set(outputs, "out", &p.out);
  if (plan) {
    Set(inputs, "region", &p.planned);
    p.order.data = plan->order.data();
    p.order.strides = {c.seqlen_q, 0, 0, 1};
    p.tiles = plan->tiles.data();
  }
  emulator::Forward(p, multiprocessors, order, products);
  return std::move(outputs["out"]);
}

// In elements of the same logical order.
bool SameBits(const Tensor& a, const Tensor& b) {
  std::vector<const char*> elements;
  a.ForEach([&](const char* p, int64_t) { elements.push_back(p); });
  bool same = true;
  b.ForEach([&](const char* p, int64_t i) { same &= std::memcmp(p, elements[i], 2) == 0; });
  return same;
}

// What is wrong, or "".
std::string Check(const Case& c, int orders) {
  const std::map<std::string, Tensor> inputs = Fill(c, kAlignment);
  std::map<std::string, std::vector<double>> values;
  for (const std::string name : {"q", "k", "v", "weight", "dout"}) {
    inputs.at(name).ForEach([&](const char* p, int64_t) {
      values[name].push_back(Decode(p, DTypeOf(c, name)));
    });
    values[name];
  }
  std::vector<uint8_t> region;
  if (c.region) {
    inputs.at("region").ForEach([&](const char* p, int64_t) { region.push_back(*p); });
  }
  // Below 2^-14 the numbers of float16 have one distance.
  const double unit = c.dtype == DType::kFloat16 ? 0x1p-24 : 0;
  const Exact exact = ComputeExact(c, values, region, unit).at("out");

  Random random(c.seed);
  // With as many blocks as tiles the warpgroups of a block share its tile.
  int multiprocessors = random.Chance(0.3) ? 132 : static_cast<int>(random.Integer(1, 6));
  if (c.seqlen_q > 200) multiprocessors = 1;
  const Tensor out = Run(c, inputs, nullptr, multiprocessors, c.seed);
  const std::string said = Compare("out", out, c.dtype, exact);
  if (!said.empty()) return said;
  if (!out.GapsAreUntouched()) return "out must be written in its rows alone";
  for (int order = 1; order < orders; ++order) {
    if (!SameBits(out, Run(c, inputs, nullptr, multiprocessors, c.seed + order))) {
      return "out must be the same whatever the order of lanes";
    }
  }
  if (c.region && c.seqlen_q > 0) {
    const Plan plan = DrawPlan(c, inputs.at("region"));
    const Tensor planned = Run(c, inputs, &plan, multiprocessors, c.seed);
    if (!SameBits(out, planned)) return "out must be the same with and without a plan";
    if (!planned.GapsAreUntouched()) return "out must be written in its rows alone with a plan";
  }
  return "";
}

void PrintProducts(int64_t head_dim) {
  Case c;
  c.dtype = DType::kBFloat16;
  c.seqlen_q = 64;
  c.seqlen_k = 77;
  c.head_dim = head_dim;
  for (const std::string name : kInputs) {
    const int64_t rows = name == "k" || name == "v" ? c.seqlen_k : c.seqlen_q;
    const bool weights = name == "weight" || name == "region";
    c.strides[name] = weights ? Strides{0, 0, 0, 1} : Strides{0, 0, rows * head_dim, head_dim};
  }
  c.strides["out"] = c.strides["q"];
  std::vector<emulator::Product> products;
  Run(c, Fill(c, kAlignment), nullptr, 1, 0, &products);
  for (const emulator::Product& product : products) {
    std::printf("%d", product.n);
    if (!product.a) std::printf(" %llx", static_cast<unsigned long long>(product.a_descriptor));
    std::printf(" %llx\n", static_cast<unsigned long long>(product.b_descriptor));
  }
}

int Main(int count, char** arguments) {
  std::map<std::string, std::string> options = {{"--seed", "0"},     {"--cases", "100"},
                                                {"--head-dim", "0"}, {"--orders", "2"},
                                                {"--table", ""},     {"--products", ""},
                                                {"--failures", "1000000"}};
  for (int i = 1; i < count; i += 2) {
    if (options.count(arguments[i]) == 0 || i + 1 == count) {
      throw std::invalid_argument(
          std::string("options are --seed, --cases, --head-dim, --orders, --failures, --table and "
                      "--products, each with a value, got ") +
          arguments[i]);
    }
    options[arguments[i]] = arguments[i + 1];
  }
  if (!options["--products"].empty()) {
    PrintProducts(std::stoll(options["--products"]));
    return 0;
  }
  std::vector<Case> cases;
  if (options["--table"].empty()) {
    const uint64_t seed = std::stoull(options["--seed"]);
    for (uint64_t i = 0; i < std::stoull(options["--cases"]); ++i) {
      cases.push_back(DrawForwardCase(seed + i, std::stoll(options["--head-dim"])));
    }
  } else {
    std::ifstream file(options["--table"]);
    for (std::string line; std::getline(file, line);) cases.push_back(ParseCase(line));
  }
  if (cases.empty()) throw std::invalid_argument("there must be a case, got none");
  int failures = 0, ran = 0;
  for (const Case& c : cases) {
    ++ran;
    std::string said;
    try {
      said = Check(c, std::stoi(options["--orders"]));
    } catch (const std::exception& error) {
      said = error.what();
    }
    if (said.empty()) continue;
    ++failures;
    std::printf("FAILED %s\n  %s\n", said.c_str(), FormatCase(c).c_str());
    if (failures == std::stoi(options["--failures"])) break;
  }
  std::printf("%d cases, %d failures\n", ran, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace

}  // namespace stal::test

int main(int count, char** arguments) {
  try {
    return stal::test::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "forward_driver: %s\n", error.what());
    return 2;
  }
}
