// Runs the CPU kernels without torch and Python, for sanitizers: every tensor lies in an allocation
// of exactly the bytes that its strides span, and so does the kernels' scratch memory.
//
//   driver --table FILE            a case on each line (case.h)
//   driver --seed S --cases N      cases drawn from the seeds S .. S + N - 1
//          --callers C             C threads at once, each with its share of the cases
//          --level NAME            this level alone
//
// For each case and each level that runs here: out and all gradients on one thread against double
// precision, then some of them again on 1 to 3 threads, out with a pack of K and V and, where there
// are regions, all with a plan of any order, which must be equal bit for bit. Nothing may be
// written between the rows of a tensor; what may not be read holds NaN; an index that is out of
// range is refused, and so is a plan that names no row or one twice, or is of another region; rows
// are in the order that Call promises. Prints a line for each level, and one that replays the case
// for each failure; returns 1 if there was any, 2 for a wrong command line. Only the kernels need
// be compiled with a sanitizer.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "case.h"
#include "cpu/call_storage.h"
#include "cpu/levels.h"
#include "exact.h"

namespace stal::test {

namespace {

// ---- numbers ----

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

// Towards zero, and to the largest number where x is larger.
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

// ---- tensors ----

constexpr char kUntouched = 0x5a;

class Tensor {
 public:
  Tensor() = default;

  // Its first element lies `shift` bytes behind an aligned address. It is null if it has none.
  Tensor(const std::array<int64_t, 5>& sizes, const Strides& strides, int64_t element_size,
         int64_t shift)
      : strides(strides), sizes_(sizes), element_size_(element_size), shift_(shift) {
    const int64_t steps[] = {strides.batch, strides.prompt, strides.head, strides.row, 1};
    int64_t last = 0;
    for (int i = 0; i < 5; ++i) {
      if (sizes[i] == 0) return;
      last += (sizes[i] - 1) * steps[i];
    }
    bytes_ = shift + (last + 1) * element_size;
    memory_.reset(new char[bytes_]);
    std::memset(memory_.get(), kUntouched, bytes_);
  }

  char* data() const { return memory_ ? memory_.get() + shift_ : nullptr; }

  // body(element, index in logical order).
  template <typename Body>
  void ForEach(const Body& body) const {
    if (!memory_) return;
    int64_t index = 0;
    for (int64_t b = 0; b < sizes_[0]; ++b) {
      for (int64_t p = 0; p < sizes_[1]; ++p) {
        for (int64_t h = 0; h < sizes_[2]; ++h) {
          for (int64_t r = 0; r < sizes_[3]; ++r) {
            const int64_t offset =
                b * strides.batch + p * strides.prompt + h * strides.head + r * strides.row;
            for (int64_t i = 0; i < sizes_[4]; ++i) {
              body(data() + (offset + i) * element_size_, index++);
            }
          }
        }
      }
    }
  }

  // Whether every byte that belongs to no element is as it was.
  bool GapsAreUntouched() const {
    if (!memory_) return true;
    std::vector<bool> used(bytes_);
    ForEach([&](const char* element, int64_t) {
      const int64_t first = element - memory_.get();
      for (int64_t i = 0; i < element_size_; ++i) used[first + i] = true;
    });
    for (int64_t i = 0; i < bytes_; ++i) {
      if (!used[i] && memory_[i] != kUntouched) return false;
    }
    return true;
  }

  Strides strides;

 private:
  std::array<int64_t, 5> sizes_ = {};
  int64_t element_size_ = 0, shift_ = 0, bytes_ = 0;
  std::unique_ptr<char[]> memory_;
};

DType DTypeOf(const Case& c, const std::string& name) {
  return name == "weight" || name == "dweight" ? DType::kFloat32 : c.dtype;
}

Tensor Allocate(const Case& c, const std::string& name) {
  Random random(c.seed ^ std::hash<std::string>()(name));
  if (c.strides.count(name) == 0) {
    throw std::invalid_argument("a case must give the strides of " + name + ", got " + c.name);
  }
  // float* is aligned to a float, uint8_t* and void* to nothing.
  const bool weights = name == "weight" || name == "dweight";
  const int64_t shift = weights ? 4 * random.Integer(0, 15) : random.Integer(0, 63);
  const int64_t size = name == "region" ? 1 : ElementSize(DTypeOf(c, name));
  return Tensor(SizesOf(c, name), c.strides.at(name), size, shift);
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

// Fills the inputs of a case. Elements may share memory, so what may not be read is written first.
std::map<std::string, Tensor> Fill(const Case& c) {
  std::map<std::string, Tensor> inputs;
  for (const char* name : kInputs) {
    if (name != std::string("region") || c.region) inputs[name] = Allocate(c, name);
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
      const double x = name == "weight" ? random.Bell() : Value(c.values, name, random);
      if (present(name, i)) Encode(x, dtype, p);
    });
  }
  return inputs;
}

// ---- calls ----

template <typename Pointer>
void Set(const std::map<std::string, Tensor>& tensors, const char* name, Strided<Pointer>* to) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return;
  to->data = reinterpret_cast<Pointer>(found->second.data());
  to->strides = found->second.strides;
}

// All of a case but its tensors.
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

// The order of a plan; its strides are those of order.data in BlendedAttentionParams.
struct Order {
  std::vector<int32_t> rows;
  Strides strides;
};

// The rows of each element in any order, or in one for all, next to each other or apart.
Order DrawOrder(const Case& c) {
  Random random(c.seed);
  const int64_t step = random.Chance(0.2) ? random.Integer(2, 3) : 1;
  const bool one = random.Chance(0.2);
  const int64_t count = c.seqlen_q == 0 ? 0 : (one ? std::min<int64_t>(c.batch, 1) : c.batch);
  Order order;
  order.strides = {one ? 0 : c.seqlen_q * step, 0, 0, step};
  // Nobody may read what lies between the rows.
  order.rows.assign(count == 0 ? 0 : (count * c.seqlen_q - 1) * step + 1, -1);
  for (int64_t b = 0; b < count; ++b) {
    int32_t* rows = order.rows.data() + b * c.seqlen_q * step;
    for (int64_t n = 0; n < c.seqlen_q; ++n) {
      rows[n * step] = static_cast<int32_t>(n);
      std::swap(rows[n * step], rows[random.Integer(0, n) * step]);
    }
  }
  return order;
}

void SetPlan(const std::map<std::string, Tensor>& inputs, const Order& order,
             BlendedAttentionParams* p) {
  Set(inputs, "region", &p->planned);
  p->order.data = order.rows.data();
  p->order.strides = order.strides;
}

// Runs what `asked` names, and returns it. The thread is new, so that its scratch memory is too.
// order: of a plan; null: without one. with_pack: K and V are packed before the forward pass.
std::map<std::string, Tensor> Run(const Case& c, const Kernels& kernels,
                                  const std::map<std::string, Tensor>& inputs,
                                  const std::set<std::string>& asked, int threads,
                                  bool bf16_products = false,
                                  const Order* order = nullptr, bool with_pack = false) {
  std::map<std::string, Tensor> outputs;
  for (const std::string& name : asked) outputs[name] = Allocate(c, name);
  BlendedAttentionParams p = ParamsOf(c);
  p.bf16_products = bf16_products;
  Set(inputs, "q", &p.q);
  Set(inputs, "k", &p.k);
  Set(inputs, "v", &p.v);
  Set(inputs, "weight", &p.weight);
  Set(inputs, "region", &p.region);
  if (order && !order->rows.empty()) SetPlan(inputs, *order, &p);
  Set(inputs, "dout", &p.dout);
  Set(outputs, "out", &p.out);
  Set(outputs, "dq", &p.dq);
  Set(outputs, "dweight", &p.dweight);
  Set(outputs, "dk", &p.dk);
  Set(outputs, "dv", &p.dv);
  std::unique_ptr<uint32_t[]> words;
  if (with_pack) {
    const bool shared = !c.ragged && p.k.strides.batch == 0 && p.v.strides.batch == 0;
    const int64_t head = kernels.packed_words(p), prompt = c.heads * head;
    words.reset(new uint32_t[prompt * c.prompts * (c.ragged || shared ? 1 : c.batch)]);
    p.packed.data = words.get();
    p.packed.strides = {shared ? 0 : c.prompts * prompt, prompt, head, 0};
  }
  std::exception_ptr error;
  std::thread([&] {
    try {
      if (with_pack) kernels.pack(CallStorage(p, threads).call);
      if (asked.count("out")) kernels.forward(CallStorage(p, threads).call);
      p.packed.data = nullptr;
      kernels.backward(CallStorage(p, threads).call);
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
  return outputs;
}

// ---- checks ----

std::string Number(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", x);
  return text;
}

// The first element that is wrong, or "".
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

bool SameBits(const Tensor& a, const Tensor& b, int64_t size) {
  std::vector<const char*> elements;
  a.ForEach([&](const char* p, int64_t) { elements.push_back(p); });
  bool same = true;
  b.ForEach([&](const char* p, int64_t i) { same &= std::memcmp(p, elements[i], size) == 0; });
  return same;
}

// What is wrong with a level, or "".
std::string Check(const Case& c, const Kernels& kernels,
                  const std::map<std::string, Tensor>& inputs,
                  const std::map<std::string, Exact>& exact) {
  const std::set<std::string> all(std::begin(kOutputs), std::end(kOutputs));
  const auto one = Run(c, kernels, inputs, all, 1);
  for (const auto& [name, tensor] : one) {
    const std::string said = Compare(name, tensor, DTypeOf(c, name), exact.at(name));
    if (!said.empty()) return said;
    if (!tensor.GapsAreUntouched()) return name + " must be written in its rows alone";
  }
  const std::set<std::string> subsets[] = {
      all, {"out", "dq"}, {"out", "dweight"}, {"dq", "dweight"}, {"dk", "dv"}};
  const int threads = 3 - static_cast<int>(c.seed % 3);
  for (const auto& [name, tensor] : Run(c, kernels, inputs, subsets[c.seed % 5], threads)) {
    if (!SameBits(one.at(name), tensor, ElementSize(DTypeOf(c, name)))) {
      return name + " must be the same on 1 and " + std::to_string(threads) + " threads";
    }
    if (!tensor.GapsAreUntouched()) return name + " must be written in its rows alone";
  }
  const auto packed = Run(c, kernels, inputs, {"out"}, threads, false, nullptr, true);
  if (!SameBits(one.at("out"), packed.at("out"), ElementSize(c.dtype))) {
    return "out must be the same with and without a pack";
  }
  if (c.region) {
    const Order order = DrawOrder(c);
    for (const auto& [name, tensor] : Run(c, kernels, inputs, all, threads, false, &order)) {
      if (!SameBits(one.at(name), tensor, ElementSize(DTypeOf(c, name)))) {
        return name + " must be the same with and without a plan";
      }
      if (!tensor.GapsAreUntouched()) return name + " must be written in its rows alone";
    }
  }
  if (c.dtype != DType::kFloat32) return "";
  // How near the values come is tested in Python.
  const auto rounded = Run(c, kernels, inputs, all, 1, true);
  for (const auto& [name, tensor] : Run(c, kernels, inputs, all, threads, true)) {
    if (!SameBits(rounded.at(name), tensor, ElementSize(c.dtype))) {
      return name + " must be the same on any number of threads with bf16_products";
    }
    if (!tensor.GapsAreUntouched()) return name + " must be written in its rows alone";
  }
  return "";
}

// Whether an index that is out of range is refused, before it is followed. Takes a copy to spoil.
std::string CheckIndices(Case c) {
  constexpr int32_t kWrong[] = {-1, 1 << 30, std::numeric_limits<int32_t>::min()};
  Random random(c.seed);
  std::vector<int32_t>* lengths = c.key_lengths ? &*c.key_lengths : nullptr;
  for (std::vector<int32_t>* list : {&c.prompt_ids, &c.offsets, lengths}) {
    if (list == nullptr || list->empty()) continue;
    int32_t& value = (*list)[random.Integer(0, list->size() - 1)];
    const int32_t right = value;
    value = kWrong[random.Integer(0, 2)];
    const BlendedAttentionParams p = ParamsOf(c);
    try {
      const CallStorage storage(p, 1);
      return "an index must be in range, and " + std::to_string(value) + " was taken";
    } catch (const std::invalid_argument&) {
    }
    value = right;
  }
  return "";
}

// Whether a plan is refused that names a row that is not there, or one twice, or of another region.
std::string CheckPlan(const Case& c, const std::map<std::string, Tensor>& inputs) {
  Order order = DrawOrder(c);
  if (!c.region || order.rows.empty()) return "";
  BlendedAttentionParams p = ParamsOf(c);
  Set(inputs, "region", &p.region);
  SetPlan(inputs, order, &p);
  const auto refused = [&] {
    try {
      const CallStorage storage(p, 1);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  if (refused()) return "the plan of a region must be taken";
  Random random(c.seed);
  const int64_t step = order.strides.row;
  const int64_t count = (static_cast<int64_t>(order.rows.size()) - 1) / step + 1;
  int32_t& row = order.rows[random.Integer(0, count - 1) * step];
  const int32_t right = row;
  const int32_t wrong[] = {-1, static_cast<int32_t>(c.seqlen_q), 1 << 30,
                           static_cast<int32_t>(right == 0 ? c.seqlen_q - 1 : 0)};
  for (const int32_t value : wrong) {
    row = value;
    if (value != right && !refused()) {
      return "a row must be named once, and " + std::to_string(value) + " was taken";
    }
  }
  row = right;
  // Another region: of one row that is not the same.
  const Tensor region = Allocate(c, "region");
  std::vector<char*> there;
  region.ForEach([&](char* x, int64_t) { there.push_back(x); });
  inputs.at("region").ForEach([&](const char* x, int64_t i) { *there[i] = *x; });
  p.planned.data = reinterpret_cast<const uint8_t*>(region.data());
  p.planned.strides = region.strides;
  if (refused()) return "the plan of a copy of the region must be taken";
  if (there.empty()) return "";
  char& other = *there[random.Integer(0, there.size() - 1)];
  other = !other;
  return refused() ? "" : "the plan of another region must be refused";
}

// Whether the order of rows names each row once, and puts those first where the first prompt
// exists, among equals those where the second does, and so on; the rest as in memory.
std::string CheckOrder(const Case& c, const std::map<std::string, Tensor>& inputs) {
  BlendedAttentionParams p = ParamsOf(c);
  Set(inputs, "region", &p.region);
  const CallStorage storage(p, 1);
  const Call& call = storage.call;
  for (int64_t b = 0; b < c.batch; ++b) {
    std::set<int64_t> seen;
    std::pair<std::string, int64_t> previous;
    for (int64_t n = 0; n < c.seqlen_q; ++n) {
      const int64_t row = call.order ? call.order[b * c.seqlen_q + n] : n;
      if (row < 0 || row >= c.seqlen_q || !seen.insert(row).second) {
        return "order must name each row once, got " + std::to_string(row) + " at " +
               std::to_string(n);
      }
      std::pair<std::string, int64_t> place = {"", row};
      for (int64_t e = call.begin[b]; p.region.data && e < call.begin[b + 1]; ++e) {
        const int64_t offset = call.entries[e].region + row * p.region.strides.row;
        place.first += p.region.data[offset] ? 'a' : 'b';
      }
      if (n > 0 && place < previous) {
        return "order must put " + place.first + " before " + previous.first + ", got row " +
               std::to_string(row) + " at " + std::to_string(n);
      }
      previous = place;
    }
  }
  return "";
}

// Returns the number of failures.
int RunCase(const Case& c, const std::vector<Level>& levels) {
  static std::mutex mutex;
  const std::map<std::string, Tensor> inputs = Fill(c);
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
  const std::map<std::string, Exact> exact = ComputeExact(c, values, region);
  int failures = 0;
  const auto report = [&](const char* where, const std::string& said) {
    if (said.empty()) return;
    ++failures;
    const std::lock_guard<std::mutex> lock(mutex);
    std::printf("FAILED %s: %s\n  %s\n", where, said.c_str(), FormatCase(c).c_str());
  };
  report("indices", CheckIndices(c));
  report("order", CheckOrder(c, inputs));
  report("plan", CheckPlan(c, inputs));
  for (const Level& level : levels) {
    std::string said;
    try {
      said = Check(c, *level.kernels, inputs, exact);
    } catch (const std::exception& error) {
      said = std::string("it must not throw, got ") + error.what();
    }
    report(level.name, said);
  }
  return failures;
}

int Main(int count, char** arguments) {
  std::map<std::string, std::string> options;
  const std::set<std::string> known = {"--table", "--seed", "--cases", "--callers", "--level"};
  for (int i = 1; i < count; i += 2) {
    if (known.count(arguments[i]) == 0 || i + 1 == count) {
      throw std::invalid_argument(std::string("options are --table, --seed, --cases, --callers and "
                                              "--level, each with a value, got ") +
                                  arguments[i]);
    }
    options[arguments[i]] = arguments[i + 1];
  }
  const auto number = [&](const char* name, uint64_t otherwise) {
    return options.count(name) ? std::stoull(options[name]) : otherwise;
  };
  std::vector<Case> table;
  if (options.count("--table")) {
    std::ifstream file(options["--table"]);
    for (std::string line; std::getline(file, line);) table.push_back(ParseCase(line));
    if (table.empty()) {
      throw std::invalid_argument("--table must name a file with cases, got " + options["--table"]);
    }
  }
  std::vector<Level> levels;
  for (const Level& level : Levels()) {
    if (options.count("--level") && options["--level"] != level.name) continue;
    const bool runs = level.kernels != nullptr && level.why_not.empty();
    std::printf("%s: %s\n", level.name, runs ? "runs" : level.why_not.c_str());
    if (runs) levels.push_back(level);
  }
  if (levels.empty()) {
    throw std::invalid_argument("--level must be one that runs here, got " + options["--level"]);
  }
  const uint64_t seed = number("--seed", 0), callers = number("--callers", 1);
  const uint64_t cases = table.empty() ? number("--cases", 1000) : table.size();
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (uint64_t caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      for (uint64_t i = caller; i < cases; i += callers) {
        failures += RunCase(table.empty() ? DrawCase(seed + i) : table[i], levels);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%llu cases, %d failures\n", static_cast<unsigned long long>(cases), failures.load());
  return failures == 0 ? 0 : 1;
}

}  // namespace

}  // namespace stal::test

int main(int count, char** arguments) {
  try {
    return stal::test::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 2;
  }
}
