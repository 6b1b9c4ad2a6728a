// The CPU kernels behind one table per instruction set. No torch: an op is planned once and its chunks
// [first, last) may be run on any thread.
#pragma once

#include <cstdint>

#include "../common/ops.h"

namespace roli::cpu {

struct Kernels {
  const char* name;
  void (*linf_step)(const LinfStep&, int64_t first, int64_t last);
  void (*linf_start)(const LinfStart&, int64_t first, int64_t last);
  void (*prepare)(const Prepare&, int64_t first, int64_t last);
};

// The widest instruction set that was built and that this processor has, or the one that
// ROLI_FAST_CPU_CAPABILITY names. Throws std::runtime_error where that one cannot run.
const Kernels& kernels();

// Those that were built, narrowest first, ended by a null name.
extern const Kernels* const built[];

}  // namespace roli::cpu
