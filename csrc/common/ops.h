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

// Operands of the plan: adv, clean, grad (absent in a projection), out (may be absent).
struct LinfStep {
  Plan plan;
  Array adv, clean, grad, out;
  Parameter step_size, eps;
  Box box;
  const bool* active = nullptr;
  int64_t active_stride = 0;
  Normalization normalization;
};

// Operands of the plan: start, clean. seed and index are int64.
struct LinfStart {
  Plan plan;
  Array start, clean;
  Parameter eps;
  Box box;
  int64_t seed[2] = {0, 0};
  const int64_t* index = nullptr;  // null: the position in the batch
  int64_t index_stride = 0;
};

// Operands of the plan: out, adv.
struct Prepare {
  Plan plan;
  Array out, adv;
  Normalization normalization;
};

}  // namespace roli
