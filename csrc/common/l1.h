// The L1 family. The definition is roli_fast/ops/reference/l1.py.
#pragma once

#include <cstdint>

#include "l2.h"

namespace roli {

// A magnitude as an integer of the same order.
ROLI_FN uint32_t key_of(float magnitude) { return bit_cast<uint32_t>(magnitude); }
ROLI_FN uint64_t key_of(double magnitude) { return bit_cast<uint64_t>(magnitude); }
template <class C>
using Key = decltype(key_of(C()));

// How many of a sample's elements move at least.
ROLI_FN int64_t moving(double sparsity, int64_t elements) {
  const auto rounded =
      static_cast<int64_t>((sparsity < 1 ? sparsity : 1) * static_cast<double>(elements) + 0.5);
  return rounded < 1 ? 1 : rounded > elements ? elements : rounded;
}

// How far each of `count` elements moves. Beyond `far`, nothing but what moves is left in the ball: an
// infinite step is that far. farthest: the largest |a - c|.
template <class T>
ROLI_FN T l1_length(double s, int64_t count, double e, double farthest) {
  const double length = s / static_cast<double>(count > 0 ? count : 1), far = 2 * (e + farthest);
  return static_cast<T>(length < far ? length : far);
}

// A point's distance from c, and the room that the box leaves in its direction.
template <class T>
struct Reach {
  T v, u;
};

template <class T>
ROLI_FN T finite_magnitude(T d) {
  constexpr T largest = sizeof(T) == 8 ? T(0x1p1000) : std::numeric_limits<T>::max();
  const T v = is_nan(d) ? T(0) : d < T(0) ? -d : d;
  return v < largest ? v : largest;
}

template <class T>
ROLI_FN Reach<T> reach(T x, T c, T lo, T hi) {
  const T d = x - c;
  const T u = d > T(0) ? hi - c : c - lo;
  return {finite_magnitude(d), u > T(0) ? u : T(0)};
}

// min(max(v - t, 0), u): how far an element ends from c where the threshold is t.
template <class T>
ROLI_FN double kept(Reach<T> r, double t) {
  const double rest = static_cast<double>(r.v) - t;
  const double positive = rest > 0 ? rest : 0;
  return positive < static_cast<double>(r.u) ? positive : static_cast<double>(r.u);
}

// The sum of kept over a sample, and the number of elements whose part of it falls as t grows.
struct Kept {
  double total = 0, slope = 0;
  double largest = 0;  // v

  ROLI_FN void add(const Kept& other) {
    total += other.total;
    slope += other.slope;
    largest = largest > other.largest ? largest : other.largest;
  }

  template <class T>
  ROLI_FN void add_element(Reach<T> r, double t) {
    const double rest = static_cast<double>(r.v) - t;
    total += kept(r, t);
    slope += rest > 0 && rest < static_cast<double>(r.u) ? 1 : 0;
    largest = largest > static_cast<double>(r.v) ? largest : static_cast<double>(r.v);
  }
};

// The search for the threshold t >= 0 at which the total is eps: Newton's steps, exact once no kink of the
// piecewise linear total lies between, inside a bracket that is halved where they would leave it.
struct Threshold {
  double eps = 0, low = 0, high = 0, t = 0;
  bool done = false;

  Threshold() = default;

  // at_zero: of t = 0.
  ROLI_FN Threshold(const Kept& at_zero, double eps) : eps(eps), high(at_zero.largest) {
    if (!(at_zero.total > eps)) {
      done = true;
    } else if (eps == 0) {
      t = high;
      done = true;
    } else {
      step(at_zero);
    }
  }

  // After the sample's sums for t.
  ROLI_FN void next(const Kept& at_t) {
    const double miss = at_t.total - eps;
    if (miss <= eps * 0x1p-46 && -miss <= eps * 0x1p-46) {
      t += at_t.slope > 0 ? miss / at_t.slope : 0;  // what is left of it
      done = true;
      return;
    }
    (miss > 0 ? low : high) = t;
    step(at_t);
  }

 private:
  ROLI_FN void step(const Kept& at_t) {
    double guess = at_t.slope > 0 ? t + (at_t.total - eps) / at_t.slope : low;
    if (!(guess > low && guess < high)) guess = low + (high - low) / 2;
    if (!(guess > low && guess < high)) {  // neighbours
      t = high;
      done = true;
      return;
    }
    t = guess;
  }
};

// One element of the projection, before the box. x: the point; t = 0 leaves it.
template <class T>
ROLI_FN T l1_projected(T x, T c, T lo, T hi, double t) {
  if (t > 0) {
    const T delta = static_cast<T>(kept(reach(x, c, lo, hi), t));
    x = x - c > T(0) ? c + delta : c - delta;
  }
  return is_nan(x) ? c : x;
}

}  // namespace roli
