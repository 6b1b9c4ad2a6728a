// The arguments of each op as its kernels take them: raw pointers, checked by the caller. No torch.
#pragma once

#include <cstdint>

#include "numeric.h"
#include "plan.h"

namespace roli {

// A number, or a tensor of adv's dtype: stride 0 for shape (), its stride for shape (N,).
struct Parameter {
  double value = 0;
  const void* data = nullptr;
  int64_t stride = 0;
};

// mean and std per channel, in adv's dtype; null where there is no normalisation.
struct Normalization {
  const void* mean = nullptr;
  const void* std = nullptr;
  int64_t mean_stride = 0, std_stride = 0;
  int64_t channels = 0;
};

struct Box {
  double lo = 0, hi = 1;
};

// A (N,) mask; null: all samples.
struct Mask {
  const bool* data = nullptr;
  int64_t stride = 0;
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
  int out_at() const { return has_previous() ? 4 : 3; }
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

// A random point of a ball.
struct Start {
  Plan plan;
  Array start, clean;
  Parameter eps;
  Box box;
  const int64_t* seed = nullptr;  // key and stream
  int64_t seed_stride = 0;
  const int64_t* index = nullptr;  // null: the position in the batch
  int64_t index_stride = 0;

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

}  // namespace roli
