#include "cpu/levels.h"

#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>

#include "cpu/amx_permission.h"
#endif

namespace stal {

namespace {

#if defined(__x86_64__)
using Flags = std::vector<std::pair<const char*, bool>>;

// __builtin_cpu_supports takes only literals. It asks the operating system too.
#define STAL_FLAG(name) {name, static_cast<bool>(__builtin_cpu_supports(name))}

std::string Missing(const Flags& flags) {
  std::string names;
  for (const auto& [name, present] : flags) {
    if (!present) names += std::string(names.empty() ? "" : ", ") + name;
  }
  return names.empty() ? "" : "this CPU lacks " + names;
}

// Register `index` of cpuid leaf 7, for flags whose names older compilers do not know.
bool HasBit(unsigned subleaf, int index, int bit) {
  unsigned registers[4] = {};
  __get_cpuid_count(7, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
  return registers[index] >> bit & 1;
}

std::string Vendor() {
  unsigned most, registers[3] = {};
  __get_cpuid(0, &most, &registers[0], &registers[2], &registers[1]);
  char name[sizeof(registers)];
  std::memcpy(name, registers, sizeof(name));
  return std::string(name, sizeof(name));
}

[[maybe_unused]] std::string WhyNotAmx(const Flags& others) {
  Flags flags = {{"amx_tile", HasBit(0, 3, 24)}, {"amx_bf16", HasBit(0, 3, 22)}};
  flags.insert(flags.end(), others.begin(), others.end());
  const std::string missing = Missing(flags);
  if (!missing.empty()) return missing;
  return MayUseTiles() ? "" : "the operating system gives no permission to use AMX";
}
#endif

std::vector<Level> FindLevels() {
  std::vector<Level> levels;
  [[maybe_unused]] const std::string not_built = "the compiler could not build it";
#if defined(__x86_64__)
  const Flags avx512 = {STAL_FLAG("avx512f"), STAL_FLAG("avx512bw"), STAL_FLAG("avx512dq"),
                        STAL_FLAG("avx512vl")};
  Flags bf16 = {{"avx512_bf16", HasBit(1, 0, 5)}};
  bf16.insert(bf16.end(), avx512.begin(), avx512.end());
#if defined(STAL_LEVEL_AMX)
  levels.push_back({"amx", &kAmx, WhyNotAmx(bf16)});
#else
  levels.push_back({"amx", nullptr, not_built});
#endif
#if defined(STAL_LEVEL_AVX512)
  levels.push_back({"avx512", &kAvx512, Missing(avx512)});
#else
  levels.push_back({"avx512", nullptr, not_built});
#endif
#if defined(STAL_LEVEL_AVX512_BF16)
  levels.push_back({"avx512_bf16", &kAvx512Bf16, Missing(bf16)});
#else
  levels.push_back({"avx512_bf16", nullptr, not_built});
#endif
#if defined(STAL_LEVEL_AVX2)
  // Older compilers do not know the name of f16c, which every CPU with AVX2 has.
  const Flags avx2 = {STAL_FLAG("avx2"), STAL_FLAG("fma")};
  levels.push_back({"avx2", &kAvx2, Missing(avx2)});
#else
  levels.push_back({"avx2", nullptr, not_built});
#endif
#else
  for (const char* name : {"amx", "avx512_bf16", "avx512", "avx2"}) {
    levels.push_back({name, nullptr, "this CPU lacks x86-64"});
  }
#endif
#if defined(STAL_LEVEL_NEON)
  levels.push_back({"neon", &kNeon, ""});
#elif defined(__aarch64__)
  levels.push_back({"neon", nullptr, not_built});
#else
  levels.push_back({"neon", nullptr, "this CPU lacks neon"});
#endif
  levels.push_back({"portable", &kPortable, ""});
#if defined(STAL_LEVEL_AVX512_BF16_MODEL)
  levels.push_back({"avx512_bf16_model", &kAvx512Bf16Model, ""});
#endif
#if defined(STAL_LEVEL_AMX_MODEL)
  levels.push_back({"amx_model", &kAmxModel, ""});
#endif
#if defined(__x86_64__)
  const std::vector<std::string> order = LevelOrder(Vendor());
#else
  const std::vector<std::string> order = LevelOrder("");
#endif
  const auto place = [&](const Level& level) {
    return std::find(order.begin(), order.end(), level.name);
  };
  std::sort(levels.begin(), levels.end(),
            [&](const Level& x, const Level& y) { return place(x) < place(y); });
  return levels;
}

}  // namespace

// By vendor, not by a measurement when the library is loaded: a call must give the same bits every
// day. In pairs of bfloat16 AMD Zen 4 does more than twice the arithmetic of float32, Intel
// Sapphire Rapids half of it (measured: 90 against 179 GFLOP/s a core). Others, of which none was
// measured, are taken for AMD's.
std::vector<std::string> LevelOrder(const std::string& vendor) {
  std::vector<std::string> order = {"amx",  "avx512_bf16", "avx512",            "avx2",
                                    "neon", "portable",    "avx512_bf16_model", "amx_model"};
  if (vendor == "GenuineIntel") std::swap(order[1], order[2]);
  return order;
}

const std::vector<Level>& Levels() {
  static const std::vector<Level> levels = FindLevels();
  return levels;
}

}  // namespace stal
