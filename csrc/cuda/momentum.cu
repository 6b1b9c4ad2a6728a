// Accumulated gradients.
#include "arguments.h"
#include "kernels.h"
#include "samples.h"

namespace roli::cuda {
namespace {

enum { kMomentum, kGrad };

// Grad: the storage type.
template <class T, class C, class Grad>
struct DensePairs {
  using State = T;
  using Gradient = C;
  DenseSamples samples;
  Memory momentum, grad;

  ROLI_FN void read_grad(int64_t sample, int64_t element, C (&g)[kPack]) const {
    const auto pack = fetch<AsValue, C, Grad>(grad, samples.place(sample, element));
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) g[k] = meant<AsValue, C, Grad>(pack, k);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    const int64_t place = samples.place(sample, element);
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
  Memory momentum, grad;

  ROLI_FN void read_grad(int64_t sample, int64_t element, C (&g)[kPack]) const {
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k)
      g[k] = k < samples.count(element)
                 ? fetch_one<AsValue, C, Any>(grad, samples(sample, element + k).offset[kGrad])
                 : C(0);
  }
  template <class Update>
  ROLI_FN void update(int64_t sample, int64_t element, Update&& updated) const {
    for (int k = 0; k < samples.count(element); ++k) {
      const Place at = samples(sample, element + k);
      const T m = fetch_one<AsValue, T, T>(momentum, at.offset[kMomentum]);
      const C g = fetch_one<AsValue, C, Any>(grad, at.offset[kGrad]);
      put_one<T>(momentum, at.offset[kMomentum], updated(m, g));
    }
  }
};

template <class Pairs>
struct MomentumSamples {
  static constexpr int kBlocks = 4, kStages = 1;
  using T = typename Pairs::State;
  using C = typename Pairs::Gradient;
  Parts parts;
  Pairs pairs;
  MomentumRule<C> rule;
  T decay;

  MomentumSamples(const Momentum& op, const Pairs& pairs, const Parts& parts)
      : parts(parts), pairs(pairs), rule(parts.elements), decay(static_cast<T>(op.decay)) {}

  template <int>
  ROLI_FN GradSums gather(int64_t block, int thread, const SampleState&) const {
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

  ROLI_FN void apply(int64_t block, int thread, const SampleState& state) const {
    const Unit<T, C> unit(state.towards);
    const T weight = weight_of<T>(state.towards, state.movement.length);
    parts.each_pack(block, thread, [&](int64_t element) {
      pairs.update(parts.sample_of(block), element,
                   [&](T m, C g) { return decay * m + weighted(unit(g), weight); });
    });
  }
};

template <class Pairs>
void run_on(const Momentum& op, const Pairs& pairs, Shape shape, const Context& context) {
  const Parts parts(elements_of(shape), shape.sizes[0], 1, context);
  launch_samples(MomentumSamples<Pairs>(op, pairs, parts), context.stream);
}

}  // namespace

void run(Momentum& op, Shape shape, const Context& context) {
  const bool wide = op.momentum.dtype == DType::f64, wide_grad = op.grad.dtype == DType::f64;
  const Memory momentum(op.momentum), grad(op.grad);
  const auto on = [&](const auto& pairs) { run_on(op, pairs, shape, context); };
  DenseSamples samples;
  if (make_dense_samples(samples, shape, op.operands())) {
    if (wide) return on(DensePairs<double, double, Any>{samples, momentum, grad});
    if (wide_grad) return on(DensePairs<float, double, Any>{samples, momentum, grad});
    if (op.grad.dtype == DType::f32) return on(DensePairs<float, float, float>{samples, momentum, grad});
    return on(DensePairs<float, float, Any>{samples, momentum, grad});
  }
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const StridedSamples strided(op.plan, 2, 1);
  if (wide) return on(StridedPairs<double, double>{strided, momentum, grad});
  if (wide_grad) return on(StridedPairs<float, double>{strided, momentum, grad});
  on(StridedPairs<float, float>{strided, momentum, grad});
}

}  // namespace roli::cuda
