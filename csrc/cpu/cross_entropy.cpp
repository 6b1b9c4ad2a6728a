// Cross-entropy, compiled once per instruction set (ROLI_ISA).
#include "../common/cross_entropy.h"

#include <memory>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "sums.h"

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double largest_of(const double* x, int64_t count) {
  double at[kSide];
  for (double& each : at) each = -kInfinity;
  for (int64_t c = 0; c < count; c += kSide)
    for (int j = 0; j < kSide; ++j) at[j] = larger_or_nan(at[j], x[c + j]);
  double largest = -kInfinity;
  for (const double each : at) largest = larger_or_nan(largest, each);
  return largest;
}

// x: memory for `count` numbers, of which there are no fewer than classes.
void cross_entropy(const CrossEntropy& op, int64_t sample, double* __restrict x, int64_t count) {
  const int64_t label = op.labels[sample * op.label_stride];
  const bool known = label >= 0 && label < op.classes;
  load_converted(op.logits, sample * op.logits.strides[0], op.logits.strides[1], op.classes, x);
  const double own = known ? x[label] : std::numeric_limits<double>::quiet_NaN();
  if (known) x[label] = -kInfinity;
  for (int64_t c = op.classes; c < count; ++c) x[c] = -kInfinity;

  const double reference = reference_of(largest_of(x, count));
  Sums sums;
  for (int64_t c = 0; c < count; c += kSide)
    for (int j = 0; j < kSide; ++j) {
      x[c + j] = exponential(x[c + j] - reference);
      sums.at[j] += x[c + j];
    }
  const CrossEntropyOfSample found(reference, sums.total(), own);
  op.loss[sample] = found.loss;
  for (int64_t c = 0; c < count; ++c) x[c] *= found.other;
  if (known) x[label] = found.label;
  store_values(op.slope, sample * op.slope.strides[0], op.slope.strides[1], op.classes, x);
}

}  // namespace

void cross_entropy_samples(const CrossEntropy& op, int64_t first, int64_t last) {
  const int64_t count = (op.classes + kSide - 1) / kSide * kSide;
  const std::unique_ptr<double[]> x(new double[count]);
  for (int64_t sample = first; sample < last; ++sample) cross_entropy(op, sample, x.get(), count);
}

}  // namespace roli::cpu::ROLI_ISA
