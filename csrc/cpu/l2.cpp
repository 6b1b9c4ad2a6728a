// The L2 steps, compiled once per instruction set (ROLI_ISA).
#include "../common/l2.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "sums.h"

// The sums over elements one by one, for any gradient. g and std may be null.
template <class T, class C>
void add_exactly(const T* a, const T* c, const C* g, const T* std, int64_t count, GradSums& sums) {
  for (int64_t i = 0; i < count; ++i) {
    const auto d = static_cast<double>(offset(a[i], c[i]));
    sums.dd += d * d;
    if (g == nullptr) continue;
    const double by = std == nullptr ? 1 : static_cast<double>(std[i]);
    sums.add_gradient<2>(static_cast<double>(g[i]), by, std != nullptr, d, sizeof(C) == 8);
  }
}

// Whole groups of kSide elements, of gradients whose squares float64 can hold; with an infinite one, gg is
// not finite.
template <class T>
void add_groups(const T* __restrict a, const T* __restrict c, const float* __restrict g, int64_t count,
                Sums& dd, Sums& gg, Sums& gd) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int j = 0; j < kSide; ++j) {
      const auto d = static_cast<double>(offset(a[i + j], c[i + j]));
      const auto x = static_cast<double>(is_nan(g[i + j]) ? 0.0f : g[i + j]);
      dd.at[j] += d * d;
      gg.at[j] += x * x;
      gd.at[j] += x * d;
    }
}

template <class T>
void add_groups(const T* __restrict a, const T* __restrict c, const float* __restrict g,
                const T* __restrict std, int64_t count, Sums& dd, Sums& gg, Sums& gd) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int j = 0; j < kSide; ++j) {
      const auto d = static_cast<double>(offset(a[i + j], c[i + j]));
      const auto x =
          static_cast<double>(is_nan(g[i + j]) ? 0.0f : g[i + j]) / static_cast<double>(std[i + j]);
      dd.at[j] += d * d;
      gg.at[j] += x * x;
      gd.at[j] += x * d;
    }
}

template <class T>
void add_groups(const T* __restrict a, const T* __restrict c, int64_t count, Sums& dd) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int j = 0; j < kSide; ++j) {
      const auto d = static_cast<double>(offset(a[i + j], c[i + j]));
      dd.at[j] += d * d;
    }
}

// The sums over a block; g and std may be null.
template <class T, class C>
void add_sums(const T* a, const T* c, const C* g, const T* std, int64_t count, GradSums& sums) {
  if constexpr (sizeof(C) == 8) {
    add_exactly(a, c, g, std, count, sums);
  } else {
    const int64_t whole = count / kSide * kSide;
    Sums dd, gg, gd;
    if (g == nullptr)
      add_groups(a, c, whole, dd);
    else if (std == nullptr)
      add_groups(a, c, g, whole, dd, gg, gd);
    else
      add_groups(a, c, g, std, whole, dd, gg, gd);
    GradSums block;
    block.dd = dd.total();
    block.power[0] = gg.total();
    block.along[0] = gd.total();
    if (is_infinite(block.power[0])) {
      block = {};
      add_exactly(a, c, g, std, whole, block);
    }
    add_exactly(a + whole, c + whole, g == nullptr ? g : g + whole, std == nullptr ? std : std + whole,
                count - whole, block);
    sums.add(block);
  }
}

template <class T, class C>
void step_block(const C* __restrict grad, T* __restrict step, int64_t count, Unit<T, C> unit, T weight) {
  for (int64_t i = 0; i < count; ++i) step[i] = weighted(unit(grad[i]), weight);
}

template <class T, class C>
void step_block(const C* __restrict grad, const T* __restrict std, T* __restrict step, int64_t count,
                Unit<T, C> unit, T weight) {
  for (int64_t i = 0; i < count; ++i) step[i] = weighted(unit(grad[i]) / std[i], weight);
}

// Where the step leads, in the box. moved: adv, or memory of its own.
template <class T>
void move_block(const T* adv, const T* __restrict step, const T* __restrict clean, T* moved, int64_t count,
                bool inside, T keep, T lo, T hi) {
  if (inside)
    for (int64_t i = 0; i < count; ++i)
      moved[i] = into_box(l2_moved(adv[i], clean[i], step[i], true, keep), adv[i], clean[i], lo, hi);
  else
    for (int64_t i = 0; i < count; ++i)
      moved[i] = into_box(l2_moved(adv[i], clean[i], step[i], false, keep), adv[i], clean[i], lo, hi);
}

template <class T>
void project_block(T* __restrict adv, const T* __restrict clean, int64_t count, bool inside, T keep, T lo,
                   T hi) {
  for (int64_t i = 0; i < count; ++i)
    adv[i] = into_box(l2_moved(adv[i], clean[i], T(0), inside, keep), adv[i], clean[i], lo, hi);
}

template <class T>
void momentum_block(const T* __restrict adv, const T* __restrict z, const T* __restrict previous,
                    const T* __restrict clean, T* __restrict moved, int64_t count, T momentum) {
  for (int64_t i = 0; i < count; ++i) moved[i] = with_momentum(adv[i], z[i], previous[i], clean[i], momentum);
}

template <class T>
void advance_block(T* __restrict adv, T* __restrict previous, const T* __restrict moved, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    previous[i] = adv[i];
    adv[i] = is_nan(adv[i]) ? adv[i] : moved[i];
  }
}

template <class T, class C>
class L2 {
 public:
  explicit L2(const L2Step& op)
      : op_(op), blocks_(op), lo_(static_cast<T>(op.box.lo)), hi_(static_cast<T>(op.box.hi)) {}

  void gather(int stage, int64_t sample, int64_t first, int64_t last, const SampleState& state,
              GradSums* of_chunks) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      GradSums& sums = of_chunks[chunk - first] = {};
      blocks_.read(sample, chunk, chunk + 1, [&](const auto& b) {
        if (stage == 0) {
          add_sums(b.adv, b.clean, b.grad, stds(b), b.count, sums);
        } else {
          find_point(b, state);
          add_sums<T, C>(point_, b.clean, nullptr, nullptr, b.count, sums);
        }
      });
    }
  }

  void apply(int64_t sample, int64_t first, int64_t last, const SampleState& state) {
    const Movement& movement = op_.has_previous() ? state.back : state.movement;
    const T keep = static_cast<T>(movement.keep);
    blocks_.write(sample, first, last, [&](const auto& b) {
      if (op_.has_previous()) {
        find_point(b, state);
        project_block(point_, b.clean, b.count, movement.inside, keep, lo_, hi_);
        advance_block(b.adv, b.previous, point_, b.count);
      } else if (op_.has_grad()) {
        find_step(b, state);
        move_block(b.adv, step_, b.clean, b.adv, b.count, movement.inside, keep, lo_, hi_);
      } else {
        project_block(b.adv, b.clean, b.count, movement.inside, keep, lo_, hi_);
      }
    });
  }

 private:
  using Values = typename StepBlocks<T, C, Grad::values>::Values;

  const T* stds(const Values& b) { return blocks_.normalizer().stds_of(b.block, std_); }

  void find_step(const Values& b, const SampleState& state) {
    const Unit<T, C> unit(state.towards);
    const T weight = weight_of<T>(state.towards, state.movement.length);
    const T* std = state.towards.infinite ? nullptr : stds(b);
    if (std == nullptr)
      step_block(b.grad, step_, b.count, unit, weight);
    else
      step_block(b.grad, std, step_, b.count, unit, weight);
  }

  // APGD's point, before it is brought back into the ball.
  void find_point(const Values& b, const SampleState& state) {
    find_step(b, state);
    move_block(b.adv, step_, b.clean, z_, b.count, state.movement.inside, static_cast<T>(state.movement.keep),
               lo_, hi_);
    momentum_block(b.adv, z_, b.previous, b.clean, point_, b.count, op_.momentum.of<T>(b.sample));
  }

  const L2Step& op_;
  StepBlocks<T, C, Grad::values> blocks_;
  const T lo_, hi_;
  alignas(64) T step_[kBlock], z_[kBlock], point_[kBlock], std_[kBlock];
};

}  // namespace

const SampleKernel<L2Step> l2_step = {
    [](const L2Step& op, int stage, int64_t sample, int64_t first, int64_t last, const SampleState& state,
       GradSums* of_chunks) {
      with_types(op.adv, op.grad, [&](auto t, auto c) {
        L2<decltype(t), decltype(c)>(op).gather(stage, sample, first, last, state, of_chunks);
      });
    },
    [](const L2Step& op, int stage, int64_t sample, const GradSums& sums, SampleState& state) {
      with_types(op.adv, op.grad, [&](auto t, auto c) {
        L2Rule<decltype(t), decltype(c)>(op).advance(stage, sample, sums, state);
      });
    },
    [](const L2Step& op, int64_t sample, int64_t first, int64_t last, const SampleState& state) {
      with_types(op.adv, op.grad,
                 [&](auto t, auto c) { L2<decltype(t), decltype(c)>(op).apply(sample, first, last, state); });
    },
};

}  // namespace roli::cpu::ROLI_ISA
