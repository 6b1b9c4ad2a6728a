// What one instruction set offers; table.cpp makes a table of it.
#pragma once

#include "kernels.h"

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
void cross_entropy_samples(const CrossEntropy&, int64_t first, int64_t last);

// What brings `count` elements of any dtype and stride into the type T of the arithmetic, float or double,
// and back: in blocks.cpp, since the many loops would take each family long to compile.

// As T; uint8 is divided by 255.
template <class T>
void load_converted(const Array&, int64_t offset, int64_t stride, int64_t count, T* buffer);
// T values of the same sign; zero and NaN have none.
template <class T>
void load_signs(const Array&, int64_t offset, int64_t stride, int64_t count, T* buffer);
// Rounded to the array's type.
template <class T>
void store_values(const Array&, int64_t offset, int64_t stride, int64_t count, const T* values);
// The same of (value - mean) / std, with a mean and a std for each element or for all.
template <class T>
void store_normalized(const Array&, int64_t offset, int64_t stride, int64_t count, const T* values,
                      const T* means, const T* stds);
template <class T>
void store_normalized(const Array&, int64_t offset, int64_t stride, int64_t count, const T* values, T mean,
                      T std);

}  // namespace roli::cpu::ROLI_ISA
