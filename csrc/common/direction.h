// A gradient as a direction, whatever its scale: a power of two, which is exact, brings its norm near 1. What
// is left is a weight per sample. The definition is roli_fast/ops/reference/direction.py.
#pragma once

#include <cstdint>

#include "macros.h"
#include "numeric.h"

namespace roli {

// |g|; NaN counts as 0.
template <class C>
ROLI_FN C magnitude(C g) {
  return is_nan(g) ? C(0) : g < C(0) ? -g : g == C(0) ? C(0) : g;
}

// 2^exponent, in [-1022, 1023].
ROLI_FN double power_of_two(int exponent) {
  return bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

// The scales at which sums over a gradient are taken, so that one of them stays clear of float64's limits.
// What float32 can hold needs the first alone.
constexpr int kScales = 3;
ROLI_FN int scale_exponent(int scale) { return scale == 0 ? 0 : scale == 1 ? -700 : 700; }
constexpr double kClear = 0x1p800;

// A sample's sums over its gradient g, as it stands for a pixel, and offsets d = adv - clean.
struct GradSums {
  double power[kScales] = {};  // |g|^2, or |g| for momentum
  double along[kScales] = {};  // g d
  double infinite = 0;         // number of infinite g
  double infinite_along = 0;   // sign(g) d of these
  double dd = 0;               // d^2

  ROLI_FN void add(const GradSums& other) {
    ROLI_UNROLL
    for (int i = 0; i < kScales; ++i) {
      power[i] += other.power[i];
      along[i] += other.along[i];
    }
    infinite += other.infinite;
    infinite_along += other.infinite_along;
    dd += other.dd;
  }

  // One element of a gradient with respect to the model's input; NaN counts as 0. std: what the input was
  // divided by, where normalized. wide: whether the scales beyond the first matter.
  template <int kPower>
  ROLI_FN void add_gradient(double g, double std, bool normalized, double d, bool wide) {
    if (is_nan(g)) return;
    if (is_infinite(g)) {
      infinite += 1;
      infinite_along += g > 0 ? d : -d;
      return;
    }
    ROLI_UNROLL
    for (int i = 0; i < kScales; ++i) {
      if (i > 0 && !wide) break;
      double scaled =
          i == 0 ? g : g * power_of_two(scale_exponent(i));  // before the division, which may overflow
      if (normalized) scaled /= std;
      power[i] += kPower == 2 ? scaled * scaled : (scaled < 0 ? -scaled : scaled);
      along[i] += scaled * d;
    }
  }
};

ROLI_FN double square_root(double x) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// unit(g) is the gradient times 2^shift, divided by std where there is one; norm is that of unit; along is
// the inner product of the direction, of norm 1, and d.
struct Direction {
  bool infinite = false;  // unit is +-1 for infinite gradients and 0 for the others
  int shift = 0;
  double norm = 0;  // 0 where there is no direction
  double along = 0;
};

// limit: the largest exponent of the type in which the gradient is scaled.
template <int kPower>
ROLI_FN Direction direction_of(const GradSums& sums, int limit) {
  Direction found;
  double power = sums.power[0], along = sums.along[0];
  int exponent = 0;
  if (sums.infinite > 0) {
    found.infinite = true;
    power = sums.infinite;
    along = sums.infinite_along;
  } else if (!(power <= kClear) || power < 1 / kClear) {
    const int scale = power < 1 / kClear ? 2 : 1;
    // Not by index: an array that is indexed at run time leaves a GPU's registers.
    power = scale == 1 ? sums.power[1] : sums.power[2];
    along = scale == 1 ? sums.along[1] : sums.along[2];
    exponent = scale_exponent(scale);
  }
  const double norm = kPower == 2 ? square_root(power) : power;
  found.along = norm > 0 ? along / norm : 0;
  if (found.infinite) {
    found.norm = norm;
    return found;
  }
  const int top = norm > 0 ? static_cast<int>(bit_cast<uint64_t>(norm) >> 52) - 1022 : 0;
  int shift = exponent - top;
  shift = shift < -limit ? -limit : shift > limit ? limit : shift;
  found.shift = shift;
  // In two factors: one alone may lie beyond float64.
  const int rest = shift - exponent;
  found.norm = norm * power_of_two(rest / 2) * power_of_two(rest - rest / 2);
  return found;
}

// C: the type in which a gradient is scaled.
template <class C>
constexpr int exponent_limit = sizeof(C) == 8 ? 1022 : 126;

// An element of the direction, from that of the gradient.
template <class T, class C>
struct Unit {
  C scale;
  bool infinite;

  Unit() = default;
  ROLI_FN explicit Unit(const Direction& direction)
      : scale(static_cast<C>(power_of_two(direction.shift))), infinite(direction.infinite) {}

  ROLI_FN T operator()(C g) const {
    const T scaled = static_cast<T>((is_nan(g) ? C(0) : g) * scale);
    const T sign = is_infinite(g) ? (g > C(0) ? T(1) : T(-1)) : T(0);
    return infinite ? sign : scaled;
  }
};

// The weight that scales a direction to a step of this length.
template <class T>
ROLI_FN T weight_of(const Direction& direction, double length) {
  return direction.norm > 0 ? static_cast<T>(length / direction.norm) : T(0);
}

// An element of 0 stays 0, however long the step is.
template <class T>
ROLI_FN T weighted(T unit, T weight) {
  return unit == T(0) ? unit : unit * weight;
}

}  // namespace roli
