// The best iterates.
#include "arguments.h"
#include "kernels.h"
#include "samples.h"

namespace roli::cuda {
namespace {

enum { kBest, kAdv };

// One kernel moves the winners, a second one notes their values: blocks of one sample do not wait for each
// other.
template <class T>
struct Winners {
  Mask active;
  T* best_value;
  const T* value;
  int64_t best_value_stride, value_stride;

  explicit Winners(const KeepBest& op)
      : active(op.active),
        best_value(static_cast<T*>(op.best_value)),
        value(static_cast<const T*>(op.value)),
        best_value_stride(op.best_value_stride),
        value_stride(op.value_stride) {}

  ROLI_FN bool has(int64_t sample) const {
    return active.has(sample) && value[sample * value_stride] > best_value[sample * best_value_stride];
  }
};

template <class T>
struct DenseWinners {
  Winners<T> winners;
  DenseSamples samples;
  Memory best, adv;
  int64_t parts;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t sample = block / parts;
    if (!winners.has(sample)) return;
    const int64_t first = (block - sample * parts) * kPart;
    const int64_t last = first + kPart < samples.elements ? first + kPart : samples.elements;
    for (int64_t element = first + thread * kPack; element < last; element += kThreads * kPack) {
      const int64_t place = samples.place(sample, element);
      put<T>(best, place, fetch<AsValue, T, T>(adv, place));
    }
  }
};

template <class T>
struct StridedWinners {
  Winners<T> winners;
  StridedSamples samples;
  Memory best, adv;
  int64_t elements;     // of all samples
  Divider by_elements;  // of one

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t index = block * kThreads + thread;
    const int64_t sample = by_elements.quotient(index);
    if (index >= elements || !winners.has(sample)) return;
    const Place place = samples(sample, by_elements.remainder(index));
    put_one<T>(best, place.offset[kBest], fetch_one<AsValue, T, T>(adv, place.offset[kAdv]));
  }
};

template <class T>
struct NoteValues {
  Winners<T> winners;
  int64_t samples;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t sample = block * kThreads + thread;
    if (sample < samples && winners.has(sample))
      winners.best_value[sample * winners.best_value_stride] = winners.value[sample * winners.value_stride];
  }
};

template <class T>
void keep_best(KeepBest& op, Shape shape, Stream stream) {
  const Winners<T> winners(op);
  const Memory best(op.best), adv(op.adv);
  const int64_t elements = elements_of(shape), samples = shape.sizes[0];
  DenseSamples dense;
  if (elements > 0 && make_dense_samples(dense, shape, op.operands())) {
    const int64_t parts = parts_of(elements);
    launch(DenseWinners<T>{winners, dense, best, adv, parts}, samples * parts * kThreads, stream);
  } else if (elements > 0) {
    make_sample_plan(op.plan, shape, op.operands(), op.options());
    const StridedSamples strided(op.plan, 2, 1);
    launch(StridedWinners<T>{winners, strided, best, adv, samples * elements, Divider(elements)},
           samples * elements, stream);
  }
  launch(NoteValues<T>{winners, samples}, samples, stream);
}

}  // namespace

void run(KeepBest& op, Shape shape, const Context& context) {
  op.best.dtype == DType::f64 ? keep_best<double>(op, shape, context.stream)
                              : keep_best<float>(op, shape, context.stream);
}

}  // namespace roli::cuda
