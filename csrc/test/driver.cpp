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
#include "tensors.h"

namespace stal::test {

namespace {

// ---- calls ----

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
