// The best iterates, compiled once per instruction set (ROLI_ISA).
#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"

template <class T>
void keep_best(const KeepBest& op, int64_t first, int64_t last) {
  enum { kBest, kAdv };
  alignas(64) T buffer[kBlock];
  for (int64_t sample = first; sample < last; ++sample) {
    T& best_value = static_cast<T*>(op.best_value)[sample * op.best_value_stride];
    const T value = static_cast<const T*>(op.value)[sample * op.value_stride];
    if (!op.active.has(sample) || !(value > best_value)) continue;
    best_value = value;
    const auto keep = [&](const Block& block) {
      store(op.best, kBest, block, load(op.adv, kAdv, block, buffer));
    };
    for_each_block(op.plan, 2, 0, op.plan.chunks(), keep, sample);
  }
}

}  // namespace

void keep_best_samples(const KeepBest& op, int64_t first, int64_t last) {
  with_state_type(op.best.dtype, [&](auto tag) { keep_best<decltype(tag)>(op, first, last); });
}

}  // namespace roli::cpu::ROLI_ISA
