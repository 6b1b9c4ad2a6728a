// The arguments of each op as its kernels take them: raw pointers, checked by the caller. No torch.
#pragma once

#include <cstdint>

#include "macros.h"
#include "numeric.h"
#include "philox.h"
#include "plan.h"

namespace roli {

// A size that reaches a kernel in a tensor cannot be refused without a synchronisation: NaN and
// negative values count as 0.
template <class T>
ROLI_FN T valid_size(T size) {
  return size > T(0) ? size : T(0);
}

// A number, or a tensor of adv's dtype: stride 0 for shape (), its stride for shape (N,).
struct Parameter {
  double value = 0;
  const void* data = nullptr;
  int64_t stride = 0;

  // A sample's. T: adv's type.
  template <class T>
  ROLI_FN T of(int64_t sample) const {
    if (data == nullptr) return static_cast<T>(value);
    return valid_size(static_cast<const T*>(data)[sample * stride]);
  }
};

// mean and std per channel, in adv's dtype; null where there is no normalisation.
struct Normalization {
  const void* mean = nullptr;
  const void* std = nullptr;
  int64_t mean_stride = 0, std_stride = 0;
  int64_t channels = 0;
};

// The model's input.
template <class T>
ROLI_FN T normalize(T a, T mean, T std) {
  return (a - mean) / std;
}

struct Box {
  double lo = 0, hi = 1;
};

// A (N,) mask; null: all samples.
struct Mask {
  const bool* data = nullptr;
  int64_t stride = 0;

  ROLI_FN bool has(int64_t sample) const { return data == nullptr || data[sample * stride]; }
};

// A step of any family; without grad a projection, with previous APGD's.
struct Step {
  Plan plan;
  Array adv, clean, grad, previous, out;  // out may be absent
  Parameter step_size, eps, momentum, sparsity;
  Box box;
  Mask active;
  Normalization normalization;

  bool has_grad() const { return grad.data != nullptr; }
  bool has_previous() const { return previous.data != nullptr; }
  bool has_out() const { return out.data != nullptr; }

  // Where operands stand in a plan: adv, clean and grad first, then those that are there.
  static constexpr int kAdv = 0, kClean = 1, kGrad = 2, kPrevious = 3;
  static constexpr int out_at(bool with_previous) { return with_previous ? 4 : 3; }
  Operands operands() const {
    if (has_previous()) return {{&adv, &clean, &grad, &previous, &out}, 4 + has_out()};
    return {{&adv, &clean, &grad, &out}, 2 + has_grad() + has_out()};
  }
  bool per_sample() const {
    return active.data != nullptr || step_size.stride != 0 || eps.stride != 0 || momentum.stride != 0;
  }
  PlanOptions options() const {
    return {.per_sample = per_sample(), .per_channel = normalization.mean != nullptr};
  }
};

// Each family's, and the names of the ops that they are.
struct LinfStep : Step {
  static constexpr const char *kStep = "linf_step_", *kApgdStep = "linf_apgd_step_",
                              *kProject = "linf_project_";
};

struct L2Step : Step {
  static constexpr const char *kStep = "l2_step_", *kApgdStep = "l2_apgd_step_", *kProject = "l2_project_";
};

struct L1Step : Step {
  static constexpr const char *kStep = "l1_step_", *kProject = "l1_project_";
};

// What random points are drawn from.
struct Seed {
  const int64_t* data = nullptr;  // key and stream
  int64_t stride = 0;
  const int64_t* index = nullptr;  // of the samples; null: their positions in the batch
  int64_t index_stride = 0;

  ROLI_FN PhiloxKey key() const { return philox_key(data[0], data[stride]); }
  ROLI_FN int64_t index_of(int64_t sample) const {
    return index == nullptr ? sample : index[sample * index_stride];
  }
};

// A random point of a ball.
struct Start {
  Plan plan;
  Array start, clean;
  Parameter eps;
  Box box;
  Seed seed;

  Operands operands() const { return {{&start, &clean}, 2}; }
  PlanOptions options() const { return {.per_sample = true, .logical_order = true}; }
};

struct LinfStart : Start {
  static constexpr const char* kStart = "linf_start";
};

struct L2Start : Start {
  static constexpr const char* kStart = "l2_start";
};

struct L1Start : Start {
  static constexpr const char* kStart = "l1_start";
};

struct Prepare {
  static constexpr const char* kName = "prepare";
  Plan plan;
  Array out, adv;
  Normalization normalization;

  Operands operands() const { return {{&out, &adv}, 2}; }
  PlanOptions options() const { return {.per_channel = normalization.mean != nullptr}; }
};

struct Momentum {
  static constexpr const char* kName = "momentum_";
  Plan plan;
  Array momentum, grad;
  double decay = 1;

  Operands operands() const { return {{&momentum, &grad}, 2}; }
  PlanOptions options() const { return {}; }
};

struct KeepBest {
  static constexpr const char* kName = "keep_best_";
  Plan plan;
  Array best, adv;
  void* best_value = nullptr;  // of best's dtype
  const void* value = nullptr;
  int64_t best_value_stride = 0, value_stride = 0;
  Mask active;

  Operands operands() const { return {{&best, &adv}, 2}; }
  PlanOptions options() const { return {}; }
};

// The loss of each sample, and its slope with respect to the logits.
struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy";
  Array logits, slope;
  int64_t classes = 0;
  const int64_t* labels = nullptr;
  int64_t label_stride = 0;
  double* loss = nullptr;
};

}  // namespace roli
