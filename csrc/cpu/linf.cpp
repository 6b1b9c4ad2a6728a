// The Linf family and the model's input, compiled once per instruction set (ROLI_ISA).
#include "../common/linf.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "../common/philox.h"
#include "kernels.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"

template <class T>
void step_block(T* __restrict adv, const T* __restrict grad, const T* __restrict clean, int64_t count,
                T step_size, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) adv[i] = linf_step(adv[i], grad[i], clean[i], step_size, eps, lo, hi);
}

template <class T>
void project_block(T* __restrict adv, const T* __restrict clean, int64_t count, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) adv[i] = linf_project(adv[i], clean[i], eps, lo, hi);
}

enum Operand { kAdv, kClean, kGrad, kOut };

template <class T>
void step_chunks(const LinfStep& op, int64_t first, int64_t last) {
  const Plan& plan = op.plan;
  const bool has_grad = op.grad.data != nullptr, has_out = op.out.data != nullptr;
  const bool in_place = plan.row_stride[kAdv] == 1;
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  const Normalizer<T> normalizer(op.normalization, plan.channel);
  alignas(64) T adv_buffer[kBlock], clean_buffer[kBlock], grad_buffer[kBlock], out_buffer[kBlock];

  for_each_chunk(plan, op.operands().count, first, last, [&](const Chunk& chunk) {
    const bool active = op.active == nullptr || op.active[chunk.sample * op.active_stride];
    if (!active && !has_out) return;
    const T eps = value<T>(op.eps, chunk.sample);
    const T step_size = value<T>(op.step_size, chunk.sample);
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const auto offset = [&](int operand) {
        return chunk.offset[operand] + begin * plan.row_stride[operand];
      };
      T* adv = in_place ? elements<T>(op.adv, offset(kAdv)) : adv_buffer;
      if (!in_place) load(op.adv, offset(kAdv), plan.row_stride[kAdv], count, adv_buffer);
      if (active) {
        const T* clean = load(op.clean, offset(kClean), plan.row_stride[kClean], count, clean_buffer);
        if (has_grad) {
          const T* grad = load_sign(op.grad, offset(kGrad), plan.row_stride[kGrad], count, grad_buffer);
          step_block(adv, grad, clean, count, step_size, eps, lo, hi);
        } else {
          project_block(adv, clean, count, eps, lo, hi);
        }
        if (!in_place) store(op.adv, offset(kAdv), plan.row_stride[kAdv], count, adv);
      }
      if (has_out) {
        const T* input = normalizer(adv, count, chunk.begin + begin, chunk.channel, out_buffer);
        store(op.out, offset(kOut), plan.row_stride[kOut], count, input);
      }
    });
  });
}

// The draws of logical elements [begin, begin + count) of a sample. Philox gives four at a time.
template <class T>
void draw(PhiloxKey key, int64_t sample, int64_t begin, int64_t count, T* __restrict draws) {
  const int64_t first = begin / 4, blocks = (begin + count + 3) / 4 - first;
  alignas(64) uint32_t bits[4][kBlock / 4 + 1];
  for (int64_t i = 0; i < blocks; ++i) {
    const Philox4 x = philox_block(key, sample, first + i);
    bits[0][i] = x.x0;
    bits[1][i] = x.x1;
    bits[2][i] = x.x2;
    bits[3][i] = x.x3;
  }
  const int64_t skip = begin - 4 * first;
  if (skip == 0 && count == 4 * blocks) {
    for (int64_t i = 0; i < blocks; ++i)
      for (int lane = 0; lane < 4; ++lane) draws[4 * i + lane] = symmetric_uniform<T>(bits[lane][i]);
  } else {
    for (int64_t i = 0; i < count; ++i) draws[i] = symmetric_uniform<T>(bits[(skip + i) % 4][(skip + i) / 4]);
  }
}

template <class T>
void start_chunks(const LinfStart& op, int64_t first, int64_t last) {
  enum { kStart, kClean };
  const Plan& plan = op.plan;
  const PhiloxKey key = philox_key(op.seed[0], op.seed[op.seed_stride]);
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  const int64_t samples = plan.sample_dim < 0 ? 1 : plan.size[plan.sample_dim];
  const int64_t rows_per_sample = plan.rows / samples;
  alignas(64) T clean_buffer[kBlock], draws[kBlock], start[kBlock];

  for_each_chunk(plan, 2, first, last, [&](const Chunk& chunk) {
    const int64_t sample = op.index == nullptr ? chunk.sample : op.index[chunk.sample * op.index_stride];
    const int64_t logical = chunk.row % rows_per_sample * plan.length + chunk.begin;
    const T eps = value<T>(op.eps, chunk.sample);
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const T* __restrict clean = load(op.clean, chunk.offset[kClean] + begin * plan.row_stride[kClean],
                                       plan.row_stride[kClean], count, clean_buffer);
      draw(key, sample, logical + begin, count, draws);
      for (int64_t i = 0; i < count; ++i) start[i] = linf_start(clean[i], draws[i], eps, lo, hi);
      store(op.start, chunk.offset[kStart] + begin * plan.row_stride[kStart], plan.row_stride[kStart], count,
            start);
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

extern const Kernels kernels;
const Kernels kernels = {
    ROLI_ISA_NAME,
    [](const LinfStep& op, int64_t first, int64_t last) {
      with_state_type(op.adv.dtype, [&](auto tag) { step_chunks<decltype(tag)>(op, first, last); });
    },
    [](const LinfStart& op, int64_t first, int64_t last) {
      with_state_type(op.start.dtype, [&](auto tag) { start_chunks<decltype(tag)>(op, first, last); });
    },
    [](const Prepare& op, int64_t first, int64_t last) {
      with_state_type(op.adv.dtype, [&](auto tag) { prepare_chunks<decltype(tag)>(op, first, last); });
    },
};

}  // namespace roli::cpu::ROLI_ISA
