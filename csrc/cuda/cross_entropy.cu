// Cross-entropy.
#include "../common/cross_entropy.h"
#include "kernels.h"
#include "launch.h"

namespace roli::cuda {
namespace {

// A sample's threads: a warp, or one where threads run one after the other.
struct Warp {
#ifdef __CUDACC__
  static constexpr int kLanes = 32;
#else
  static constexpr int kLanes = 1;
#endif

  static ROLI_FN double largest(double x) {
#ifdef __CUDA_ARCH__
    for (int distance = 16; distance > 0; distance /= 2)
      x = larger_or_nan(x, __shfl_xor_sync(~0u, x, distance));
#endif
    return x;
  }
  static ROLI_FN double sum(double x) {
#ifdef __CUDA_ARCH__
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
#endif
    return x;
  }
};

// T: of the logits.
template <class T>
struct CrossEntropySamples {
  const T* logits;
  T* slope;
  int64_t logits_strides[2], slope_strides[2];
  int64_t samples, classes;
  const int64_t* labels;
  int64_t label_stride;
  double* loss;

  CrossEntropySamples(const CrossEntropy& op, int64_t samples)
      : logits(static_cast<const T*>(op.logits.data)),
        slope(static_cast<T*>(op.slope.data)),
        logits_strides{op.logits.strides[0], op.logits.strides[1]},
        slope_strides{op.slope.strides[0], op.slope.strides[1]},
        samples(samples),
        classes(op.classes),
        labels(op.labels),
        label_stride(op.label_stride),
        loss(op.loss) {}

  ROLI_FN double logit(int64_t sample, int64_t c) const {
    return static_cast<double>(logits[sample * logits_strides[0] + c * logits_strides[1]]);
  }

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t sample = (block * kThreads + thread) / Warp::kLanes;
    const int first = thread % Warp::kLanes;
    if (sample >= samples) return;
    const int64_t label = labels[sample * label_stride];
    const bool known = label >= 0 && label < classes;

    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t c = first; c < classes; c += Warp::kLanes)
      if (c != label) largest = larger_or_nan(largest, logit(sample, c));
    const double reference = reference_of(Warp::largest(largest));
    double total = 0;
    for (int64_t c = first; c < classes; c += Warp::kLanes)
      if (c != label) total += exponential(logit(sample, c) - reference);

    const double own = known ? logit(sample, label) : std::numeric_limits<double>::quiet_NaN();
    const CrossEntropyOfSample found(reference, Warp::sum(total), own);
    if (first == 0) loss[sample] = found.loss;
    for (int64_t c = first; c < classes; c += Warp::kLanes) {
      const double at = c == label ? found.label : exponential(logit(sample, c) - reference) * found.other;
      slope[sample * slope_strides[0] + c * slope_strides[1]] = static_cast<T>(at);
    }
  }
};

template <class T>
void cross_entropy(const CrossEntropy& op, int64_t samples, Stream stream) {
  launch(CrossEntropySamples<T>(op, samples), samples * Warp::kLanes, stream);
}

}  // namespace

void run(CrossEntropy& op, Shape shape, const Context& context) {
  const int64_t samples = shape.sizes[0];
  op.logits.dtype == DType::f64 ? cross_entropy<double>(op, samples, context.stream)
                                : cross_entropy<float>(op, samples, context.stream);
}

}  // namespace roli::cuda
