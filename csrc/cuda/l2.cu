// The L2 steps: sums over parts of samples, and then the elements.
#include "../common/l2.h"
#include "kernels.h"
#include "steps.h"

namespace roli::cuda {
namespace {

// kApgd: with previous, and so with sums of where the momentum leads.
template <class Operands, bool kApgd>
struct L2Samples {
  static constexpr int kBlocks = kApgd || Operands::kWide ? 2
                                 : Operands::kStrided     ? 3
                                                          : 4,
                       kStages = kApgd ? 2 : 1;
  using T = typename Operands::State;
  using C = typename Operands::Gradient;
  Parts parts;
  Operands operands;
  L2Rule<T, C> rule;
  Size<T> momentum;
  T lo, hi;
  Mask active;

  L2Samples(const L2Step& op, const Operands& operands, const Parts& parts)
      : parts(parts),
        operands(operands),
        rule(op),
        momentum(op.momentum),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)),
        active(op.active) {}

  template <int kStage>
  ROLI_FN GradSums gather(int64_t block, int thread, const SampleState& state) const {
    GradSums sums;
    const int64_t sample = parts.sample_of(block);
    if (!active.has(sample)) return sums;
    const bool normalized = operands.normalizer.mean != nullptr;
    const Step step(*this, sample, state);
    parts.each_pack(block, thread, [&](int64_t element) {
      const auto four = operands.template read<(kStage > 0)>(sample, element);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (k >= four.count) break;
        T x = four.a[k];
        if constexpr (kStage > 0) x = step.point(x, four.p[k], four.g[k], four.c[k], four.std[k]);
        const auto d = static_cast<double>(offset(x, four.c[k]));
        sums.dd += d * d;
        if (kStage == 0 && operands.has_grad())
          sums.template add_gradient<2>(static_cast<double>(four.g[k]), static_cast<double>(four.std[k]),
                                        normalized, d, sizeof(C) == 8);
      }
    });
    return sums;
  }

  ROLI_FN void apply(int64_t block, int thread, const SampleState& state) const {
    const int64_t sample = parts.sample_of(block);
    if (!active.has(sample)) {
      if (operands.has_out())
        parts.each_pack(block, thread,
                        [&](int64_t element) { operands.template write_input<kApgd>(sample, element); });
      return;
    }
    const Step step(*this, sample, state);
    parts.each_pack(block, thread, [&](int64_t element) {
      auto four = operands.template read<kApgd>(sample, element);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (k >= four.count) break;
        const T a = four.a[k];
        four.a[k] =
            kApgd ? step.back_from(step.point(a, four.p[k], four.g[k], four.c[k], four.std[k]), a, four.c[k])
                  : step.moved(a, four.g[k], four.c[k], four.std[k]);
        four.p[k] = a;
      }
      operands.template write<kApgd>(sample, element, four);
    });
  }

 private:
  // What the state means for an element.
  struct Step {
    Unit<T, C> unit;
    T weight, keep, back_keep, momentum, lo, hi;
    bool inside, back_inside, normalized, has_grad;

    ROLI_FN Step(const L2Samples& body, int64_t sample, const SampleState& state)
        : unit(state.towards),
          weight(weight_of<T>(state.towards, state.movement.length)),
          keep(static_cast<T>(state.movement.keep)),
          back_keep(static_cast<T>(state.back.keep)),
          momentum(body.momentum(sample)),
          lo(body.lo),
          hi(body.hi),
          inside(state.movement.inside),
          back_inside(state.back.inside),
          normalized(body.operands.normalizer.mean != nullptr && !state.towards.infinite),
          has_grad(body.operands.has_grad()) {}

    ROLI_FN T moved(T a, C g, T c, T std) const {
      T step = T(0);
      if (has_grad) {
        step = unit(g);
        step = weighted(normalized ? step / std : step, weight);
      }
      return into_box(l2_moved(a, c, step, inside, keep), a, c, lo, hi);
    }
    // APGD's, before it is brought back into the ball.
    ROLI_FN T point(T a, T p, C g, T c, T std) const {
      return with_momentum(a, moved(a, g, c, std), p, c, momentum);
    }
    ROLI_FN T back_from(T x, T a, T c) const {
      return into_box(l2_moved(x, c, T(0), back_inside, back_keep), a, c, lo, hi);
    }
  };
};

template <bool kApgd, class Operands>
void run_on(const L2Step& op, const Operands& operands, Shape shape, const Context& context) {
  using Body = L2Samples<Operands, kApgd>;
  const Parts parts(elements_of(shape), shape.sizes[0], Body::kStages, context);
  launch_samples(Body(op, operands, parts), context.stream);
}

}  // namespace

void run(L2Step& op, Shape shape, const Context& context) {
  with_operands(op, shape, [&](const auto& operands) {
    op.has_previous() ? run_on<true>(op, operands, shape, context)
                      : run_on<false>(op, operands, shape, context);
  });
}

}  // namespace roli::cuda
