// Accumulated gradients, compiled once per instruction set (ROLI_ISA).
#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "sums.h"

enum { kMomentum, kGrad };

template <class C>
void add_exactly(const C* grad, int64_t count, GradSums& sums) {
  for (int64_t i = 0; i < count; ++i)
    sums.add_gradient<1>(static_cast<double>(grad[i]), 1, false, 0, sizeof(C) == 8);
}

inline void add_groups(const float* __restrict grad, int64_t count, Sums& magnitudes) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int j = 0; j < kSide; ++j) magnitudes.at[j] += static_cast<double>(magnitude(grad[i + j]));
}

template <class C>
void add_magnitudes(const C* grad, int64_t count, GradSums& sums) {
  if constexpr (sizeof(C) == 8) {
    add_exactly(grad, count, sums);
  } else {
    const int64_t whole = count / kSide * kSide;
    Sums magnitudes;
    add_groups(grad, whole, magnitudes);
    GradSums block;
    block.power[0] = magnitudes.total();
    if (is_infinite(block.power[0])) {
      block = {};
      add_exactly(grad, whole, block);
    }
    add_exactly(grad + whole, count - whole, block);
    sums.add(block);
  }
}

template <class T, class C>
void accumulate_block(T* __restrict momentum, const C* __restrict grad, int64_t count, Unit<T, C> unit,
                      T weight, T decay) {
  for (int64_t i = 0; i < count; ++i) momentum[i] = decay * momentum[i] + weighted(unit(grad[i]), weight);
}

template <class T, class C>
void accumulate(const Momentum& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
  const Unit<T, C> unit(state.towards);
  const T weight = weight_of<T>(state.towards, state.movement.length), decay = static_cast<T>(op.decay);
  alignas(64) T momentum_buffer[kBlock];
  alignas(64) C grad_buffer[kBlock];
  const auto add = [&](const Block& block) {
    T* momentum = load_to_change(op.momentum, kMomentum, block, momentum_buffer);
    const C* grad = load(op.grad, kGrad, block, grad_buffer);
    accumulate_block(momentum, grad, block.count, unit, weight, decay);
    store_changed(op.momentum, kMomentum, block, momentum, momentum_buffer);
  };
  for_each_block(op.plan, 2, first, last, add, sample);
}

template <class C>
void gather(const Momentum& op, int64_t sample, int64_t first, int64_t last, GradSums* of_chunks) {
  alignas(64) C buffer[kBlock];
  for (int64_t i = first; i < last; ++i) {
    GradSums& sums = of_chunks[i - first] = {};
    const auto add = [&](const Block& block) {
      add_magnitudes(load(op.grad, kGrad, block, buffer), block.count, sums);
    };
    for_each_block(op.plan, 2, i, i + 1, add, sample);
  }
}

}  // namespace

const SampleKernel<Momentum> momentum = {
    [](const Momentum& op, int, int64_t sample, int64_t first, int64_t last, const SampleState&,
       GradSums* of_chunks) {
      with_types(op.momentum, op.grad,
                 [&](auto, auto c) { gather<decltype(c)>(op, sample, first, last, of_chunks); });
    },
    [](const Momentum& op, int stage, int64_t sample, const GradSums& sums, SampleState& state) {
      with_types(op.momentum, op.grad, [&](auto, auto c) {
        MomentumRule<decltype(c)>(op.plan.elements()).advance(stage, sample, sums, state);
      });
    },
    [](const Momentum& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
      with_types(op.momentum, op.grad, [&](auto t, auto c) {
        accumulate<decltype(t), decltype(c)>(op, sample, first, last, state);
      });
    },
};

}  // namespace roli::cpu::ROLI_ISA
