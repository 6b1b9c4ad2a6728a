// The Linf family, one element at a time. a: adversarial, c: clean, g: gradient, s: step size, e: eps.
#pragma once

#include <cstdint>
#include <limits>

#include "macros.h"
#include "numeric.h"

namespace roli {

// Written so that a NaN x becomes the bound and x == bound keeps x's bits (-0.0 in [0, 1]).
template <class T>
ROLI_FN T clamp(T x, T low, T high) {
  x = x >= low ? x : low;
  return x <= high ? x : high;
}

// clamp(clamp(x, c - e, c + e), lo, hi): the ball first, so that the box wins where clean lies outside.
template <class T>
ROLI_FN T linf_clamp(T x, T c, T e, T lo, T hi) {
  return clamp(clamp(x, c - e, c + e), lo, hi);
}

// x, but NaN exactly where a or c is.
template <class T>
ROLI_FN T nan_as(T x, T a, T c) {
  return is_nan(a) || is_nan(c) ? std::numeric_limits<T>::quiet_NaN() : x;
}

// a + s sign(g). No product with the sign: s may be infinite ("go to the boundary") where the gradient is
// zero.
template <class T, class G>
ROLI_FN T signed_step(T a, G g, T s) {
  const T x = g > G(0) ? a + s : a;
  return g < G(0) ? a - s : x;
}

// APGD's point between a, z (where the step alone leads) and the old direction. p: the previous a.
template <class T>
ROLI_FN T with_momentum(T a, T z, T p, T c, T momentum) {
  const T y = (a + (z - a) * momentum) + (a - p) * (T(1) - momentum);
  return is_nan(y) ? c : y;
}

// a <- clamp(clamp(a + s sign(g), c - e, c + e), lo, hi).
template <class T>
ROLI_FN T linf_step(T a, T g, T c, T s, T e, T lo, T hi) {
  return nan_as(linf_clamp(signed_step(a, g, s), c, e, lo, hi), a, c);
}

// APGD's. p: the previous a.
template <class T>
ROLI_FN T linf_apgd_step(T a, T p, T g, T c, T s, T e, T momentum, T lo, T hi) {
  const T z = linf_clamp(signed_step(a, g, s), c, e, lo, hi);
  return nan_as(linf_clamp(with_momentum(a, z, p, c, momentum), c, e, lo, hi), a, c);
}

template <class T>
ROLI_FN T linf_project(T a, T c, T e, T lo, T hi) {
  return nan_as(linf_clamp(a, c, e, lo, hi), a, c);
}

// clamp(c + e u, lo, hi) for u in (-1, 1): rounding is monotonic and cannot carry it out of the ball.
template <class T>
ROLI_FN T linf_start(T c, T u, T e, T lo, T hi) {
  return nan_as(clamp(c + e * u, lo, hi), c, c);
}

}  // namespace roli
