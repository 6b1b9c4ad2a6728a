// The Linf family and the model's input.
#include "../common/linf.h"
#include "../common/philox.h"
#include "arguments.h"
#include "index.h"
#include "kernels.h"
#include "launch.h"
#include "pack.h"

namespace roli::cuda {
namespace {

// Packs that a thread moves: 32 bytes of state. Their reads are in flight together.
template <class T>
constexpr int packs = 8 / sizeof(T);

// The number of threads that move so many elements, in packs or one by one.
template <class T>
int64_t threads_for(int64_t elements) {
  constexpr int64_t per_thread = kPack * packs<T>;
  return (elements + per_thread - 1) / per_thread;
}

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
    if (!has(active, sample)) return a;
    const T e = eps(sample);
    return has_grad ? linf_step(a, g, c, step_size(sample), e, lo, hi) : linf_project(a, c, e, lo, hi);
  }

  // APGD's: p, the previous a, becomes a.
  ROLI_FN T operator()(T a, T& p, T g, T c, int64_t sample) const {
    if (!has(active, sample)) return a;
    const T x = linf_apgd_step(a, p, g, c, step_size(sample), eps(sample), momentum(sample), lo, hi);
    p = a;
    return x;
  }
};

// The two ways over dense operands. A body has their index, dense; reads and writes a pack; does one element.

// In packs; the last elements, too few for one, one by one.
template <class T, class Body>
struct Packed {
  Body body;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t first = (block * packs<T> * kThreads + thread) * kPack;
    typename Body::Read packed[packs<T>];
    ROLI_UNROLL
    for (int p = 0; p < packs<T>; ++p) {
      const int64_t place = first + p * kThreads * kPack;
      if (place + kPack <= body.dense.count) packed[p] = body.read(place);
    }
    ROLI_UNROLL
    for (int p = 0; p < packs<T>; ++p) {
      const int64_t place = first + p * kThreads * kPack;
      if (place + kPack <= body.dense.count)
        body.write(place, packed[p]);
      else
        for (int64_t i = place; i < body.dense.count; ++i) body.one(i);
    }
  }
};

// Where operands begin where packs cannot: as many elements per thread.
template <class T, class Body>
struct OneByOne {
  Body body;

  ROLI_FN void operator()(int64_t block, int thread) const {
    constexpr int count = kPack * packs<T>;
    const int64_t first = block * count * kThreads + thread;
    ROLI_UNROLL
    for (int i = 0; i < count; ++i)
      if (first + i * kThreads < body.dense.count) body.one(first + i * kThreads);
  }
};

// T: of the state. Grad, Clean, Out: storage types; Grad and Out are None where there is no such operand.
struct None {};

// Previous is T in APGD's step and None in the others.
template <class T, class Grad, class Clean, class Out, class Previous>
struct DenseStep {
  static constexpr bool kGrad = !std::is_same_v<Grad, None>, kOut = !std::is_same_v<Out, None>,
                        kPrevious = !std::is_same_v<Previous, None>;
  Dense dense;
  Memory adv, grad, clean, out, previous;
  StepRule<T> rule;

  DenseStep(const LinfStep& op, const Dense& dense)
      : dense(dense),
        adv(op.adv),
        grad(op.grad),
        clean(op.clean),
        out(op.out),
        previous(op.previous),
        rule(op) {}

  ROLI_FN bool writes_out() const { return kOut && out.data != nullptr; }

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
      if (!writes_out()) return;
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
      if (writes_out()) put_one<Out>(out, i, rule.normalizer(a, dense.channel(i)));
  }
};

// Any layout, an element per thread.
template <class T>
struct StridedStep {
  Strided strided;
  Memory adv, grad, clean, out, previous;
  StepRule<T> rule;

  explicit StridedStep(const LinfStep& op)
      : strided(op.plan, op.operands().count, op.normalization.channels),
        adv(op.adv),
        grad(op.grad),
        clean(op.clean),
        out(op.out),
        previous(op.previous),
        rule(op) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t index = block * kThreads + thread;
    if (index >= strided.count) return;
    const Place place = strided(index);
    const int64_t* at = place.offset;
    T a = fetch_one<AsValue, T, T>(adv, at[Step::kAdv]);
    const T c = fetch_one<AsValue, T, Any>(clean, at[Step::kClean]);
    const T g = rule.has_grad ? fetch_one<AsDirection, T, Any>(grad, at[Step::kGrad]) : T(0);
    const bool apgd = previous.data != nullptr;
    if (apgd) {
      T p = fetch_one<AsValue, T, T>(previous, at[Step::kPrevious]);
      a = rule(a, p, g, c, place.sample);
      put_one<T>(previous, at[Step::kPrevious], p);
    } else {
      a = rule(a, g, c, place.sample);
    }
    put_one<T>(adv, at[Step::kAdv], a);
    if (out.data == nullptr) return;
    // Not by index: offsets stay in registers.
    put_one<Any>(out, apgd ? at[4] : at[3], rule.normalizer(a, place.channel));
  }
};

// Blocks of four draws that a thread makes, whose key it mixes once.
constexpr int kDraws = 4;

template <class T, class Clean>
struct StartBody {
  Memory start, clean;
  Size<T> eps;
  T lo, hi;
  const int64_t *seed, *index;
  int64_t seed_stride, index_stride;
  int64_t samples, elements;  // of a sample
  Divider blocks;             // of four elements, in a sample
  bool small;                 // whether 31 bits hold their number

  StartBody(const LinfStart& op, Shape shape, int64_t count)
      : start(op.start),
        clean(op.clean),
        eps(op.eps),
        lo(static_cast<T>(op.box.lo)),
        hi(static_cast<T>(op.box.hi)),
        seed(op.seed),
        index(op.index),
        seed_stride(op.seed_stride),
        index_stride(op.index_stride),
        samples(shape.sizes[0]),
        elements(count / shape.sizes[0]),
        blocks((elements + kPack - 1) / kPack),
        small(samples * blocks.divisor < (int64_t{1} << 31) - kDraws * kThreads) {}

  int64_t threads() const { return (samples * blocks.divisor + kDraws - 1) / kDraws; }

  // Calls place(sample, element, draws) for the thread's blocks of four elements, by the first of them.
  template <class Place>
  ROLI_FN void draw(int64_t block, int thread, Place&& place) const {
    const PhiloxKey key = philox_key(seed[0], seed[seed_stride]);
    ROLI_UNROLL
    for (int i = 0; i < kDraws; ++i) {
      const int64_t at = (block * kDraws + i) * kThreads + thread;
      const int64_t sample = small ? static_cast<int64_t>(blocks.small_quotient(static_cast<uint32_t>(at)))
                                   : blocks.quotient(at);
      if (sample >= samples) return;
      const int64_t number = at - sample * blocks.divisor;
      const Philox4 bits =
          philox_block(key, index == nullptr ? sample : index[sample * index_stride], number);
      place(sample, number * kPack,
            Pack<T>{{symmetric_uniform<T>(bits.x0), symmetric_uniform<T>(bits.x1),
                     symmetric_uniform<T>(bits.x2), symmetric_uniform<T>(bits.x3)}});
    }
  }
};

// Four elements at once: in row-major memory, samples of a multiple of four.
template <class T, class Clean>
struct DenseStart : StartBody<T, Clean> {
  using StartBody<T, Clean>::StartBody;

  ROLI_FN void operator()(int64_t block, int thread) const {
    this->draw(block, thread, [&](int64_t sample, int64_t element, Pack<T> x) {
      const int64_t place = sample * this->elements + element;
      const auto c = fetch<AsValue, T, Clean>(this->clean, place);
      const T e = this->eps(sample);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k)
        x.at[k] = linf_start(meant<AsValue, T, Clean>(c, k), x.at[k], e, this->lo, this->hi);
      put<T>(this->start, place, x);
    });
  }
};

template <class T>
struct StridedStart : StartBody<T, Any> {
  Strided strided;

  StridedStart(const LinfStart& op, Shape shape)
      : StartBody<T, Any>(op, shape, op.plan.elements()), strided(op.plan, 2, 1) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    enum { kStart, kClean };
    this->draw(block, thread, [&](int64_t sample, int64_t element, const Pack<T>& x) {
      const T e = this->eps(sample);
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) {
        if (element + k >= this->elements) return;
        const Place place = strided(sample * this->elements + element + k);
        const T c = fetch_one<AsValue, T, Any>(this->clean, place.offset[kClean]);
        put_one<T>(this->start, place.offset[kStart], linf_start(c, x.at[k], e, this->lo, this->hi));
      }
    });
  }
};

template <class T, class Out>
struct DensePrepare {
  Dense dense;
  Memory out, adv;
  Normalizer<T> normalizer;

  DensePrepare(const Prepare& op, const Dense& dense)
      : dense(dense), out(op.out), adv(op.adv), normalizer(op.normalization) {}

  using Read = Pack<T>;

  ROLI_FN Read read(int64_t place) const { return fetch<AsValue, T, T>(adv, place); }

  ROLI_FN void write(int64_t place, Read& a) const {
    normalizer(a, dense.channel, place);
    put<Out>(out, place, a);
  }

  ROLI_FN void one(int64_t i) const {
    put_one<Out>(out, i, normalizer(fetch_one<AsValue, T, T>(adv, i), dense.channel(i)));
  }
};

template <class T>
struct StridedPrepare {
  Strided strided;
  Memory out, adv;
  Normalizer<T> normalizer;

  explicit StridedPrepare(const Prepare& op)
      : strided(op.plan, 2, op.normalization.channels),
        out(op.out),
        adv(op.adv),
        normalizer(op.normalization) {}

  ROLI_FN void operator()(int64_t block, int thread) const {
    enum { kOut, kAdv };
    const int64_t index = block * kThreads + thread;
    if (index >= strided.count) return;
    const Place place = strided(index);
    const T a = fetch_one<AsValue, T, T>(adv, place.offset[kAdv]);
    put_one<Any>(out, place.offset[kOut], normalizer(a, place.channel));
  }
};

// Types that images and gradients come in have kernels of their own; for the rest one kernel asks.

template <class T, class Grad, class Clean, class Out>
void run_dense(const LinfStep& op, const Dense& dense, Stream stream) {
  using Body = DenseStep<T, Grad, Clean, Out, None>;
  launch(Packed<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
}

// APGD's step, whose images and state are of one type; gradients come as they do.
template <class T, class Grad, class Clean>
void run_dense_apgd(const LinfStep& op, const Dense& dense, Stream stream) {
  if (op.has_out()) {
    using Body = DenseStep<T, Any, Any, Any, T>;
    return launch(Packed<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
  }
  using Body = DenseStep<T, Grad, Clean, None, T>;
  launch(Packed<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
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
  if (op.out.data == nullptr) return run_dense<float, Grad, Clean, None>(op, dense, stream);
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
  if (op.grad.data == nullptr) return run_dense<float, None, Clean, None>(op, dense, stream);
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
    return launch(OneByOne<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
  }
  using Body = DenseStep<T, Any, Any, Any, None>;
  launch(OneByOne<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
}

template <class T>
void run_one_by_one(const Prepare& op, const Dense& dense, Stream stream) {
  using Body = DensePrepare<T, Any>;
  launch(OneByOne<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
}

template <class T, class Clean>
void run_dense(const LinfStart& op, Shape shape, int64_t count, Stream stream) {
  const DenseStart<T, Clean> body(op, shape, count);
  launch(body, body.threads(), stream);
}

template <class T, class Out>
void run_dense(const Prepare& op, const Dense& dense, Stream stream) {
  using Body = DensePrepare<T, Out>;
  launch(Packed<T, Body>{Body(op, dense)}, threads_for<T>(dense.count), stream);
}

// Row-major, in samples of whole packs.
bool starts_packed(const LinfStart& op, Shape shape, const Dense& dense) {
  if (!packable(op.operands())) return false;
  int64_t expected = 1;
  for (int d = shape.rank - 1; d >= 0; --d) {
    if (shape.sizes[d] != 1 && op.start.strides[d] != expected) return false;
    expected *= shape.sizes[d];
  }
  return dense.count / shape.sizes[0] % kPack == 0;
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

void run(LinfStart& op, Shape shape, const Context& context) {
  const Stream stream = context.stream;
  const bool wide = op.start.dtype == DType::f64;
  Dense dense;
  if (make_dense(dense, shape, op.operands()) && starts_packed(op, shape, dense)) {
    if (wide) return run_dense<double, Any>(op, shape, dense.count, stream);
    if (op.clean.dtype == DType::f32) return run_dense<float, float>(op, shape, dense.count, stream);
    if (op.clean.dtype == DType::u8) return run_dense<float, uint8_t>(op, shape, dense.count, stream);
    return run_dense<float, Any>(op, shape, dense.count, stream);
  }
  make_plan(op.plan, shape, op.operands(), op.options());
  const auto strided = [&](auto body) { launch(body, body.threads(), stream); };
  wide ? strided(StridedStart<double>(op, shape)) : strided(StridedStart<float>(op, shape));
}

void run(Prepare& op, Shape shape, const Context& context) {
  const Stream stream = context.stream;
  const bool wide = op.adv.dtype == DType::f64;
  Dense dense;
  if (make_dense(dense, shape, op.operands())) {
    if (!packable(op.operands()))
      return wide ? run_one_by_one<double>(op, dense, stream) : run_one_by_one<float>(op, dense, stream);
    if (wide) return run_dense<double, Any>(op, dense, stream);
    switch (op.out.dtype) {
      case DType::bf16:
        return run_dense<float, bfloat16>(op, dense, stream);
      case DType::f16:
        return run_dense<float, float16>(op, dense, stream);
      case DType::f32:
        return run_dense<float, float>(op, dense, stream);
      default:
        return run_dense<float, Any>(op, dense, stream);
    }
  }
  make_plan(op.plan, shape, op.operands(), op.options());
  const int64_t count = op.plan.elements();
  wide ? launch(StridedPrepare<double>(op), count, stream) : launch(StridedPrepare<float>(op), count, stream);
}

}  // namespace roli::cuda
