// The CPU kernels behind one table per instruction set. No torch: an op is planned once and its chunks
// [first, last), or its samples, may be run on any thread.
#pragma once

#include <cstdint>

#include "../common/ops.h"
#include "../common/samples.h"

namespace roli::cpu {

// An op that looks at a whole sample before it writes: sums of its chunks, added in order whatever the number
// of threads; from these a state; then its chunks again.
template <class Op>
struct SampleKernel {
  void (*gather)(const Op&, int stage, int64_t sample, int64_t first, int64_t last, const SampleState&,
                 GradSums* of_chunks);
  void (*advance)(const Op&, int stage, int64_t sample, const GradSums&, SampleState&);
  void (*apply)(const Op&, int64_t sample, int64_t first, int64_t last, const SampleState&);
};

// What an L1 step needs of memory, for one sample after the other: of as many elements as a sample has.
struct Scratch {
  void* point;  // of the state's dtype
  void* v;
  void* u;
  void* key;  // of 8 bytes
};

struct Kernels {
  const char* name;
  void (*linf_step)(const LinfStep&, int64_t first, int64_t last);
  void (*linf_start)(const LinfStart&, int64_t first, int64_t last);
  const SampleKernel<L2Step>* l2_step;
  const SampleKernel<L2Start>* l2_start;
  void (*l1_step)(const L1Step&, int64_t sample, const Scratch&);
  const SampleKernel<L1Start>* l1_start;
  const SampleKernel<Momentum>* momentum;
  void (*keep_best)(const KeepBest&, int64_t first_sample, int64_t last_sample);
  void (*prepare)(const Prepare&, int64_t first, int64_t last);
  void (*cross_entropy)(const CrossEntropy&, int64_t first_sample, int64_t last_sample);
};

// The widest instruction set that was built and that this processor has, or the one that
// ROLI_FAST_CPU_CAPABILITY names. Throws std::runtime_error where that one cannot run.
const Kernels& kernels();

// Those that were built, narrowest first, ended by null.
extern const Kernels* const built[];

}  // namespace roli::cpu
