// Accumulated gradients and the best iterates, compiled once per instruction set (ROLI_ISA).
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "../common/direction.h"
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
  const Plan& plan = op.plan;
  const Unit<T, C> unit(state.towards);
  const T weight = weight_of<T>(state.towards, state.movement.length), decay = static_cast<T>(op.decay);
  alignas(64) T momentum_buffer[kBlock];
  alignas(64) C grad_buffer[kBlock];
  const auto chunk = [&](const Chunk& chunk) {
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const int64_t stride = plan.row_stride[kMomentum];
      const int64_t at = chunk.offset[kMomentum] + begin * stride;
      T* momentum = const_cast<T*>(load(op.momentum, at, stride, count, momentum_buffer));
      const C* grad = load(op.grad, chunk.offset[kGrad] + begin * plan.row_stride[kGrad],
                           plan.row_stride[kGrad], count, grad_buffer);
      accumulate_block(momentum, grad, count, unit, weight, decay);
      if (momentum == momentum_buffer) store(op.momentum, at, stride, count, momentum);
    });
  };
  for_each_chunk(plan, 2, first, last, chunk, sample);
}

template <class C>
void gather(const Momentum& op, int64_t sample, int64_t first, int64_t last, GradSums* of_chunks) {
  const Plan& plan = op.plan;
  alignas(64) C buffer[kBlock];
  for (int64_t i = first; i < last; ++i) {
    GradSums& sums = of_chunks[i - first] = {};
    const auto chunk = [&](const Chunk& chunk) {
      for_each_block(chunk, [&](int64_t begin, int64_t count) {
        const int64_t at = chunk.offset[kGrad] + begin * plan.row_stride[kGrad];
        add_magnitudes(load(op.grad, at, plan.row_stride[kGrad], count, buffer), count, sums);
      });
    };
    for_each_chunk(plan, 2, i, i + 1, chunk, sample);
  }
}

template <class T>
void keep_best_samples(const KeepBest& op, int64_t first, int64_t last) {
  enum { kBest, kAdv };
  const Plan& plan = op.plan;
  alignas(64) T buffer[kBlock];
  for (int64_t sample = first; sample < last; ++sample) {
    T& best_value = static_cast<T*>(op.best_value)[sample * op.best_value_stride];
    const T value = static_cast<const T*>(op.value)[sample * op.value_stride];
    if (!has(op.active, sample) || !(value > best_value)) continue;
    best_value = value;
    const auto chunk = [&](const Chunk& chunk) {
      for_each_block(chunk, [&](int64_t begin, int64_t count) {
        const T* adv = load(op.adv, chunk.offset[kAdv] + begin * plan.row_stride[kAdv], plan.row_stride[kAdv],
                            count, buffer);
        const int64_t stride = plan.row_stride[kBest];
        store(op.best, chunk.offset[kBest] + begin * stride, stride, count, adv);
      });
    };
    for_each_chunk(plan, 2, 0, plan.chunks(), chunk, sample);
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

void keep_best(const KeepBest& op, int64_t first, int64_t last) {
  with_state_type(op.best.dtype, [&](auto tag) { keep_best_samples<decltype(tag)>(op, first, last); });
}

}  // namespace roli::cpu::ROLI_ISA
