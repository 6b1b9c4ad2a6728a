// Ops that look at a whole sample before they write to it: sums over its elements, from these a state that
// says how the sample moves, perhaps sums once more, and then the elements.
#pragma once

#include <cstdint>

#include "l2.h"
#include "ops.h"

namespace roli {

// What is known of a sample after its sums.
struct SampleState {
  Direction towards;
  Movement movement;  // by the step
  Movement back;      // into the ball once more, after APGD's momentum
};

// A sample's value of a size.
template <class T>
ROLI_FN double size_of(const Parameter& parameter, int64_t sample) {
  return static_cast<double>(parameter.of<T>(sample));
}

// How often sums are taken.
inline int stages(const L2Step& op) { return op.has_previous() ? 2 : 1; }
inline int stages(const Start&) { return 1; }
inline int stages(const Momentum&) { return 1; }

// How an op gets from sums to the state: advance(stage, sample, sums, state). T: the type of the op's state;
// C: the type in which gradients are scaled.
template <class T, class C>
struct L2Rule {
  Parameter step_size, eps;

  explicit L2Rule(const L2Step& op) : step_size(op.step_size), eps(op.eps) {}

  ROLI_FN void advance(int stage, int64_t sample, const GradSums& sums, SampleState& state) const {
    const double e = size_of<T>(eps, sample);
    if (stage == 0) {
      state.towards = direction_of<2>(sums, exponent_limit<C>);
      state.movement = movement_of<T>(sums.dd, state.towards, size_of<T>(step_size, sample), e);
    } else {
      state.back = into_ball<T>(square_root(sums.dd), e);
    }
  }
};

template <class C>
struct MomentumRule {
  int64_t elements;

  explicit MomentumRule(int64_t elements) : elements(elements) {}

  ROLI_FN void advance(int, int64_t, const GradSums& sums, SampleState& state) const {
    state.towards = direction_of<1>(sums, exponent_limit<C>);
    state.movement.length = static_cast<double>(elements);  // the sum of magnitudes whose mean is 1
  }
};

// power: 2 where dd is the sum of the squares of the draws, 1 where it is that of their magnitudes.
template <class T, int kPower>
struct StartRule {
  Parameter eps;
  Seed seed;
  int64_t elements;

  StartRule(const Start& op, int64_t elements) : eps(op.eps), seed(op.seed), elements(elements) {}

  // exp(x) for x in [-17, 0]: 2^k times a Taylor series on half an octave to either side, without a library.
  static ROLI_FN double exponential(double x) {
    const int k = static_cast<int>(x * 1.4426950408889634 - 0.5);
    const double r = x - static_cast<double>(k) * 0.6931471805599453;
    double sum = 1;
    for (int i = 14; i > 0; --i) sum = 1 + sum * r / static_cast<double>(i);
    return sum * power_of_two(k);
  }

  // In n dimensions the n-th root of a uniform number is the radius of a uniform point of the ball.
  ROLI_FN void advance(int, int64_t sample, const GradSums& sums, SampleState& state) const {
    const float u = unit_uniform(philox_block(seed.key(), seed.index_of(sample), kRadiusBlock).x0);
    const double root = exponential(static_cast<double>(log_unit(u)) / static_cast<double>(elements));
    state.towards.norm = kPower == 2 ? square_root(sums.dd) : sums.dd;
    state.movement.length = root * size_of<T>(eps, sample);
  }
};

// The point at a scaled draw z from c.
template <class T>
ROLI_FN T placed(T c, T z, T weight, T lo, T hi) {
  const T x = c + weighted(z, weight);
  return into_box(is_nan(x) ? c : x, c, c, lo, hi);
}

}  // namespace roli
