// Accumulated gradients and the best iterates.
#include "arguments.h"
#include "kernels.h"
#include "samples.h"

namespace roli::cuda {
namespace {

enum { kMomentum, kGradient };

// Grad: the storage type.
template <class T, class C, class Grad>
struct DensePairs {
  using State = T;
  using Gradient = C;
  DenseSamples samples;
  Memory momentum, grad;

  ROLI_FN int count(int64_t) const { return kPack; }
  ROLI_FN void read_grad(int64_t sample, int64_t element, C (&g)[kPack]) const {
    const auto pack = fetch<AsValue, C, Grad>(grad, sample * samples.elements + element);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) g[k] = meant<AsValue, C, Grad>(pack, k);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    const int64_t place = sample * samples.elements + element;
    auto m = fetch<AsValue, T, T>(momentum, place);
    C g[kPack];
    read_grad(sample, element, g);
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) m.at[k] = updated(m.at[k], g[k]);
    put<T>(momentum, place, m);
  }
};

template <class T, class C>
struct StridedPairs {
  using State = T;
  using Gradient = C;
  StridedSamples samples;
  int64_t elements;
  Memory momentum, grad;

  ROLI_FN int count(int64_t element) const {
    return elements - element < kPack ? static_cast<int>(elements - element) : kPack;
  }
  ROLI_FN void read_grad(int64_t sample, int64_t element, C (&g)[kPack]) const {
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k)
      g[k] = k < count(element)
                 ? fetch_one<AsValue, C, Any>(grad, samples(sample, element + k).offset[kGradient])
                 : C(0);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    for (int k = 0; k < count(element); ++k) {
      const auto at = samples(sample, element + k);
      const T m = fetch_one<AsValue, T, T>(momentum, at.offset[kMomentum]);
      const C g = fetch_one<AsValue, C, Any>(grad, at.offset[kGradient]);
      put_one<T>(momentum, at.offset[kMomentum], updated(m, g));
    }
  }
};

template <class Pairs>
struct MomentumSamples {
  static constexpr int kBlocks = 4, kStages = 1;
  using T = typename Pairs::State;
  using C = typename Pairs::Gradient;
  using State = SampleState;
  Parts parts;
  Pairs pairs;
  MomentumRule<C> rule;
  T decay;

  MomentumSamples(const Momentum& op, const Pairs& pairs, const Parts& parts)
      : parts(parts), pairs(pairs), rule(parts.elements), decay(static_cast<T>(op.decay)) {}

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
    parts.each_pack(block, thread, [&](int64_t element) {
      C g[kPack];
      pairs.read_grad(parts.sample_of(block), element, g);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k)
        sums.add_gradient<1>(static_cast<double>(g[k]), 1, false, 0, sizeof(C) == 8);
    });
    return sums;
  }

  ROLI_FN void apply(int64_t block, int thread, const State& state) const {
    const Unit<T, C> unit(state.towards);
    const T weight = weight_of<T>(state.towards, state.movement.length);
    parts.each_pack(block, thread, [&](int64_t element) {
      pairs.update(parts.sample_of(block), element,
                   [&](T m, C g) { return decay * m + weighted(unit(g), weight); });
    });
  }
};

template <class Pairs>
void run_on(const Momentum& op, const Pairs& pairs, Shape shape, int64_t elements, const Context& context) {
  const Parts parts(elements, shape.sizes[0], 1, context);
  launch_samples(MomentumSamples<Pairs>(op, pairs, parts), parts.blocks(), context.stream);
}

// One kernel moves the winners, a second one notes their values: blocks of one sample do not wait for each
// other.
template <class T>
struct Winners {
  Mask active;
  T* best_value;
  const T* value;
  int64_t best_value_stride, value_stride;

  explicit Winners(const KeepBest& op)
      : active(op.active),
        best_value(static_cast<T*>(op.best_value)),
        value(static_cast<const T*>(op.value)),
        best_value_stride(op.best_value_stride),
        value_stride(op.value_stride) {}

  ROLI_FN bool has(int64_t sample) const {
    return cuda::has(active, sample) && value[sample * value_stride] > best_value[sample * best_value_stride];
  }
};

template <class T>
struct DenseWinners {
  Winners<T> winners;
  DenseSamples samples;
  Memory best, adv;
  int64_t parts;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t sample = block / parts;
    if (!winners.has(sample)) return;
    const int64_t first = (block - sample * parts) * kPart;
    const int64_t last = first + kPart < samples.elements ? first + kPart : samples.elements;
    for (int64_t element = first + thread * kPack; element < last; element += kThreads * kPack) {
      const int64_t place = sample * samples.elements + element;
      put<T>(best, place, fetch<AsValue, T, T>(adv, place));
    }
  }
};

template <class T>
struct StridedWinners {
  Winners<T> winners;
  StridedSamples samples;
  Memory best, adv;
  int64_t elements;
  Divider by_elements;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t index = block * kThreads + thread;
    const int64_t sample = by_elements.quotient(index);
    if (index >= elements || !winners.has(sample)) return;
    const Place place = samples(sample, by_elements.remainder(index));
    put_one<T>(best, place.offset[0], fetch_one<AsValue, T, T>(adv, place.offset[1]));
  }
};

template <class T>
struct NoteValues {
  Winners<T> winners;
  int64_t samples;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t sample = block * kThreads + thread;
    if (sample < samples && winners.has(sample))
      winners.best_value[sample * winners.best_value_stride] = winners.value[sample * winners.value_stride];
  }
};

template <class T>
void keep_best(KeepBest& op, Shape shape, Stream stream) {
  const Winners<T> winners(op);
  const Memory best(op.best), adv(op.adv);
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const int64_t elements = op.plan.elements(), samples = shape.sizes[0];
  DenseSamples dense;
  if (elements > 0) {
    if (make_dense_samples(dense, shape, op.operands()))
      launch(DenseWinners<T>{winners, dense, best, adv, parts_of(elements)},
             samples * parts_of(elements) * kThreads, stream);
    else
      launch(StridedWinners<T>{winners, StridedSamples(op.plan, 2, 1), best, adv, samples * elements,
                               Divider(elements)},
             samples * elements, stream);
  }
  launch(NoteValues<T>{winners, samples}, samples, stream);
}

}  // namespace

void run(Momentum& op, Shape shape, const Context& context) {
  const bool wide = op.momentum.dtype == DType::f64, wide_grad = op.grad.dtype == DType::f64;
  const Memory momentum(op.momentum), grad(op.grad);
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const int64_t elements = op.plan.elements();
  const auto on = [&](const auto& pairs) { run_on(op, pairs, shape, elements, context); };
  DenseSamples samples;
  if (make_dense_samples(samples, shape, op.operands())) {
    if (wide) return on(DensePairs<double, double, Any>{samples, momentum, grad});
    if (wide_grad) return on(DensePairs<float, double, Any>{samples, momentum, grad});
    if (op.grad.dtype == DType::f32) return on(DensePairs<float, float, float>{samples, momentum, grad});
    return on(DensePairs<float, float, Any>{samples, momentum, grad});
  }
  const StridedSamples strided(op.plan, 2, 1);
  if (wide) return on(StridedPairs<double, double>{strided, elements, momentum, grad});
  if (wide_grad) return on(StridedPairs<float, double>{strided, elements, momentum, grad});
  on(StridedPairs<float, float>{strided, elements, momentum, grad});
}

void run(KeepBest& op, Shape shape, const Context& context) {
  op.best.dtype == DType::f64 ? keep_best<double>(op, shape, context.stream)
                              : keep_best<float>(op, shape, context.stream);
}

}  // namespace roli::cuda
