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

// A size that reaches a kernel in a tensor cannot be refused without a synchronisation: NaN and
// negative values count as 0.
template <class T>
ROLI_FN T valid_size(T size) {
  return size > T(0) ? size : T(0);
}

// a <- clamp(clamp(a + s sign(g), c - e, c + e), lo, hi), NaN exactly where a or c is NaN.
// No product with the sign: s may be infinite ("go to the boundary") where the gradient is zero.
template <class T>
ROLI_FN T linf_step(T a, T g, T c, T s, T e, T lo, T hi) {
  T x = g > T(0) ? a + s : a;
  x = g < T(0) ? a - s : x;
  x = linf_clamp(x, c, e, lo, hi);
  return is_nan(a) || is_nan(c) ? std::numeric_limits<T>::quiet_NaN() : x;
}

// APGD's: z is where the step alone leads; p is the previous a.
template <class T>
ROLI_FN T linf_apgd_step(T a, T p, T g, T c, T s, T e, T momentum, T lo, T hi) {
  T z = g > T(0) ? a + s : a;
  z = g < T(0) ? a - s : z;
  z = linf_clamp(z, c, e, lo, hi);
  const T y = (a + (z - a) * momentum) + (a - p) * (T(1) - momentum);
  const T x = linf_clamp(is_nan(y) ? c : y, c, e, lo, hi);
  return is_nan(a) || is_nan(c) ? std::numeric_limits<T>::quiet_NaN() : x;
}

template <class T>
ROLI_FN T linf_project(T a, T c, T e, T lo, T hi) {
  const T x = linf_clamp(a, c, e, lo, hi);
  return is_nan(a) || is_nan(c) ? std::numeric_limits<T>::quiet_NaN() : x;
}

// clamp(c + e u, lo, hi) for u in (-1, 1): rounding is monotonic and cannot carry it out of the ball.
template <class T>
ROLI_FN T linf_start(T c, T u, T e, T lo, T hi) {
  const T x = clamp(c + e * u, lo, hi);
  return is_nan(c) ? std::numeric_limits<T>::quiet_NaN() : x;
}

// What the model eats.
template <class T>
ROLI_FN T normalize(T a, T mean, T std) {
  return (a - mean) / std;
}

}  // namespace roli
