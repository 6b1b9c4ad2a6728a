// Arguments of ops as a body holds them.
#pragma once

#include "../common/linf.h"
#include "../common/ops.h"
#include "index.h"
#include "pack.h"

namespace roli::cuda {

// A step size or eps.
template <class T>
struct Size {
  T number;
  const T* data;
  int64_t stride;

  explicit Size(const Parameter& p)
      : number(static_cast<T>(p.value)), data(static_cast<const T*>(p.data)), stride(p.stride) {}

  ROLI_FN T operator()(int64_t sample) const {
    return data == nullptr ? number : valid_size(data[sample * stride]);
  }
};

// The operands of a step, some of which may be absent.
struct StepMemory {
  Memory adv, clean, grad, previous, out;

  explicit StepMemory(const Step& op)
      : adv(op.adv), clean(op.clean), grad(op.grad), previous(op.previous), out(op.out) {}

  ROLI_FN bool has_grad() const { return grad.data != nullptr; }
  ROLI_FN bool has_previous() const { return previous.data != nullptr; }
  ROLI_FN bool has_out() const { return out.data != nullptr; }
};

template <class T>
struct Normalizer {
  const T *mean, *std;
  int64_t mean_stride, std_stride;

  explicit Normalizer(const Normalization& by)
      : mean(static_cast<const T*>(by.mean)),
        std(static_cast<const T*>(by.std)),
        mean_stride(by.mean_stride),
        std_stride(by.std_stride) {}

  ROLI_FN T operator()(T a, int64_t channel) const {
    if (mean == nullptr) return a;
    return normalize(a, mean[channel * mean_stride], std[channel * std_stride]);
  }

  // The pack at a place of dense memory.
  ROLI_FN void operator()(Pack<T>& a, const Coordinate& coordinate, int64_t place) const {
    if (mean == nullptr) return;
    int64_t channel = coordinate(place);
    if (coordinate.steady) {
      const T m = mean[channel * mean_stride], s = std[channel * std_stride];
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) a.at[k] = normalize(a.at[k], m, s);
    } else {
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        a.at[k] = (*this)(a.at[k], channel);
        channel = coordinate.next(channel, place + k);
      }
    }
  }
};

}  // namespace roli::cuda
