// Ops that look at a whole sample before they write to it: sums over its elements, from these a state that
// says how the sample moves, perhaps sums once more, and then the elements.
#pragma once

#include <cmath>
#include <cstdint>

#include "l2.h"
#include "ops.h"
#include "philox.h"

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
  if (parameter.data == nullptr) return static_cast<double>(static_cast<T>(parameter.value));
  return static_cast<double>(valid_size(static_cast<const T*>(parameter.data)[sample * parameter.stride]));
}

// How often sums are taken.
inline int stages(const L2Step& op) { return op.has_previous() ? 2 : 1; }
inline int stages(const Start&) { return 1; }
inline int stages(const Momentum&) { return 1; }

// From sums to the state. T: of the op's state; C: in which gradients are scaled.
template <class T, class C>
ROLI_FN void advance(const L2Step& op, int stage, int64_t sample, const GradSums& sums, SampleState& state) {
  const double e = size_of<T>(op.eps, sample);
  if (stage == 0) {
    state.towards = direction_of<2>(sums, exponent_limit<C>);
    state.movement = movement_of<T>(sums.dd, state.towards, size_of<T>(op.step_size, sample), e);
  } else {
    state.back = into_ball<T>(square_root(sums.dd), e);
  }
}

template <class T, class C>
ROLI_FN void advance(const Momentum& op, int, int64_t, const GradSums& sums, SampleState& state) {
  state.towards = direction_of<1>(sums, exponent_limit<C>);
  state.movement.length = static_cast<double>(op.plan.elements());  // a mean of 1 is a sum of so many
}

// The word of a sample's radius.
ROLI_FN uint32_t radius_word(const Start& op, int64_t sample) {
  const PhiloxKey key = philox_key(op.seed[0], op.seed[op.seed_stride]);
  return philox_block(key, op.index == nullptr ? sample : op.index[sample * op.index_stride], kRadiusBlock)
      .x0;
}

// The length is the point's distance: in n dimensions the n-th root of a uniform number, times eps. dd: the
// norm of the draws, or its square for L2.
template <class T>
ROLI_FN void advance_start(const Start& op, double norm, int64_t sample, SampleState& state) {
  const double u = static_cast<double>(unit_uniform(radius_word(op, sample)));
  const auto n = static_cast<double>(op.plan.elements());
  state.towards.norm = norm;
  state.movement.length = exp(log(u) / n) * size_of<T>(op.eps, sample);
}

template <class T, class C>
ROLI_FN void advance(const L2Start& op, int, int64_t sample, const GradSums& sums, SampleState& state) {
  advance_start<T>(op, square_root(sums.dd), sample, state);
}

template <class T, class C>
ROLI_FN void advance(const L1Start& op, int, int64_t sample, const GradSums& sums, SampleState& state) {
  advance_start<T>(op, sums.dd, sample, state);
}

// A draw z, scaled and put at c.
template <class T>
ROLI_FN T placed(T c, T z, T weight, T lo, T hi) {
  const T x = c + weighted(z, weight);
  return into_box(is_nan(x) ? c : x, c, c, lo, hi);
}

}  // namespace roli
