#include "cpu/levels.h"

#include <utility>

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
#endif

std::vector<Level> FindLevels() {
  std::vector<Level> levels;
  [[maybe_unused]] const std::string not_built = "the compiler could not build it";
#if defined(__x86_64__)
#if defined(STAL_LEVEL_AVX512)
  const Flags avx512 = {STAL_FLAG("avx512f"), STAL_FLAG("avx512bw"), STAL_FLAG("avx512dq"),
                        STAL_FLAG("avx512vl")};
  levels.push_back({"avx512", &kAvx512, Missing(avx512)});
#else
  levels.push_back({"avx512", nullptr, not_built});
#endif
#if defined(STAL_LEVEL_AVX2)
  // Older compilers do not know the name of f16c, which every CPU with AVX2 has.
  const Flags avx2 = {STAL_FLAG("avx2"), STAL_FLAG("fma")};
  levels.push_back({"avx2", &kAvx2, Missing(avx2)});
#else
  levels.push_back({"avx2", nullptr, not_built});
#endif
#endif
  levels.push_back({"portable", &kPortable, ""});
  return levels;
}

}  // namespace

const std::vector<Level>& Levels() {
  static const std::vector<Level> levels = FindLevels();
  return levels;
}

}  // namespace stal
