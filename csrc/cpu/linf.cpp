// The Linf family and the model's input, compiled once per instruction set (ROLI_ISA).
#include "../common/linf.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "../common/philox.h"
#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "draws.h"

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
    const T eps = value<T>(op.eps, b.sample);
    const T step_size = value<T>(op.step_size, b.sample);
    if (op.has_previous())
      apgd_block(b.adv, b.previous, b.grad, b.clean, b.count, step_size, eps, value<T>(op.momentum, b.sample),
                 lo, hi);
    else if (op.has_grad())
      step_block(b.adv, b.grad, b.clean, b.count, step_size, eps, lo, hi);
    else
      project_block(b.adv, b.clean, b.count, eps, lo, hi);
  });
}

template <class T>
void start_block(const T* __restrict clean, const uint32_t* __restrict words, T* __restrict start,
                 int64_t count, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i)
    start[i] = linf_start(clean[i], symmetric_uniform<T>(words[i]), eps, lo, hi);
}

template <class T>
void start_chunks(const LinfStart& op, int64_t first, int64_t last) {
  enum { kStart, kClean };
  const Plan& plan = op.plan;
  const PhiloxKey key = philox_key(op.seed[0], op.seed[op.seed_stride]);
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  const int64_t samples = plan.sample_dim < 0 ? 1 : plan.size[plan.sample_dim];
  const int64_t rows_per_sample = plan.rows / samples;
  alignas(64) T clean_buffer[kBlock], start_buffer[kBlock];
  alignas(64) uint32_t word_buffer[kWords];

  for_each_chunk(plan, 2, first, last, [&](const Chunk& chunk) {
    const int64_t sample = op.index == nullptr ? chunk.sample : op.index[chunk.sample * op.index_stride];
    const int64_t logical = chunk.row % rows_per_sample * plan.length + chunk.begin;
    const T eps = value<T>(op.eps, chunk.sample);
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const int64_t stride = plan.row_stride[kStart];
      const int64_t at = chunk.offset[kStart] + begin * stride;
      const T* clean = load(op.clean, chunk.offset[kClean] + begin * plan.row_stride[kClean],
                            plan.row_stride[kClean], count, clean_buffer);
      const uint32_t* words = draw_words(key, sample, logical + begin, count, word_buffer);
      T* start = stride == 1 ? elements<T>(op.start, at) : start_buffer;
      start_block(clean, words, start, count, eps, lo, hi);
      if (start == start_buffer) store(op.start, at, stride, count, start);
    });
  });
}

template <class T>
void prepare_chunks(const Prepare& op, int64_t first, int64_t last) {
  enum { kOut, kAdv };
  const Plan& plan = op.plan;
  const Normalizer<T> normalizer(op.normalization, plan.channel);
  alignas(64) T adv_buffer[kBlock], out_buffer[kBlock];

  for_each_chunk(plan, 2, first, last, [&](const Chunk& chunk) {
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const T* adv = load(op.adv, chunk.offset[kAdv] + begin * plan.row_stride[kAdv], plan.row_stride[kAdv],
                          count, adv_buffer);
      const T* input = normalizer(adv, count, chunk.begin + begin, chunk.channel, out_buffer);
      store(op.out, chunk.offset[kOut] + begin * plan.row_stride[kOut], plan.row_stride[kOut], count, input);
    });
  });
}

}  // namespace

void linf_step_chunks(const LinfStep& op, int64_t first, int64_t last) {
  with_state_type(op.adv.dtype, [&](auto tag) { step_chunks<decltype(tag)>(op, first, last); });
}

void linf_start_chunks(const LinfStart& op, int64_t first, int64_t last) {
  with_state_type(op.start.dtype, [&](auto tag) { start_chunks<decltype(tag)>(op, first, last); });
}

void prepared_chunks(const Prepare& op, int64_t first, int64_t last) {
  with_state_type(op.adv.dtype, [&](auto tag) { prepare_chunks<decltype(tag)>(op, first, last); });
}

}  // namespace roli::cpu::ROLI_ISA
