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

// One step, or, without grad, a projection.
struct LinfStep {
  Plan plan;
  Array adv, clean, grad, out;  // out may be absent
  Parameter step_size, eps;
  Box box;
  const bool* active = nullptr;
  int64_t active_stride = 0;
  Normalization normalization;

  Operands operands() const {
    return {{&adv, &clean, &grad, &out}, 2 + (grad.data != nullptr) + (out.data != nullptr)};
  }
  bool per_sample() const { return active != nullptr || step_size.stride != 0 || eps.stride != 0; }
  PlanOptions options() const { return {per_sample(), normalization.mean != nullptr}; }
};

struct LinfStart {
  Plan plan;
  Array start, clean;
  Parameter eps;
  Box box;
  const int64_t* seed = nullptr;  // key and stream
  int64_t seed_stride = 0;
  const int64_t* index = nullptr;  // null: the position in the batch
  int64_t index_stride = 0;

  Operands operands() const { return {{&start, &clean}, 2}; }
  PlanOptions options() const { return {.per_sample = true, .per_channel = false, .logical_order = true}; }
};

struct Prepare {
  Plan plan;
  Array out, adv;
  Normalization normalization;

  Operands operands() const { return {{&out, &adv}, 2}; }
  PlanOptions options() const { return {false, normalization.mean != nullptr}; }
};

}  // namespace roli
