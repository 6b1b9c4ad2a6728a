// The L1 steps, compiled once per instruction set (ROLI_ISA). A sample at a time, in scratch memory that
// stays in the cache: what the search for the threshold reads again and again is there, converted and side by
// side.
#include "../common/l1.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"
#include "sums.h"

constexpr int kDigit = 11;  // bits of a key that are counted at a time

// The count-th largest of the keys, of which `bits` bits are used: digit by digit, the largest first.
template <class K>
K nth_largest(const K* keys, int64_t elements, int bits, int64_t count) {
  K prefix = 0;
  for (int known = 0; known < bits;) {
    const int digit = std::min(kDigit, bits - known), shift = bits - known - digit;
    // Four histograms in turn: equal digits in a row would wait for each other.
    int64_t counts[4][1 << kDigit] = {};
    for (int64_t i = 0; i < elements; ++i)
      if (known == 0 || keys[i] >> (shift + digit) == prefix)
        ++counts[i & 3][(keys[i] >> shift) & ((K(1) << digit) - 1)];
    int64_t bin = (int64_t{1} << digit) - 1;
    for (; bin > 0; --bin) {
      const int64_t here = counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin];
      if (here >= count) break;
      count -= here;
    }
    prefix = static_cast<K>(prefix << digit | static_cast<K>(bin));
    known += digit;
  }
  return prefix;
}

template <class T>
void add_groups(const T* __restrict v, const T* __restrict u, int64_t count, double t, Sums& totals,
                int64_t (&slopes)[kSide]) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int j = 0; j < kSide; ++j) {
      const auto room = static_cast<double>(u[i + j]), rest = static_cast<double>(v[i + j]) - t;
      const double positive = rest > 0 ? rest : 0;
      totals.at[j] += positive < room ? positive : room;
      slopes[j] += (rest > 0) & (rest < room);
    }
}

template <class T>
Kept sum_kept(const T* v, const T* u, int64_t count, double t) {
  const int64_t whole = count / kSide * kSide;
  Sums totals;
  int64_t slopes[kSide] = {};
  add_groups(v, u, whole, t, totals, slopes);
  Kept sums;
  sums.total = totals.total();
  for (int j = 0; j < kSide; ++j) sums.slope += static_cast<double>(slopes[j]);
  for (int64_t i = whole; i < count; ++i) sums.add_element(Reach<T>{v[i], u[i]}, t);
  return sums;
}

// The largest of values that are not negative.
template <class T>
T largest_of(const T* __restrict values, int64_t count) {
  T largest[kSide] = {};
  const int64_t whole = count / kSide * kSide;
  for (int64_t i = 0; i < whole; i += kSide)
    for (int j = 0; j < kSide; ++j) largest[j] = largest[j] > values[i + j] ? largest[j] : values[i + j];
  T found = largest[0];
  for (int j = 1; j < kSide; ++j) found = found > largest[j] ? found : largest[j];
  for (int64_t i = whole; i < count; ++i) found = found > values[i] ? found : values[i];
  return found;
}

template <class T>
void reach_block(const T* __restrict x, const T* __restrict clean, T* __restrict v, T* __restrict u,
                 int64_t count, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i) {
    const Reach<T> r = reach(x[i], clean[i], lo, hi);
    v[i] = r.v;
    u[i] = r.u;
  }
}

template <class T>
void distance_block(const T* __restrict adv, const T* __restrict clean, T* __restrict v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = finite_magnitude(adv[i] - clean[i]);
}

template <class T>
void project_block(const T* __restrict x, T* __restrict adv, const T* __restrict clean, int64_t count,
                   double t, T lo, T hi) {
  for (int64_t i = 0; i < count; ++i)
    adv[i] = into_box(l1_projected(x[i], clean[i], lo, hi, t), adv[i], clean[i], lo, hi);
}

template <class T, class C>
void key_block(const C* __restrict grad, const T* std, Key<C>* __restrict keys, int64_t count) {
  if (std == nullptr)
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(magnitude(grad[i]));
  else
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(magnitude(grad[i]) / static_cast<C>(std[i]));
}

template <class T, class C>
void move_block(const T* __restrict adv, const C* __restrict grad, const Key<C>* __restrict keys,
                T* __restrict x, int64_t count, Key<C> last, T length) {
  for (int64_t i = 0; i < count; ++i) {
    const T there = signed_step(adv[i], grad[i], length);
    x[i] = keys[i] >= last ? there : adv[i];
  }
}

// A gradient that underflows when it is divided by std moves all the same.
template <class C>
int64_t count_moving(const C* __restrict grad, const Key<C>* __restrict keys, int64_t count, Key<C> last) {
  int64_t moving = 0;
  for (int64_t i = 0; i < count; ++i) moving += keys[i] >= last && magnitude(grad[i]) > 0;
  return moving;
}

template <class T, class C>
class L1 {
 public:
  L1(const L1Step& op, const Scratch& scratch)
      : op_(op),
        elements_(op.plan.elements()),
        lo_(static_cast<T>(op.box.lo)),
        hi_(static_cast<T>(op.box.hi)),
        x_(static_cast<T*>(scratch.point)),
        v_(static_cast<T*>(scratch.v)),
        u_(static_cast<T*>(scratch.u)),
        keys_(static_cast<Key<C>*>(scratch.key)),
        blocks_(op) {}

  void run(int64_t sample) {
    const double eps = size_of<T>(op_.eps, sample);
    double t = 0;
    if (op_.active.has(sample)) {
      if (op_.has_grad())
        move(sample, eps);
      else
        each_block(sample, [&](const auto& b, int64_t at) { std::copy_n(b.adv, b.count, x_ + at); });
      each_block(sample, [&](const auto& b, int64_t at) {
        reach_block(x_ + at, b.clean, v_ + at, u_ + at, b.count, lo_, hi_);
      });
      Kept at_zero = sum_kept(v_, u_, elements_, 0);
      at_zero.largest = static_cast<double>(largest_of(v_, elements_));
      Threshold threshold(at_zero, eps);
      while (!threshold.done) threshold.next(sum_kept(v_, u_, elements_, threshold.t));
      t = threshold.t;
    }
    int64_t at = 0;
    blocks_.write(sample, 0, op_.plan.chunks(), [&](const auto& b) {
      project_block(x_ + at, b.adv, b.clean, b.count, t, lo_, hi_);
      at += b.count;
    });
  }

 private:
  // Calls visit(block, at) with the place of each block in the scratch memory.
  template <class Visit>
  void each_block(int64_t sample, Visit&& visit) {
    int64_t at = 0;
    blocks_.read(sample, 0, op_.plan.chunks(), [&](const auto& b) {
      visit(b, at);
      at += b.count;
    });
  }

  // Puts the points that the step leads to into x.
  void move(int64_t sample, double eps) {
    alignas(64) T std[kBlock];
    each_block(sample, [&](const auto& b, int64_t at) {
      key_block(b.grad, blocks_.normalizer().stds_of(b.block, std), keys_ + at, b.count);
    });
    const double sparsity = size_of<T>(op_.sparsity, sample);
    const int64_t count = moving(sparsity, elements_);
    const Key<C> last = nth_largest(keys_, elements_, 8 * sizeof(C) - 1, count);
    int64_t moved = 0;
    each_block(sample,
               [&](const auto& b, int64_t at) { moved += count_moving(b.grad, keys_ + at, b.count, last); });
    const T length = l1_length<T>(size_of<T>(op_.step_size, sample), moved, eps, farthest(sample));
    each_block(sample, [&](const auto& b, int64_t at) {
      move_block(b.adv, b.grad, keys_ + at, x_ + at, b.count, last, length);
    });
  }

  double farthest(int64_t sample) {
    each_block(sample, [&](const auto& b, int64_t at) { distance_block(b.adv, b.clean, v_ + at, b.count); });
    return static_cast<double>(largest_of(v_, elements_));
  }

  const L1Step& op_;
  const int64_t elements_;
  const T lo_, hi_;
  T *const x_, *const v_, *const u_;
  Key<C>* const keys_;
  StepBlocks<T, C, Grad::values> blocks_;
};

}  // namespace

void l1_step_sample(const L1Step& op, int64_t sample, const Scratch& scratch) {
  with_types(op.adv, op.grad, [&](auto t, auto c) { L1<decltype(t), decltype(c)>(op, scratch).run(sample); });
}

}  // namespace roli::cpu::ROLI_ISA
