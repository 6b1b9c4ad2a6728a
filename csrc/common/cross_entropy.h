// Cross-entropy of a sample's logits, in float64, and its slope.
#pragma once

#include <cmath>
#include <limits>

#include "numeric.h"

namespace roli {

// exp(x) for x <= 0, within two units in the last place; 0 where it would be next to subnormal. Without
// branches, so that every compiler vectorises it.
ROLI_FN double exponential(double x) {
  constexpr double kRound = 0x1.8p52;  // a sum with it has the nearest integer in its last bits
  constexpr double kLog2[2] = {6.93145751953125e-1, 1.42860682030941723212e-6};  // Cody and Waite 1980
  constexpr double kInverseFactorials[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
  const double kept = x < -708 ? -708 : x;
  const double rounded = kept * 1.4426950408889634 + kRound;
  const double k = rounded - kRound;
  const double r = kept - k * kLog2[0] - k * kLog2[1];
  double sum = 0;
  ROLI_UNROLL
  for (const double coefficient : kInverseFactorials) sum = sum * r + coefficient;
  const double power = bit_cast<double>((bit_cast<uint64_t>(rounded) + 1023) << 52);
  return x < -708 ? 0 : sum * power;
}

ROLI_FN double larger_or_nan(double x, double y) { return y > x || y != y ? y : x; }

// What is subtracted from the other classes' logits, so that their exponentials stay finite. largest: of
// these logits; -infinity where there are none.
ROLI_FN double reference_of(double largest) {
  return largest == -std::numeric_limits<double>::infinity() ? 0 : largest;
}

struct CrossEntropyOfSample {
  double loss;
  double label;  // the slope at the label's logit
  double other;  // at any other, by its exponential

  // total: of the others' exponentials. own: the label's logit; NaN where the label is no class.
  ROLI_FN CrossEntropyOfSample(double reference, double total, double own) {
    const double rest =
        reference + (reference < std::numeric_limits<double>::infinity() ? std::log(total) : 0);
    const double gap = rest - own;
    loss = gap > 40 ? gap : std::log1p(std::exp(gap));  // beyond, the 1 is lost
    // The share of the other classes. It leaves float32 room for what the layers before make of it: however
    // sure a model is, an attack has a direction. Only where no other class is possible there is none.
    double share = 1 / (1 + std::exp(-gap));
    share = share < 0x1p-60 ? 0x1p-60 : share;
    const bool constant = total == 0 && own == own;
    label = constant ? 0 : -share;
    other = constant ? 0 : share / total;
  }
};

}  // namespace roli
