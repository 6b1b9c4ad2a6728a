// The Linf steps.
#include "../common/linf.h"
#include "arguments.h"
#include "kernels.h"
#include "packed.h"

namespace roli::cuda {
namespace {

// What a step does to one element; without a gradient it is a projection.
template <class T>
struct StepRule {
  Size<T> step_size, eps, momentum;
  T lo, hi;
  Mask active;
  bool per_sample, has_grad;
  Normalizer<T> normalizer;

  explicit StepRule(const LinfStep& op)
      : step_size(op.step_size),
        eps(op.eps),
        momentum(op.momentum),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)),
        active(op.active),
        per_sample(op.per_sample()),
        has_grad(op.has_grad()),
        normalizer(op.normalization) {}

  ROLI_FN T operator()(T a, T g, T c, int64_t sample) const {
    if (!active.has(sample)) return a;
    const T e = eps(sample);
    return has_grad ? linf_step(a, g, c, step_size(sample), e, lo, hi) : linf_project(a, c, e, lo, hi);
  }

  // APGD's: p, the previous a, becomes a.
  ROLI_FN T operator()(T a, T& p, T g, T c, int64_t sample) const {
    if (!active.has(sample)) return a;
    const T x = linf_apgd_step(a, p, g, c, step_size(sample), eps(sample), momentum(sample), lo, hi);
    p = a;
    return x;
  }
};

// Stands for the type of an operand that is not there.
struct None {};

// T: of the state. Grad, Clean, Out: storage types; Grad and Out may be None. Previous is T in APGD's step
// and None in the others.
template <class T, class Grad, class Clean, class Out, class Previous>
struct DenseStep : StepMemory {
  static constexpr bool kGrad = !std::is_same_v<Grad, None>, kOut = !std::is_same_v<Out, None>,
                        kPrevious = !std::is_same_v<Previous, None>;
  Dense dense;
  StepRule<T> rule;

  DenseStep(const LinfStep& op, const Dense& dense) : StepMemory(op), dense(dense), rule(op) {}

  struct Read {
    Pack<T> a;
    Raw<T, Clean> c;
    Raw<T, std::conditional_t<kGrad, Grad, Any>> g;
    Pack<T> p;
  };

  ROLI_FN Read read(int64_t place) const {
    Read pack;
    pack.a = fetch<AsValue, T, T>(adv, place);
    pack.c = fetch<AsValue, T, Clean>(clean, place);
    if constexpr (kGrad)
      if (rule.has_grad) pack.g = fetch<AsDirection, T, Grad>(grad, place);
    if constexpr (kPrevious) pack.p = fetch<AsValue, T, T>(previous, place);
    return pack;
  }

  ROLI_FN void write(int64_t place, Read& pack) const {
    int64_t sample = 0;
    ROLI_UNROLL
    for (int k = 0; k < kPack; ++k) {
      if (rule.per_sample && (k == 0 || !dense.sample.steady)) sample = dense.sample(place + k);
      T direction{};
      if constexpr (kGrad) direction = meant<AsDirection, T, Grad>(pack.g, k);
      const T c = meant<AsValue, T, Clean>(pack.c, k);
      if constexpr (kPrevious)
        pack.a.at[k] = rule(pack.a.at[k], pack.p.at[k], direction, c, sample);
      else
        pack.a.at[k] = rule(pack.a.at[k], direction, c, sample);
    }
    put<T>(adv, place, pack.a);
    if constexpr (kPrevious) put<T>(previous, place, pack.p);
    if constexpr (kOut) {
      if (!has_out()) return;
      rule.normalizer(pack.a, dense.channel, place);
      put<Out>(out, place, pack.a);
    }
  }

  ROLI_FN void one(int64_t i) const {
    T a = fetch_one<AsValue, T, T>(adv, i), direction{};
    if constexpr (kGrad)
      if (rule.has_grad) direction = fetch_one<AsDirection, T, Grad>(grad, i);
    const T c = fetch_one<AsValue, T, Clean>(clean, i);
    const int64_t sample = rule.per_sample ? dense.sample(i) : 0;
    if constexpr (kPrevious) {
      T p = fetch_one<AsValue, T, T>(previous, i);
      a = rule(a, p, direction, c, sample);
      put_one<T>(previous, i, p);
    } else {
      a = rule(a, direction, c, sample);
    }
    put_one<T>(adv, i, a);
    if constexpr (kOut)
      if (has_out()) put_one<Out>(out, i, rule.normalizer(a, dense.channel(i)));
  }
};

// Any layout, an element per thread.
template <class T>
struct StridedStep : StepMemory {
  Strided strided;
  StepRule<T> rule;

  explicit StridedStep(const LinfStep& op)
      : StepMemory(op), strided(op.plan, op.operands().count, op.normalization.channels), rule(op) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t index = block * kThreads + thread;
    if (index >= strided.count) return;
    const Place place = strided(index);
    const int64_t* at = place.offset;
    T a = fetch_one<AsValue, T, T>(adv, at[Step::kAdv]);
    const T c = fetch_one<AsValue, T, Any>(clean, at[Step::kClean]);
    const T g = rule.has_grad ? fetch_one<AsDirection, T, Any>(grad, at[Step::kGrad]) : T(0);
    if (has_previous()) {
      T p = fetch_one<AsValue, T, T>(previous, at[Step::kPrevious]);
      a = rule(a, p, g, c, place.sample);
      put_one<T>(previous, at[Step::kPrevious], p);
    } else {
      a = rule(a, g, c, place.sample);
    }
    put_one<T>(adv, at[Step::kAdv], a);
    if (!has_out()) return;
    // Not by a computed index: offsets stay in registers.
    const int64_t to = has_previous() ? at[Step::out_at(true)] : at[Step::out_at(false)];
    put_one<Any>(out, to, rule.normalizer(a, place.channel));
  }
};

// Types that images and gradients come in have kernels of their own; for the rest one kernel asks.

template <class T, class Grad, class Clean, class Out>
void run_dense(const LinfStep& op, const Dense& dense, Stream stream) {
  using Body = DenseStep<T, Grad, Clean, Out, None>;
  launch_packed<T>(Body(op, dense), stream);
}

// APGD's step, whose images and state are of one type; gradients come as they do.
template <class T, class Grad, class Clean>
void run_dense_apgd(const LinfStep& op, const Dense& dense, Stream stream) {
  if (op.has_out()) {
    using Body = DenseStep<T, Any, Any, Any, T>;
    return launch_packed<T>(Body(op, dense), stream);
  }
  using Body = DenseStep<T, Grad, Clean, None, T>;
  launch_packed<T>(Body(op, dense), stream);
}

void run_apgd(const LinfStep& op, const Dense& dense, Stream stream) {
  if (op.adv.dtype == DType::f64) return run_dense_apgd<double, Any, Any>(op, dense, stream);
  if (op.clean.dtype != DType::f32) return run_dense_apgd<float, Any, Any>(op, dense, stream);
  if (op.grad.dtype == DType::f32) return run_dense_apgd<float, float, float>(op, dense, stream);
  if (op.grad.dtype == DType::bf16) return run_dense_apgd<float, bfloat16, float>(op, dense, stream);
  run_dense_apgd<float, Any, Any>(op, dense, stream);
}

template <class Grad, class Clean>
void run_by_out(const LinfStep& op, const Dense& dense, Stream stream) {
  if (!op.has_out()) return run_dense<float, Grad, Clean, None>(op, dense, stream);
  switch (op.out.dtype) {
    case DType::f32:
      return run_dense<float, Grad, Clean, float>(op, dense, stream);
    case DType::bf16:
      return run_dense<float, Grad, Clean, bfloat16>(op, dense, stream);
    case DType::f16:
      return run_dense<float, Grad, Clean, float16>(op, dense, stream);
    default:
      return run_dense<float, Any, Any, Any>(op, dense, stream);
  }
}

template <class Clean>
void run_by_grad(const LinfStep& op, const Dense& dense, Stream stream) {
  if (!op.has_grad()) return run_dense<float, None, Clean, None>(op, dense, stream);
  switch (op.grad.dtype) {
    case DType::f32:
      return run_by_out<float, Clean>(op, dense, stream);
    case DType::bf16:
      return run_by_out<bfloat16, Clean>(op, dense, stream);
    case DType::f16:
      return run_by_out<float16, Clean>(op, dense, stream);
    default:
      return run_dense<float, Any, Any, Any>(op, dense, stream);
  }
}

template <class T>
void run_one_by_one(const LinfStep& op, const Dense& dense, Stream stream) {
  if (op.has_previous()) {
    using Body = DenseStep<T, Any, Any, Any, T>;
    return launch_one_by_one<T>(Body(op, dense), stream);
  }
  using Body = DenseStep<T, Any, Any, Any, None>;
  launch_one_by_one<T>(Body(op, dense), stream);
}

}  // namespace

void run(LinfStep& op, Shape shape, const Context& context) {
  const Stream stream = context.stream;
  const bool wide = op.adv.dtype == DType::f64;
  Dense dense;
  if (make_dense(dense, shape, op.operands())) {
    if (!packable(op.operands()))
      return wide ? run_one_by_one<double>(op, dense, stream) : run_one_by_one<float>(op, dense, stream);
    if (op.has_previous()) return run_apgd(op, dense, stream);
    if (wide) return run_dense<double, Any, Any, Any>(op, dense, stream);
    if (op.clean.dtype == DType::f32) return run_by_grad<float>(op, dense, stream);
    if (op.clean.dtype == DType::u8) return run_by_grad<uint8_t>(op, dense, stream);
    return run_dense<float, Any, Any, Any>(op, dense, stream);
  }
  make_plan(op.plan, shape, op.operands(), op.options());
  const int64_t count = op.plan.elements();
  wide ? launch(StridedStep<double>(op), count, stream) : launch(StridedStep<float>(op), count, stream);
}

}  // namespace roli::cuda
