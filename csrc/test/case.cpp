#include "case.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

namespace stal::test {

namespace {

const std::vector<std::string> kDTypes = {"float32", "bfloat16", "float16"};  // as DType

template <typename Value>
std::vector<Value> ParseList(const std::string& text) {
  std::vector<Value> values;
  std::istringstream stream(text);
  for (std::string item; std::getline(stream, item, ',');) {
    values.push_back(static_cast<Value>(std::stoll(item)));
  }
  values.shrink_to_fit();  // a read beyond the end is a read beyond the allocation
  return values;
}

template <typename Values>
std::string FormatList(const Values& values) {
  std::string text;
  for (const auto& value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return text;
}

bool IsTensor(const std::string& name) {
  const auto is_name = [&](const char* tensor) { return name == tensor; };
  return std::any_of(std::begin(kInputs), std::end(kInputs), is_name) ||
         std::any_of(std::begin(kOutputs), std::end(kOutputs), is_name);
}

// Dense in a random order of dimensions, with or without gaps. An input may also repeat or overlap
// itself.
Strides DrawStrides(Random& random, const std::array<int64_t, 5>& sizes, bool input) {
  std::array<int, 4> order = {0, 1, 2, 3};
  if (random.Chance(0.5)) {
    for (int i = 3; i > 0; --i) std::swap(order[i], order[random.Integer(0, i)]);
  }
  std::array<int64_t, 4> strides = {};
  const bool gaps = random.Chance(0.3);
  int64_t extent = sizes[4];
  for (int i = 3; i >= 0; --i) {
    extent += gaps ? random.Integer(0, 9) : 0;
    strides[order[i]] = extent;
    extent *= std::max<int64_t>(sizes[order[i]], 1);
  }
  for (int64_t i = 0; i < 4; ++i) {
    // The stride of a single element means nothing, and torch leaves it as it is.
    if (sizes[i] == 1 && random.Chance(0.2)) strides[i] = random.Integer(0, 100000);
    if (input && random.Chance(0.15)) strides[i] = 0;
    if (input && random.Chance(0.05)) strides[i] = random.Integer(1, 50);
  }
  return {strides[0], strides[1], strides[2], strides[3]};
}

int64_t DrawRows(Random& random) {
  if (random.Chance(0.03)) return 0;
  if (random.Chance(0.4)) return random.Integer(1, 40);
  if (random.Chance(0.3)) return random.Integer(41, 200);
  // Beside the edges of blocks.
  const int64_t blocks[] = {8, 16, 24, 32, 48, 64, 96, 128};
  return blocks[random.Integer(0, 7)] + random.Integer(-1, 1);
}

int64_t DrawKeys(Random& random) {
  if (random.Chance(0.03)) return 0;
  if (random.Chance(0.4)) return random.Integer(1, 20);
  if (random.Chance(0.5)) return random.Integer(60, 96);
  return random.Chance(0.8) ? random.Integer(97, 160) : random.Integer(161, 520);
}

// Each entry everywhere or in a box of an image whose pixels are the rows, as users have them. Its
// last line may be incomplete.
std::string DrawBoxes(Random& random, int64_t entries, int64_t rows) {
  std::string region;
  const int64_t width = random.Integer(1, std::max<int64_t>(1, std::min<int64_t>(rows, 24)));
  const int64_t height = (rows + width - 1) / width;
  for (int64_t e = 0; e < entries; ++e) {
    const bool everywhere = random.Chance(0.3);
    const int64_t x0 = random.Integer(0, width), x1 = random.Integer(x0, width);
    const int64_t y0 = random.Integer(0, height), y1 = random.Integer(y0, height);
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t x = n % width, y = n / width;
      const bool inside = x0 <= x && x < x1 && y0 <= y && y < y1;
      region += everywhere || inside ? '1' : '0';
    }
  }
  return region;
}

std::string DrawRegion(Random& random, int64_t entries, int64_t rows) {
  if (random.Chance(0.4)) return DrawBoxes(random, entries, rows);
  std::string region;
  const double share = random.Uniform();
  const int64_t run = random.Chance(0.5) ? 1 : random.Integer(8, 64);
  for (int64_t e = 0; e < entries; ++e) {
    const bool nowhere = random.Chance(0.2);
    char bit = '0';
    for (int64_t n = 0; n < rows; ++n) {
      if (n % run == 0) bit = !nowhere && random.Chance(share) ? '1' : '0';
      region += bit;
    }
  }
  return region;
}

}  // namespace

std::array<int64_t, 5> SizesOf(const Case& c, const std::string& tensor) {
  const bool keys = tensor == "k" || tensor == "v" || tensor == "dk" || tensor == "dv";
  const bool weights = tensor == "weight" || tensor == "region" || tensor == "dweight";
  if (!keys && !weights) return {c.batch, 1, c.heads, c.seqlen_q, c.head_dim};
  const int64_t batch = c.ragged ? 1 : c.batch;
  if (keys) return {batch, c.prompts, c.heads, c.seqlen_k, c.head_dim};
  return {batch, c.ragged ? c.entries() : c.prompts, 1, c.seqlen_q, 1};
}

Case ParseCase(const std::string& line) {
  Case c;
  std::istringstream stream(line);
  for (std::string pair; stream >> pair;) {
    const size_t equals = pair.find('=');
    const std::string key = pair.substr(0, equals);
    if (equals == std::string::npos) {
      throw std::invalid_argument("a case must consist of key=value pairs, got " + pair);
    }
    const std::string value = pair.substr(equals + 1);
    if (key == "name") {
      c.name = value;
    } else if (key == "dtype") {
      const auto found = std::find(kDTypes.begin(), kDTypes.end(), value);
      if (found == kDTypes.end()) {
        throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + value);
      }
      c.dtype = static_cast<DType>(found - kDTypes.begin());
    } else if (key == "scale") {
      c.scale = std::stof(value);
    } else if (key == "batch") {
      c.batch = std::stoll(value);
    } else if (key == "heads") {
      c.heads = std::stoll(value);
    } else if (key == "seqlen_q") {
      c.seqlen_q = std::stoll(value);
    } else if (key == "seqlen_k") {
      c.seqlen_k = std::stoll(value);
    } else if (key == "head_dim") {
      c.head_dim = std::stoll(value);
    } else if (key == "prompts") {
      c.prompts = std::stoll(value);
    } else if (key == "prompt_ids") {
      c.prompt_ids = ParseList<int32_t>(value);
    } else if (key == "offsets") {
      c.ragged = true;
      c.offsets = ParseList<int32_t>(value);
    } else if (key == "key_lengths") {
      c.key_lengths = ParseList<int32_t>(value);
    } else if (key == "present") {
      c.region = value;
    } else if (key == "values") {
      c.values = value;
    } else if (key == "seed") {
      c.seed = std::stoull(value);
    } else if (IsTensor(key)) {
      const std::vector<int64_t> s = ParseList<int64_t>(value);
      if (s.size() != 4) {
        throw std::invalid_argument(key + " must have the strides batch,prompt,head,row, got " +
                                    value);
      }
      c.strides[key] = {s[0], s[1], s[2], s[3]};
    } else {
      throw std::invalid_argument("a case has no field " + key);
    }
  }
  return c;
}

std::string FormatCase(const Case& c) {
  std::ostringstream line;
  line.precision(9);
  line << "name=" << c.name << " dtype=" << kDTypes[static_cast<int>(c.dtype)]
       << " scale=" << c.scale << " batch=" << c.batch << " heads=" << c.heads
       << " seqlen_q=" << c.seqlen_q << " seqlen_k=" << c.seqlen_k << " head_dim=" << c.head_dim
       << " prompts=" << c.prompts << " values=" << c.values << " seed=" << c.seed;
  if (c.ragged) {
    line << " prompt_ids=" << FormatList(c.prompt_ids) << " offsets=" << FormatList(c.offsets);
    if (c.key_lengths) line << " key_lengths=" << FormatList(*c.key_lengths);
  }
  for (const auto& [name, s] : c.strides) {
    line << " " << name << "=" << FormatList(std::array{s.batch, s.prompt, s.head, s.row});
  }
  if (c.region) line << " present=" << *c.region;
  return line.str();
}

Case DrawCase(uint64_t seed) {
  Random random(seed);
  Case c;
  c.name = "seed" + std::to_string(seed);
  c.seed = seed;
  c.dtype = static_cast<DType>(random.Integer(0, 2));
  c.batch = random.Chance(0.02) ? 0 : random.Integer(1, 3);
  c.heads = random.Integer(1, 3);
  c.prompts = random.Chance(0.03) ? 0 : random.Integer(1, 5);
  c.seqlen_q = DrawRows(random);
  c.seqlen_k = DrawKeys(random);
  c.head_dim = 8 * (random.Chance(0.85) ? random.Integer(1, 10) : random.Integer(11, 32));
  // Many small cases find more than a few large ones.
  const int64_t most = random.Chance(0.9) ? 30000 : 300000;
  while (c.batch * c.heads * c.prompts * c.seqlen_q * c.seqlen_k * c.head_dim > most) {
    int64_t* const sizes[] = {&c.batch, &c.heads, &c.prompts, &c.seqlen_q, &c.seqlen_k};
    const int64_t which = random.Integer(0, 5);
    if (which < 5) *sizes[which] = (*sizes[which] + 1) / 2;
    if (which == 5) c.head_dim = (c.head_dim / 8 + 1) / 2 * 8;
  }
  c.scale = random.Chance(0.8) ? 1 / std::sqrt(static_cast<float>(c.head_dim))
                               : static_cast<float>(random.Uniform() * 2 - 1);
  if (random.Chance(0.02)) c.scale = 0;
  c.ragged = random.Chance(0.5);
  if (c.ragged) {
    c.offsets.assign(c.batch + 1, 0);
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t count = c.prompts == 0 ? 0 : random.Integer(0, 3);
      c.offsets[b + 1] = static_cast<int32_t>(c.offsets[b] + count);
    }
    c.prompt_ids = std::vector<int32_t>(c.offsets[c.batch]);
    for (int32_t& id : c.prompt_ids) id = static_cast<int32_t>(random.Integer(0, c.prompts - 1));
    if (random.Chance(0.6)) {
      c.key_lengths = std::vector<int32_t>(c.prompts);
      for (int32_t& length : *c.key_lengths) {
        length = static_cast<int32_t>(random.Chance(0.1) ? 0 : random.Integer(0, c.seqlen_k));
      }
    }
  }
  if (random.Chance(0.5)) c.region = DrawRegion(random, c.entries(), c.seqlen_q);
  const char* values[] = {"normal", "normal", "large", "tiny", "wide", "constant", "huge"};
  c.values = values[random.Integer(0, 6)];
  const bool plain = random.Chance(0.3);
  for (const char* name : kInputs) c.strides[name] = DrawStrides(random, SizesOf(c, name), !plain);
  for (const char* name : kOutputs) c.strides[name] = DrawStrides(random, SizesOf(c, name), false);
  return c;
}

}  // namespace stal::test
