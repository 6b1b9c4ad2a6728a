// The L1 steps: a block for each sample, which reads it again and again: the magnitude from which elements
// move, four bits at a time; how many move; the threshold of the projection; and then the elements.
#include "../common/l1.h"
#include "kernels.h"
#include "steps.h"

namespace roli::cuda {
namespace {

constexpr int kDigitBits = 4;
constexpr int kDigits = (1 << kDigitBits) - 1;  // that are not 0

// What a round sums; made of doubles, for sum_in_block.
struct L1Sums {
  double at_least[kDigits] = {};  // keys that reach each digit; [0] alone: elements that move
  Kept kept;

  ROLI_FN void add(const L1Sums& other) {
    ROLI_UNROLL
    for (int i = 0; i < kDigits; ++i) at_least[i] += other.at_least[i];
    kept.add(other.kept);
  }
};

enum class Phase { digits, length, threshold };

template <class C>
struct L1State {
  Phase phase = Phase::threshold;
  bool done = false;
  bool first = true;  // of the threshold's rounds
  int shift = 0;      // of the digit that is sought
  int64_t count = 0;  // of elements that move at least
  Key<C> last = 0;    // the smallest magnitude that moves
  double length = 0;  // of a move, of T
  Threshold threshold;
};

template <class Operands>
struct L1Samples {
  static constexpr int kBlocks = Operands::kWide ? 1 : 2;
  using T = typename Operands::State;
  using C = typename Operands::Gradient;
  using State = L1State<C>;
  Operands operands;
  int64_t elements;
  Size<T> step_size, eps, sparsity;
  T lo, hi;
  Mask active;

  L1Samples(const L1Step& op, const Operands& operands, int64_t elements)
      : operands(operands),
        elements(elements),
        step_size(op.step_size),
        eps(op.eps),
        sparsity(op.sparsity),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)),
        active(op.active) {}

  ROLI_FN State begin(int64_t sample) const {
    State state;
    state.done = !active.has(sample);
    if (!operands.has_grad()) return state;
    state.phase = Phase::digits;
    state.count = moving(static_cast<double>(sparsity(sample)), elements);
    state.shift = 8 * static_cast<int>(sizeof(C)) - kDigitBits;
    return state;
  }

  ROLI_FN L1Sums gather(int64_t sample, int thread, const State& state) const {
    return state.phase == Phase::digits ? count_digits(sample, thread, state)
                                        : sum_kept(sample, thread, state);
  }

  ROLI_FN void advance(int64_t sample, const L1Sums& sums, State& state) const {
    const double e = static_cast<double>(eps(sample));
    if (state.phase == Phase::digits) {
      int digit = 0;
      ROLI_UNROLL
      for (int i = 1; i <= kDigits; ++i)
        if (sums.at_least[i - 1] >= static_cast<double>(state.count)) digit = i;
      state.last = reaching(state, digit);
      state.shift -= kDigitBits;
      if (state.shift < 0) state.phase = Phase::length;
    } else if (state.phase == Phase::length) {
      const double s = static_cast<double>(step_size(sample));
      state.length =
          static_cast<double>(l1_length<T>(s, static_cast<int64_t>(sums.at_least[0]), e, sums.kept.largest));
      state.phase = Phase::threshold;
    } else if (state.first) {
      state.threshold = Threshold(sums.kept, e);
      state.first = false;
      state.done = state.threshold.done;
    } else {
      state.threshold.next(sums.kept);
      state.done = state.threshold.done;
    }
  }

  ROLI_FN void apply(int64_t sample, int thread, const State& state) const {
    const bool moves = active.has(sample);
    if (!moves && !operands.has_out()) return;
    each_pack(thread, [&](int64_t element) {
      if (!moves) return operands.template write_input<false>(sample, element);
      auto four = operands.template read<false>(sample, element);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (k >= four.count) break;
        const T x = l1_projected(point(four, k, state), four.c[k], lo, hi, state.threshold.t);
        four.a[k] = into_box(x, four.a[k], four.c[k], lo, hi);
      }
      operands.template write<false>(sample, element, four);
    });
  }

 private:
  template <class Visit>
  ROLI_FN void each_pack(int thread, Visit&& visit) const {
    for (int64_t element = thread * kPack; element < elements; element += kThreads * kPack) visit(element);
  }

  ROLI_FN L1Sums count_digits(int64_t sample, int thread, const State& state) const {
    uint32_t at_least[kDigits] = {};
    Key<C> thresholds[kDigits];
    ROLI_UNROLL
    for (int i = 0; i < kDigits; ++i) thresholds[i] = reaching(state, i + 1);
    each_pack(thread, [&](int64_t element) {
      Four<T, C> four;
      operands.read_grad(sample, element, four);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (k >= four.count) break;
        const Key<C> key = key_at(four, k);
        ROLI_UNROLL
        for (int i = 0; i < kDigits; ++i) at_least[i] += key >= thresholds[i];
      }
    });
    L1Sums sums;
    ROLI_UNROLL
    for (int i = 0; i < kDigits; ++i) sums.at_least[i] = at_least[i];
    return sums;
  }

  ROLI_FN L1Sums sum_kept(int64_t sample, int thread, const State& state) const {
    L1Sums sums;
    uint32_t move = 0;
    each_pack(thread, [&](int64_t element) {
      const auto four = operands.template read<false>(sample, element);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (k >= four.count) break;
        if (state.phase == Phase::length) {
          const Key<C> key = key_at(four, k);
          // Divided by std, a gradient may have come to nothing: it moves all the same.
          move += key >= state.last && magnitude(four.g[k]) > 0;
          sums.kept.add_element(Reach<T>{finite_magnitude(four.a[k] - four.c[k]), T(0)}, 0);
        } else {
          sums.kept.add_element(reach(point(four, k, state), four.c[k], lo, hi), state.threshold.t);
        }
      }
    });
    sums.at_least[0] = move;
    return sums;
  }

  static ROLI_FN Key<C> reaching(const State& state, int digit) {
    return static_cast<Key<C>>(state.last | static_cast<Key<C>>(digit) << state.shift);
  }

  ROLI_FN Key<C> key_at(const Four<T, C>& four, int k) const {
    const C g = magnitude(four.g[k]);
    return key_of(operands.normalizer.mean == nullptr ? g : g / static_cast<C>(four.std[k]));
  }

  // Where the step leads.
  ROLI_FN T point(const Four<T, C>& four, int k, const State& state) const {
    const T a = four.a[k];
    if (!operands.has_grad() || key_at(four, k) < state.last) return a;
    return signed_step(a, four.g[k], static_cast<T>(state.length));
  }
};

}  // namespace

void run(L1Step& op, Shape shape, const Context& context) {
  with_operands(op, shape, [&](const auto& operands) {
    const L1Samples<std::decay_t<decltype(operands)>> body(op, operands, elements_of(shape));
    launch_rounds(body, shape.sizes[0], context.stream);
  });
}

}  // namespace roli::cuda
