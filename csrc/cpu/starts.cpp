// Random points of L2 and L1 balls, compiled once per instruction set (ROLI_ISA). The draws are put where the
// points will be: scaling them there costs less than drawing them twice.
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "draws.h"
#include "sums.h"

enum { kStart, kClean };

// Of whole blocks of four words; the draws that lie before or behind are not used.
struct Normal {
  static constexpr int kPower = 2;
  static void draw(const uint32_t* __restrict words, float* __restrict draws, int64_t count) {
    for (int64_t i = 0; i < count; i += 2) {
      const Pair pair = normal_pair(words[i], words[i + 1]);
      draws[i] = pair.x;
      draws[i + 1] = pair.y;
    }
  }
  static double term(double z) { return z * z; }
};

struct Laplace {
  static constexpr int kPower = 1;
  static void draw(const uint32_t* __restrict words, float* __restrict draws, int64_t count) {
    for (int64_t i = 0; i < count; ++i) draws[i] = laplace(words[i]);
  }
  static double term(double z) { return z < 0 ? -z : z; }
};

template <class Draws>
double norm_of(const float* __restrict draws, int64_t count) {
  Sums sums;
  const int64_t whole = count / kSide * kSide;
  for (int64_t i = 0; i < whole; i += kSide)
    for (int j = 0; j < kSide; ++j) sums.at[j] += Draws::term(static_cast<double>(draws[i + j]));
  double norm = sums.total();
  for (int64_t i = whole; i < count; ++i) norm += Draws::term(static_cast<double>(draws[i]));
  return norm;
}

template <class Draws, class T>
void draw_chunks(const Start& op, int64_t sample, int64_t first, int64_t last, GradSums* of_chunks) {
  const Plan& plan = op.plan;
  const PhiloxKey key = philox_key(op.seed[0], op.seed[op.seed_stride]);
  const int64_t index = op.index == nullptr ? sample : op.index[sample * op.index_stride];
  alignas(64) uint32_t words[kWords];
  alignas(64) float draws[kWords];
  alignas(64) T widened_draws[kBlock];
  for (int64_t i = first; i < last; ++i) {
    GradSums& sums = of_chunks[i - first] = {};
    const auto chunk = [&](const Chunk& chunk) {
      const int64_t logical = chunk.row * plan.length + chunk.begin;
      for_each_block(chunk, [&](int64_t begin, int64_t count) {
        const int64_t skip = draw_words(key, index, logical + begin, count, words) - words;
        Draws::draw(words, draws, (skip + count + 3) / 4 * 4);
        sums.dd += norm_of<Draws>(draws + skip, count);
        for (int64_t i = 0; i < count; ++i) widened_draws[i] = static_cast<T>(draws[skip + i]);
        const int64_t stride = plan.row_stride[kStart];
        store(op.start, chunk.offset[kStart] + begin * stride, stride, count, widened_draws);
      });
    };
    for_each_chunk(plan, 2, i, i + 1, chunk, sample);
  }
}

template <class T>
void place_block(const T* __restrict clean, T* __restrict start, int64_t count, T weight, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) start[i] = placed(clean[i], start[i], weight, lo, hi);
}

template <class T>
void place_chunks(const Start& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
  const Plan& plan = op.plan;
  const T weight = weight_of<T>(state.towards, state.movement.length);
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  alignas(64) T clean_buffer[kBlock], start_buffer[kBlock];
  const auto chunk = [&](const Chunk& chunk) {
    for_each_block(chunk, [&](int64_t begin, int64_t count) {
      const int64_t stride = plan.row_stride[kStart];
      const int64_t at = chunk.offset[kStart] + begin * stride;
      T* start = const_cast<T*>(load(op.start, at, stride, count, start_buffer));
      const T* clean = load(op.clean, chunk.offset[kClean] + begin * plan.row_stride[kClean],
                            plan.row_stride[kClean], count, clean_buffer);
      place_block(clean, start, count, weight, lo, hi);
      if (start == start_buffer) store(op.start, at, stride, count, start);
    });
  };
  for_each_chunk(plan, 2, first, last, chunk, sample);
}

template <class Op, class Draws>
constexpr SampleKernel<Op> start_kernel = {
    [](const Op& op, int, int64_t sample, int64_t first, int64_t last, const SampleState&,
       GradSums* of_chunks) {
      with_state_type(op.start.dtype, [&](auto tag) {
        draw_chunks<Draws, decltype(tag)>(op, sample, first, last, of_chunks);
      });
    },
    [](const Op& op, int stage, int64_t sample, const GradSums& sums, SampleState& state) {
      with_state_type(op.start.dtype, [&](auto tag) {
        StartRule<decltype(tag), Draws::kPower>(op, op.plan.elements()).advance(stage, sample, sums, state);
      });
    },
    [](const Op& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
      with_state_type(op.start.dtype,
                      [&](auto tag) { place_chunks<decltype(tag)>(op, sample, first, last, state); });
    },
};

}  // namespace

const SampleKernel<L2Start> l2_start = start_kernel<L2Start, Normal>;
const SampleKernel<L1Start> l1_start = start_kernel<L1Start, Laplace>;

}  // namespace roli::cpu::ROLI_ISA
