// The Linf steps, compiled once per instruction set (ROLI_ISA).
#include "../common/linf.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"

template <class T>
void step_block(T* __restrict adv, const T* __restrict grad, const T* __restrict clean, int64_t count,
                T step_size, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) adv[i] = linf_step(adv[i], grad[i], clean[i], step_size, eps, lo, hi);
}

template <class T>
void apgd_block(T* __restrict adv, T* __restrict previous, const T* __restrict grad,
                const T* __restrict clean, int64_t count, T step_size, T eps, T momentum, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) {
    const T before = adv[i];
    adv[i] = linf_apgd_step(before, previous[i], grad[i], clean[i], step_size, eps, momentum, lo, hi);
    previous[i] = before;
  }
}

template <class T>
void project_block(T* __restrict adv, const T* __restrict clean, int64_t count, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) adv[i] = linf_project(adv[i], clean[i], eps, lo, hi);
}

template <class T>
void step_chunks(const LinfStep& op, int64_t first, int64_t last) {
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  StepBlocks<T, T, Grad::signs> blocks(op);
  blocks.write(0, first, last, [&](const auto& b) {
    const T eps = op.eps.of<T>(b.sample);
    const T step_size = op.step_size.of<T>(b.sample);
    if (op.has_previous())
      apgd_block(b.adv, b.previous, b.grad, b.clean, b.count, step_size, eps, op.momentum.of<T>(b.sample), lo,
                 hi);
    else if (op.has_grad())
      step_block(b.adv, b.grad, b.clean, b.count, step_size, eps, lo, hi);
    else
      project_block(b.adv, b.clean, b.count, eps, lo, hi);
  });
}

}  // namespace

void linf_step_chunks(const LinfStep& op, int64_t first, int64_t last) {
  with_state_type(op.adv.dtype, [&](auto tag) { step_chunks<decltype(tag)>(op, first, last); });
}

}  // namespace roli::cpu::ROLI_ISA
