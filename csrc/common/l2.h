// The L2 family: per sample from sums to factors, per element from factors to pixels. a: adversarial, c:
// clean, d = a - c, g: gradient, s: step size, e: eps. The definition is roli_fast/ops/reference/l2.py.
#pragma once

#include "direction.h"
#include "linf.h"

namespace roli {

// NaN counts as 0, so that one pixel does not spoil a sample.
template <class T>
ROLI_FN T offset(T a, T c) {
  const T d = a - c;
  return is_nan(d) ? T(0) : d;
}

// How a sample moves: by the step alone if that stays inside the ball; else to c + keep d + the step, which
// is scaled too.
struct Movement {
  bool inside = true;
  double keep = 1;
  double length = 0;  // of the step
};

// ||d + s u|| for ||d|| = r, ||u|| = 1 and <d, u> = along, which determine it. In float64, where enough
// digits survive their cancellation, and clamped at 0.
ROLI_FN double distance_after(double r, double s, double along) {
  if (is_infinite(r)) return r;
  const double larger = r > s ? r : s;
  const double unit = larger > 0 ? larger : 1;
  const double x = r / unit, y = s / unit;
  const double square = x * x + 2 * y * (along / unit) + y * y;
  return larger * square_root(square > 0 ? square : 0);
}

// T: of the state; a factor that rounds to 1 in it leaves the sample where it is.
template <class T>
ROLI_FN Movement into_ball(double distance, double e) {
  if (!(distance > e)) return {};
  const double factor = e / distance;
  return {static_cast<T>(factor) == T(1), factor, 0};
}

template <class T>
ROLI_FN Movement movement_of(double dd, const Direction& towards, double s, double e) {
  if (!(towards.norm > 0)) s = 0;
  if (is_infinite(e)) return {true, 1, s};
  if (is_infinite(s)) return {false, 0, e};  // an infinite step goes to the boundary
  Movement movement = into_ball<T>(distance_after(square_root(dd), s, towards.along), e);
  movement.length = movement.inside ? s : movement.keep * s;
  return movement;
}

// One element after the movement, before the box. Without a step, what is inside keeps its bits (-0.0).
template <class T>
ROLI_FN T l2_moved(T a, T c, T step, bool inside, T keep) {
  const T there = step == T(0) ? a : a + step;
  const T x = inside ? there : c + (keep * offset(a, c) + step);
  return is_nan(x) ? c : x;
}

// x in the box; NaN exactly where a or c is.
template <class T>
ROLI_FN T into_box(T x, T a, T c, T lo, T hi) {
  return nan_as(clamp(x, lo, hi), a, c);
}

}  // namespace roli
