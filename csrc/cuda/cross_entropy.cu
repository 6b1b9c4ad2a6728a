// Cross-entropy.
#include "../common/cross_entropy.h"
#include "kernels.h"
#include "launch.h"

namespace roli::cuda {
namespace {

// A sample's threads: so many warps of a block, or one thread where threads run one after the other.
template <int kWarps>
struct Team {
#ifdef __CUDACC__
  static constexpr int kLanes = 32 * kWarps;
#else
  static constexpr int kLanes = 1;
#endif

  struct Larger {
    ROLI_FN double operator()(double x, double y) const { return larger_or_nan(x, y); }
  };
  struct Plus {
    ROLI_FN double operator()(double x, double y) const { return x + y; }
  };

  // What all threads of the team make of their values; each has it.
  template <class Combine>
  static ROLI_FN double combined(double x, [[maybe_unused]] Combine combine) {
#ifdef __CUDA_ARCH__
    for (int distance = 16; distance > 0; distance /= 2) x = combine(x, __shfl_xor_sync(~0u, x, distance));
    if constexpr (kWarps > 1) {
      static_assert(kLanes == kThreads, "a barrier is one of all threads of the block");
      __shared__ double of_warps[kWarps];
      if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
      __syncthreads();
      x = of_warps[0];
      for (int warp = 1; warp < kWarps; ++warp) x = combine(x, of_warps[warp]);
      __syncthreads();  // before another value takes its place
    }
#endif
    return x;
  }
  static ROLI_FN double largest(double x) { return combined(x, Larger()); }
  static ROLI_FN double sum(double x) { return combined(x, Plus()); }
};

using Warp = Team<1>;
using Block = Team<kThreads / 32>;
constexpr int64_t kOfWarp = 1024;  // classes, at most

// T: of the logits. Lanes: a sample's threads.
template <class T, class Lanes>
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
    const int64_t sample = (block * kThreads + thread) / Lanes::kLanes;
    const int first = thread % Lanes::kLanes;
    if (sample >= samples) return;
    const int64_t label = labels[sample * label_stride];
    const bool known = label >= 0 && label < classes;

    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t c = first; c < classes; c += Lanes::kLanes)
      if (c != label) largest = larger_or_nan(largest, logit(sample, c));
    const double reference = reference_of(Lanes::largest(largest));
    double total = 0;
    for (int64_t c = first; c < classes; c += Lanes::kLanes)
      if (c != label) total += exponential(logit(sample, c) - reference);

    const double own = known ? logit(sample, label) : std::numeric_limits<double>::quiet_NaN();
    const CrossEntropyOfSample found(reference, Lanes::sum(total), own);
    if (first == 0) loss[sample] = found.loss;
    for (int64_t c = first; c < classes; c += Lanes::kLanes) {
      const double at = c == label ? found.label : exponential(logit(sample, c) - reference) * found.other;
      slope[sample * slope_strides[0] + c * slope_strides[1]] = static_cast<T>(at);
    }
  }
};

template <class T, class Lanes>
void cross_entropy(const CrossEntropy& op, int64_t samples, Stream stream) {
  launch(CrossEntropySamples<T, Lanes>(op, samples), samples * Lanes::kLanes, stream);
}

template <class T>
void cross_entropy(const CrossEntropy& op, int64_t samples, Stream stream) {
  op.classes <= kOfWarp ? cross_entropy<T, Warp>(op, samples, stream)
                        : cross_entropy<T, Block>(op, samples, stream);
}

}  // namespace

void run(CrossEntropy& op, Shape shape, const Context& context) {
  const int64_t samples = shape.sizes[0];
  op.logits.dtype == DType::f64 ? cross_entropy<double>(op, samples, context.stream)
                                : cross_entropy<float>(op, samples, context.stream);
}

}  // namespace roli::cuda
