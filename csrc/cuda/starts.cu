// Random points of balls.
#include "arguments.h"
#include "kernels.h"
#include "samples.h"

namespace roli::cuda {
namespace {

enum { kStart, kClean };

// Whether points are written in packs: row-major, in samples of whole packs.
bool in_packs(DenseSamples& samples, const Start& op, Shape shape) {
  if (!make_dense_samples(samples, shape, op.operands())) return false;
  int64_t expected = 1;
  for (int d = shape.rank - 1; d >= 0; --d) {
    if (shape.sizes[d] != 1 && op.start.strides[d] != expected) return false;
    expected *= shape.sizes[d];
  }
  return true;
}

// Linf: element by element.

// Blocks of four draws that a thread makes, whose key it mixes once.
constexpr int kDraws = 4;

template <class T>
struct LinfDraws {
  Size<T> eps;
  T lo, hi;
  Seed seed;
  int64_t samples, elements;  // elements: of a sample
  Divider blocks;             // of four elements, in a sample
  bool small;                 // whether 31 bits hold their number

  LinfDraws(const LinfStart& op, Shape shape)
      : eps(op.eps),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)),
        seed(op.seed),
        samples(shape.sizes[0]),
        elements(elements_of(shape)),
        blocks((elements + kPack - 1) / kPack),
        small(samples * blocks.divisor < (int64_t{1} << 31) - kDraws * kThreads) {}

  int64_t threads() const { return (samples * blocks.divisor + kDraws - 1) / kDraws; }

  // Calls visit(sample, element, draws) for the thread's blocks of four elements, by the first of them.
  template <class Visit>
  ROLI_FN void each_block(int64_t block, int thread, Visit&& visit) const {
    const PhiloxKey key = seed.key();
    ROLI_UNROLL
    for (int i = 0; i < kDraws; ++i) {
      const int64_t at = (block * kDraws + i) * kThreads + thread;
      const int64_t sample = small ? static_cast<int64_t>(blocks.small_quotient(static_cast<uint32_t>(at)))
                                   : blocks.quotient(at);
      if (sample >= samples) return;
      const int64_t number = at - sample * blocks.divisor;
      const Philox4 bits = philox_block(key, seed.index_of(sample), number);
      visit(sample, number * kPack,
            Pack<T>{{symmetric_uniform<T>(bits.x0), symmetric_uniform<T>(bits.x1),
                     symmetric_uniform<T>(bits.x2), symmetric_uniform<T>(bits.x3)}});
    }
  }

  // e: eps of the sample.
  ROLI_FN T point(T c, T u, T e) const { return linf_start(c, u, e, lo, hi); }
};

template <class T, class Clean>
struct DenseStart {
  Memory start, clean;
  LinfDraws<T> draws;

  DenseStart(const LinfStart& op, Shape shape) : start(op.start), clean(op.clean), draws(op, shape) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    draws.each_block(block, thread, [&](int64_t sample, int64_t element, Pack<T> x) {
      const int64_t place = sample * draws.elements + element;
      const auto c = fetch<AsValue, T, Clean>(clean, place);
      const T e = draws.eps(sample);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) x.at[k] = draws.point(meant<AsValue, T, Clean>(c, k), x.at[k], e);
      put<T>(start, place, x);
    });
  }
};

template <class T>
struct StridedStart {
  Memory start, clean;
  LinfDraws<T> draws;
  Strided strided;

  StridedStart(const LinfStart& op, Shape shape)
      : start(op.start), clean(op.clean), draws(op, shape), strided(op.plan, 2, 1) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    draws.each_block(block, thread, [&](int64_t sample, int64_t element, const Pack<T>& x) {
      const T e = draws.eps(sample);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (element + k >= draws.elements) return;
        const Place place = strided(sample * draws.elements + element + k);
        const T c = fetch_one<AsValue, T, Any>(clean, place.offset[kClean]);
        put_one<T>(start, place.offset[kStart], draws.point(c, x.at[k], e));
      }
    });
  }
};

template <class Body>
void run_linf(const LinfStart& op, Shape shape, Stream stream) {
  const Body body(op, shape);
  launch(body, body.draws.threads(), stream);
}

// L2 and L1: the draws are put where the points will be, and scaled there.

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

template <class T>
struct DensePoints {
  using State = T;
  Memory start, clean;
  DenseSamples samples;

  ROLI_FN int count(int64_t) const { return kPack; }
  ROLI_FN void put_draws(int64_t sample, int64_t element, const Pack<T>& z) const {
    put<T>(start, samples.place(sample, element), z);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    const int64_t at = samples.place(sample, element);
    auto z = fetch<AsValue, T, T>(start, at);
    const auto c = fetch<AsValue, T, Any>(clean, at);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) z.at[k] = updated(meant<AsValue, T, Any>(c, k), z.at[k]);
    put<T>(start, at, z);
  }
};

template <class T>
struct StridedPoints {
  using State = T;
  Memory start, clean;
  StridedSamples samples;

  ROLI_FN int count(int64_t element) const { return samples.count(element); }
  ROLI_FN void put_draws(int64_t sample, int64_t element, const Pack<T>& z) const {
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k)
      if (k < count(element)) put_one<T>(start, samples(sample, element + k).offset[kStart], z.at[k]);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    for (int k = 0; k < count(element); ++k) {
      const Place at = samples(sample, element + k);
      const T z = fetch_one<AsValue, T, T>(start, at.offset[kStart]);
      const T c = fetch_one<AsValue, T, Any>(clean, at.offset[kClean]);
      put_one<T>(start, at.offset[kStart], updated(c, z));
    }
  }
};

template <class Draws, class Points>
struct StartSamples {
  static constexpr int kBlocks = 4, kStages = 1;
  using T = typename Points::State;
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

  template <int>
  ROLI_FN GradSums gather(int64_t block, int thread, const SampleState&) const {
    GradSums sums;
    const int64_t sample = parts.sample_of(block), index = rule.seed.index_of(sample);
    const PhiloxKey key = rule.seed.key();
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

  ROLI_FN void apply(int64_t block, int thread, const SampleState& state) const {
    const int64_t sample = parts.sample_of(block);
    const T weight = weight_of<T>(state.towards, state.movement.length);
    parts.each_pack(block, thread, [&](int64_t element) {
      points.update(sample, element, [&](T c, T z) { return placed(c, z, weight, lo, hi); });
    });
  }
};

template <class Draws, class Points>
void run_on(const Start& op, const Points& points, Shape shape, const Context& context) {
  const Parts parts(elements_of(shape), shape.sizes[0], 1, context);
  launch_samples(StartSamples<Draws, Points>(op, points, parts), context.stream);
}

template <class Draws, class T>
void run_as(Start& op, Shape shape, const Context& context) {
  const Memory start(op.start), clean(op.clean);
  DenseSamples samples;
  if (in_packs(samples, op, shape))
    return run_on<Draws>(op, DensePoints<T>{start, clean, samples}, shape, context);
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  run_on<Draws>(op, StridedPoints<T>{start, clean, StridedSamples(op.plan, 2, 1)}, shape, context);
}

template <class Draws>
void run_drawn(Start& op, Shape shape, const Context& context) {
  op.start.dtype == DType::f64 ? run_as<Draws, double>(op, shape, context)
                               : run_as<Draws, float>(op, shape, context);
}

}  // namespace

void run(LinfStart& op, Shape shape, const Context& context) {
  const Stream stream = context.stream;
  const bool wide = op.start.dtype == DType::f64;
  DenseSamples samples;
  if (in_packs(samples, op, shape)) {
    if (wide) return run_linf<DenseStart<double, Any>>(op, shape, stream);
    if (op.clean.dtype == DType::f32) return run_linf<DenseStart<float, float>>(op, shape, stream);
    if (op.clean.dtype == DType::u8) return run_linf<DenseStart<float, uint8_t>>(op, shape, stream);
    return run_linf<DenseStart<float, Any>>(op, shape, stream);
  }
  make_plan(op.plan, shape, op.operands(), op.options());
  wide ? run_linf<StridedStart<double>>(op, shape, stream) : run_linf<StridedStart<float>>(op, shape, stream);
}

void run(L2Start& op, Shape shape, const Context& context) { run_drawn<Normal>(op, shape, context); }
void run(L1Start& op, Shape shape, const Context& context) { run_drawn<Laplace>(op, shape, context); }

}  // namespace roli::cuda
