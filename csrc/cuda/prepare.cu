// The model's input.
#include "arguments.h"
#include "kernels.h"
#include "packed.h"

namespace roli::cuda {
namespace {

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

template <class T, class Out>
void run_dense(const Prepare& op, const Dense& dense, Stream stream) {
  launch_packed<T>(DensePrepare<T, Out>(op, dense), stream);
}

template <class T>
void run_one_by_one(const Prepare& op, const Dense& dense, Stream stream) {
  launch_one_by_one<T>(DensePrepare<T, Any>(op, dense), stream);
}

}  // namespace

void run(Prepare& op, Shape shape, const Context& context) {
  const Stream stream = context.stream;
  const bool wide = op.adv.dtype == DType::f64;
  Dense dense;
  if (make_dense(dense, shape, op.operands())) {
    if (!packable(op.operands()))
      return wide ? run_one_by_one<double>(op, dense, stream) : run_one_by_one<float>(op, dense, stream);
    if (wide) return run_dense<double, Any>(op, dense, stream);
    switch (op.out.dtype) {
      case DType::f32:
        return run_dense<float, float>(op, dense, stream);
      case DType::bf16:
        return run_dense<float, bfloat16>(op, dense, stream);
      case DType::f16:
        return run_dense<float, float16>(op, dense, stream);
      default:
        return run_dense<float, Any>(op, dense, stream);
    }
  }
  make_plan(op.plan, shape, op.operands(), op.options());
  const int64_t count = op.plan.elements();
  wide ? launch(StridedPrepare<double>(op), count, stream) : launch(StridedPrepare<float>(op), count, stream);
}

}  // namespace roli::cuda
