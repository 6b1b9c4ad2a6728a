// Random points of balls, compiled once per instruction set (ROLI_ISA).
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "isa.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "draws.h"
#include "sums.h"

enum { kStart, kClean };

// Linf: element by element.

template <class T>
void linf_block(const T* __restrict clean, const uint32_t* __restrict words, T* __restrict start,
                int64_t count, T eps, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i)
    start[i] = linf_start(clean[i], symmetric_uniform<T>(words[i]), eps, lo, hi);
}

template <class T>
void linf_chunks(const LinfStart& op, int64_t first, int64_t last) {
  const Plan& plan = op.plan;
  const PhiloxKey key = op.seed.key();
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  const int64_t samples = plan.sample_dim < 0 ? 1 : plan.size[plan.sample_dim];
  const int64_t rows_per_sample = plan.rows / samples;
  alignas(64) T clean_buffer[kBlock], start_buffer[kBlock];
  alignas(64) uint32_t word_buffer[kWords];
  for_each_block(plan, 2, first, last, [&](const Block& block) {
    const int64_t sample = block.chunk.sample;
    const int64_t logical = block.chunk.row % rows_per_sample * plan.length + block.position();
    const T* clean = load(op.clean, kClean, block, clean_buffer);
    const uint32_t* words = draw_words(key, op.seed.index_of(sample), logical, block.count, word_buffer);
    T* start = block.stride(kStart) == 1 ? elements<T>(op.start, block.offset(kStart)) : start_buffer;
    linf_block(clean, words, start, block.count, op.eps.of<T>(sample), lo, hi);
    store_changed(op.start, kStart, block, start, start_buffer);
  });
}

// L2 and L1: the draws are put where the points will be, since scaling them there costs less than drawing
// them twice.

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
  const PhiloxKey key = op.seed.key();
  const int64_t index = op.seed.index_of(sample);
  alignas(64) uint32_t words[kWords];
  alignas(64) float draws[kWords];
  alignas(64) T widened_draws[kBlock];
  for (int64_t i = first; i < last; ++i) {
    GradSums& sums = of_chunks[i - first] = {};
    const auto draw = [&](const Block& block) {
      const int64_t logical = block.chunk.row * op.plan.length + block.position();
      const int64_t skip = draw_words(key, index, logical, block.count, words) - words;
      Draws::draw(words, draws, (skip + block.count + 3) / 4 * 4);
      sums.dd += norm_of<Draws>(draws + skip, block.count);
      for (int64_t k = 0; k < block.count; ++k) widened_draws[k] = static_cast<T>(draws[skip + k]);
      store(op.start, kStart, block, widened_draws);
    };
    for_each_block(op.plan, 2, i, i + 1, draw, sample);
  }
}

template <class T>
void place_block(const T* __restrict clean, T* __restrict start, int64_t count, T weight, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) start[i] = placed(clean[i], start[i], weight, lo, hi);
}

template <class T>
void place_chunks(const Start& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
  const T weight = weight_of<T>(state.towards, state.movement.length);
  const T lo = static_cast<T>(op.box.lo), hi = static_cast<T>(op.box.hi);
  alignas(64) T clean_buffer[kBlock], start_buffer[kBlock];
  const auto place = [&](const Block& block) {
    T* start = load_to_change(op.start, kStart, block, start_buffer);
    const T* clean = load(op.clean, kClean, block, clean_buffer);
    place_block(clean, start, block.count, weight, lo, hi);
    store_changed(op.start, kStart, block, start, start_buffer);
  };
  for_each_block(op.plan, 2, first, last, place, sample);
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

void linf_start_chunks(const LinfStart& op, int64_t first, int64_t last) {
  with_state_type(op.start.dtype, [&](auto tag) { linf_chunks<decltype(tag)>(op, first, last); });
}

const SampleKernel<L2Start> l2_start = start_kernel<L2Start, Normal>;
const SampleKernel<L1Start> l1_start = start_kernel<L1Start, Laplace>;

}  // namespace roli::cpu::ROLI_ISA
