// What one instruction set offers; table.cpp makes a table of it.
#pragma once

#include "kernels.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace roli::cpu::ROLI_ISA {

void linf_step_chunks(const LinfStep&, int64_t first, int64_t last);
void linf_start_chunks(const LinfStart&, int64_t first, int64_t last);
extern const SampleKernel<L2Step> l2_step;
extern const SampleKernel<L2Start> l2_start;
void l1_step_sample(const L1Step&, int64_t sample, const Scratch&);
extern const SampleKernel<L1Start> l1_start;
extern const SampleKernel<Momentum> momentum;
void keep_best_samples(const KeepBest&, int64_t first, int64_t last);
void prepare_chunks(const Prepare&, int64_t first, int64_t last);

}  // namespace roli::cpu::ROLI_ISA
