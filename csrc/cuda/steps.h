// The operands of a step that looks at whole samples, four elements at a time.
#pragma once

#include "arguments.h"
#include "samples.h"

namespace roli::cuda {

// T: of the state; C: in which gradients are looked at.
template <class T, class C>
struct Four {
  T a[kPack], c[kPack], p[kPack], std[kPack] = {};
  C g[kPack];
  int count = kPack;
};

// Grad, Clean: storage types.
template <class T, class C, class Grad, class Clean>
struct DenseOperands : StepMemory {
  using State = T;
  using Gradient = C;
  static constexpr bool kWide = sizeof(C) == 8, kStrided = false;
  DenseSamples samples;
  Normalizer<T> normalizer;

  DenseOperands(const Step& op, const DenseSamples& samples)
      : StepMemory(op), samples(samples), normalizer(op.normalization) {}

  // Gradients alone, and by which std they are to be divided.
  ROLI_FN void read_grad(int64_t sample, int64_t element, Four<T, C>& four) const {
    const int64_t place = samples.place(sample, element);
    const auto g = fetch<AsValue, C, Grad>(grad, place);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) four.g[k] = meant<AsValue, C, Grad>(g, k);
    if (normalizer.mean == nullptr) return;
    int64_t channel = samples.channel(place);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      four.std[k] = normalizer.std[channel * normalizer.std_stride];
      if (!samples.channel.steady) channel = samples.channel.next(channel, place + k);
    }
  }

  template <bool kPrevious>
  ROLI_FN Four<T, C> read(int64_t sample, int64_t element) const {
    Four<T, C> four;
    const int64_t place = samples.place(sample, element);
    const auto a = fetch<AsValue, T, T>(adv, place);
    const auto c = fetch<AsValue, T, Clean>(clean, place);
    Pack<T> p = {};
    if constexpr (kPrevious) p = fetch<AsValue, T, T>(previous, place);
    if (has_grad()) read_grad(sample, element, four);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      four.a[k] = a.at[k];
      four.c[k] = meant<AsValue, T, Clean>(c, k);
      four.p[k] = p.at[k];
    }
    return four;
  }

  // The new a, and p where there is one.
  template <bool kPrevious>
  ROLI_FN void write(int64_t sample, int64_t element, const Four<T, C>& four) const {
    const int64_t place = samples.place(sample, element);
    put<T>(adv, place, pack(four.a));
    if constexpr (kPrevious) put<T>(previous, place, pack(four.p));
    write_out(place, pack(four.a));
  }

  // The model's input of what stays as it is.
  template <bool kPrevious>
  ROLI_FN void write_input(int64_t sample, int64_t element) const {
    const int64_t place = samples.place(sample, element);
    write_out(place, fetch<AsValue, T, T>(adv, place));
  }

 private:
  static ROLI_FN Pack<T> pack(const T (&values)[kPack]) {
    Pack<T> packed;
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) packed.at[k] = values[k];
    return packed;
  }

  ROLI_FN void write_out(int64_t place, Pack<T> a) const {
    if (!has_out()) return;
    normalizer(a, samples.channel, place);
    put<Any>(out, place, a);
  }
};

// In any layout, one by one.
template <class T, class C>
struct StridedOperands : StepMemory {
  using State = T;
  using Gradient = C;
  static constexpr bool kWide = sizeof(C) == 8, kStrided = true;
  StridedSamples samples;
  Normalizer<T> normalizer;

  explicit StridedOperands(const Step& op)
      : StepMemory(op),
        samples(op.plan, op.operands().count, op.normalization.channels),
        normalizer(op.normalization) {}

  ROLI_FN void read_grad(int64_t sample, int64_t element, Four<T, C>& four) const {
    four.count = samples.count(element);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      if (k >= four.count) break;
      const Place place = samples(sample, element + k);
      four.g[k] = fetch_one<AsValue, C, Any>(grad, place.offset[Step::kGrad]);
      if (normalizer.mean != nullptr) four.std[k] = normalizer.std[place.channel * normalizer.std_stride];
    }
  }

  template <bool kPrevious>
  ROLI_FN Four<T, C> read(int64_t sample, int64_t element) const {
    Four<T, C> four;
    four.count = samples.count(element);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      if (k >= four.count) break;
      const Place place = samples(sample, element + k);
      four.a[k] = fetch_one<AsValue, T, T>(adv, place.offset[Step::kAdv]);
      four.c[k] = fetch_one<AsValue, T, Any>(clean, place.offset[Step::kClean]);
      if constexpr (kPrevious) four.p[k] = fetch_one<AsValue, T, T>(previous, place.offset[Step::kPrevious]);
      if (!has_grad()) continue;
      four.g[k] = fetch_one<AsValue, C, Any>(grad, place.offset[Step::kGrad]);
      if (normalizer.mean != nullptr) four.std[k] = normalizer.std[place.channel * normalizer.std_stride];
    }
    return four;
  }

  template <bool kPrevious>
  ROLI_FN void write(int64_t sample, int64_t element, const Four<T, C>& four) const {
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      if (k >= four.count) break;
      const Place place = samples(sample, element + k);
      put_one<T>(adv, place.offset[Step::kAdv], four.a[k]);
      if constexpr (kPrevious) put_one<T>(previous, place.offset[Step::kPrevious], four.p[k]);
      write_out<kPrevious>(place, four.a[k]);
    }
  }

  template <bool kPrevious>
  ROLI_FN void write_input(int64_t sample, int64_t element) const {
    for (int k = 0; k < samples.count(element); ++k) {
      const Place place = samples(sample, element + k);
      write_out<kPrevious>(place, fetch_one<AsValue, T, T>(adv, place.offset[Step::kAdv]));
    }
  }

 private:
  template <bool kPrevious>
  ROLI_FN void write_out(const Place& place, T a) const {
    if (!has_out()) return;
    put_one<Any>(out, place.offset[Step::out_at(kPrevious)], normalizer(a, place.channel));
  }
};

// Calls run(operands) with the operands of a step as its kernels read them, their types T and C known.
template <class Op, class Run>
void with_operands(Op& op, Shape shape, Run&& run) {
  const bool wide = op.adv.dtype == DType::f64, wide_grad = op.grad.dtype == DType::f64;
  DenseSamples samples;
  if (make_dense_samples(samples, shape, op.operands())) {
    if (wide) return run(DenseOperands<double, double, Any, Any>(op, samples));
    if (wide_grad) return run(DenseOperands<float, double, Any, Any>(op, samples));
    if (op.clean.dtype == DType::f32 && op.grad.dtype == DType::f32)
      return run(DenseOperands<float, float, float, float>(op, samples));
    if (op.clean.dtype == DType::f32 && op.grad.dtype == DType::bf16)
      return run(DenseOperands<float, float, bfloat16, float>(op, samples));
    return run(DenseOperands<float, float, Any, Any>(op, samples));
  }
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  if (wide) return run(StridedOperands<double, double>(op));
  if (wide_grad) return run(StridedOperands<float, double>(op));
  run(StridedOperands<float, float>(op));
}

}  // namespace roli::cuda
