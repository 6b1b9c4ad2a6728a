// Random points of L2 and L1 balls. The draws are put where the points will be, and scaled there.
#include "arguments.h"
#include "kernels.h"
#include "samples.h"

namespace roli::cuda {
namespace {

struct Normal {
  static constexpr int kPower = 2;
  static ROLI_FN Pack<float> draw(const Philox4& words) {
    const Pair first = normal_pair(words.x0, words.x1), second = normal_pair(words.x2, words.x3);
    return {{first.x, first.y, second.x, second.y}};
  }
};

struct Laplace {
  static constexpr int kPower = 1;
  static ROLI_FN Pack<float> draw(const Philox4& words) {
    return {{laplace(words.x0), laplace(words.x1), laplace(words.x2), laplace(words.x3)}};
  }
};

// Row-major samples of whole packs.
template <class T>
struct DensePoints {
  using State = T;
  Memory start, clean;
  int64_t elements;

  ROLI_FN int count(int64_t) const { return kPack; }
  ROLI_FN void put_draws(int64_t sample, int64_t element, const Pack<T>& z) const {
    put<T>(start, sample * elements + element, z);
  }
  template <class Place>
  ROLI_FN void place(int64_t sample, int64_t element, Place&& placed_at) const {
    const int64_t at = sample * elements + element;
    auto z = fetch<AsValue, T, T>(start, at);
    const auto c = fetch<AsValue, T, Any>(clean, at);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) z.at[k] = placed_at(meant<AsValue, T, Any>(c, k), z.at[k]);
    put<T>(start, at, z);
  }
};

template <class T>
struct StridedPoints {
  using State = T;
  Memory start, clean;
  int64_t elements;
  StridedSamples samples;

  ROLI_FN int count(int64_t element) const {
    return elements - element < kPack ? static_cast<int>(elements - element) : kPack;
  }
  ROLI_FN void put_draws(int64_t sample, int64_t element, const Pack<T>& z) const {
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k)
      if (k < count(element)) put_one<T>(start, samples(sample, element + k).offset[0], z.at[k]);
  }
  template <class Place>
  ROLI_FN void place(int64_t sample, int64_t element, Place&& placed_at) const {
    for (int k = 0; k < count(element); ++k) {
      const auto at = samples(sample, element + k);
      const T z = fetch_one<AsValue, T, T>(start, at.offset[0]);
      const T c = fetch_one<AsValue, T, Any>(clean, at.offset[1]);
      put_one<T>(start, at.offset[0], placed_at(c, z));
    }
  }
};

template <class Draws, class Points>
struct StartSamples {
  static constexpr int kBlocks = 4, kStages = 1;
  using T = typename Points::State;
  using State = SampleState;
  Parts parts;
  Points points;
  StartRule<T, Draws::kPower> rule;
  T lo, hi;

  StartSamples(const Start& op, const Points& points, const Parts& parts)
      : parts(parts),
        points(points),
        rule(op, parts.elements),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)) {}

  ROLI_FN GradSums load(int stage, int64_t block, int thread) const {
    return parts.load(stage, block, thread);
  }
  ROLI_FN void keep(int stage, int64_t block, const GradSums& sums) const { parts.keep(stage, block, sums); }
  ROLI_FN void advance(int stage, int64_t block, const GradSums& sums, State& state) const {
    rule.advance(stage, parts.sample_of(block), sums, state);
  }

  template <int>
  ROLI_FN GradSums gather(int64_t block, int thread, const State&) const {
    GradSums sums;
    const int64_t sample = parts.sample_of(block), index = rule.index_of(sample);
    const PhiloxKey key = rule.key();
    parts.each_pack(block, thread, [&](int64_t element) {
      const Pack<float> draws = Draws::draw(philox_block(key, index, element / kPack));
      Pack<T> z;
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        z.at[k] = static_cast<T>(draws.at[k]);
        const auto exact = static_cast<double>(draws.at[k]);
        if (k < points.count(element))
          sums.dd += Draws::kPower == 2 ? exact * exact : (exact < 0 ? -exact : exact);
      }
      points.put_draws(sample, element, z);
    });
    return sums;
  }

  ROLI_FN void apply(int64_t block, int thread, const State& state) const {
    const int64_t sample = parts.sample_of(block);
    const T weight = weight_of<T>(state.towards, state.movement.length);
    parts.each_pack(block, thread, [&](int64_t element) {
      points.place(sample, element, [&](T c, T z) { return placed(c, z, weight, lo, hi); });
    });
  }
};

template <class Draws, class Points>
void run_on(const Start& op, const Points& points, const Parts& parts, Stream stream) {
  launch_samples(StartSamples<Draws, Points>(op, points, parts), parts.blocks(), stream);
}

bool is_row_major(const Array& array, Shape shape) {
  int64_t expected = 1;
  for (int d = shape.rank - 1; d >= 0; --d) {
    if (shape.sizes[d] != 1 && array.strides[d] != expected) return false;
    expected *= shape.sizes[d];
  }
  return true;
}

template <class Draws, class T>
void run_as(Start& op, Shape shape, const Context& context) {
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const Parts parts(op.plan.elements(), shape.sizes[0], 1, context);
  const Memory start(op.start), clean(op.clean);
  DenseSamples samples;
  if (make_dense_samples(samples, shape, op.operands()) && is_row_major(op.start, shape))
    run_on<Draws>(op, DensePoints<T>{start, clean, parts.elements}, parts, context.stream);
  else
    run_on<Draws>(op, StridedPoints<T>{start, clean, parts.elements, StridedSamples(op.plan, 2, 1)}, parts,
                  context.stream);
}

template <class Draws>
void run_start(Start& op, Shape shape, const Context& context) {
  op.start.dtype == DType::f64 ? run_as<Draws, double>(op, shape, context)
                               : run_as<Draws, float>(op, shape, context);
}

}  // namespace

void run(L2Start& op, Shape shape, const Context& context) { run_start<Normal>(op, shape, context); }
void run(L1Start& op, Shape shape, const Context& context) { run_start<Laplace>(op, shape, context); }

}  // namespace roli::cuda
