#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace roli::cpu {

namespace baseline {
extern const Kernels kernels;
}
#ifdef ROLI_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

const Kernels* const built[] = {
    &baseline::kernels,
#ifdef ROLI_X86
    &avx2::kernels,
    &avx512::kernels,
#endif
    nullptr,
};

namespace {

bool runs_here(const Kernels& kernels) {
#ifdef ROLI_X86
  if (&kernels == &avx512::kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (&kernels == &avx2::kernels) return __builtin_cpu_supports("avx2");
#endif
  return &kernels == &baseline::kernels;
}

const Kernels& choose() {
  const char* wanted = std::getenv("ROLI_FAST_CPU_CAPABILITY");
  const bool any = wanted == nullptr || *wanted == '\0';
  const Kernels* chosen = nullptr;
  std::string accepted;
  for (const Kernels* const* k = built; *k != nullptr; ++k) {
    if (!runs_here(**k)) continue;
    accepted += (accepted.empty() ? "" : ", ") + std::string((*k)->name);
    if (any || std::string((*k)->name) == wanted) chosen = *k;
  }
  if (chosen == nullptr)
    throw std::runtime_error("ROLI_FAST_CPU_CAPABILITY is '" + std::string(wanted) +
                             "'; this machine and build run: " + accepted);
  return *chosen;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace roli::cpu
