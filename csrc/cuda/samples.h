// Kernels that look at a whole sample before they write to it. A body is told what its block's threads have
// summed; how they sum is here, so that a body stays a function of plain C++ (see launch.h).
#pragma once

#include "../common/samples.h"
#include "index.h"
#include "launch.h"
#include "pack.h"

namespace roli::cuda {

// Elements of a part of a sample, the work of one block: many, so that few sums remain to be added.
constexpr int64_t kPart = 8192;

// A sample is cut into parts by its own size alone, so that the batch does not show in its sums.
inline int64_t parts_of(int64_t elements) { return (elements + kPart - 1) / kPart; }

// The sums of parts between kernels.
struct Parts {
  int64_t elements;  // of a sample
  int64_t count;     // of a sample's parts
  int64_t samples;
  GradSums* sums;  // (stages, samples, count)

  Parts(int64_t elements, int64_t samples, int stages, const Context& context)
      : elements(elements), count(parts_of(elements)), samples(samples) {
    const auto bytes = static_cast<int64_t>(sizeof(GradSums)) * stages * blocks();
    sums = static_cast<GradSums*>(context.allocate(bytes));
  }

  int64_t blocks() const { return samples * count; }
  ROLI_FN int64_t sample_of(int64_t block) const { return block / count; }

  ROLI_FN GradSums load(int stage, int64_t block, int thread) const {
    GradSums mine;
    const int64_t first = (stage * samples + sample_of(block)) * count;
    for (int64_t part = thread; part < count; part += kThreads) mine.add(sums[first + part]);
    return mine;
  }
  ROLI_FN void keep(int stage, int64_t block, const GradSums& of_part) const {
    sums[stage * samples * count + block] = of_part;
  }

  // Calls visit(element) for each pack that the thread has of its block's part, by its first element.
  template <class Visit>
  ROLI_FN void each_pack(int64_t block, int thread, Visit&& visit) const {
    const int64_t first = (block - sample_of(block) * count) * kPart;
    const int64_t last = first + kPart < elements ? first + kPart : elements;
    for (int64_t element = first + thread * kPack; element < last; element += kThreads * kPack)
      visit(element);
  }
};

#ifdef __CUDACC__

// The sum over the block's threads of what is made of doubles, in one order; thread 0 has it.
template <class Sums>
__device__ Sums sum_in_block(Sums sums) {
  constexpr int kWords = sizeof(Sums) / sizeof(double);
  constexpr int kWarps = kThreads / 32;
  __shared__ Sums of_warps[kWarps];
  for (int distance = 16; distance > 0; distance /= 2) {
    Sums other;
    ROLI_UNROLL
    for (int i = 0; i < kWords; ++i)
      reinterpret_cast<double*>(&other)[i] =
          __shfl_down_sync(~0u, reinterpret_cast<const double*>(&sums)[i], distance);
    sums.add(other);
  }
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < kWarps; ++warp) sums.add(of_warps[warp]);
  return sums;
}

// One stage of sums over parts, or, behind the last of them, the elements. Body: parts; rule, which leads
// from sums to the state (see common/samples.h); gather<stage>(block, thread, state) and apply(block, thread,
// state).
template <class Body, int kStage>
__global__ void __launch_bounds__(kThreads, Body::kBlocks) sample_kernel(const __grid_constant__ Body body) {
  __shared__ SampleState shared;
  const auto block = static_cast<int64_t>(blockIdx.x);
  const auto thread = static_cast<int>(threadIdx.x);
  SampleState state = {};
  ROLI_UNROLL
  for (int earlier = 0; earlier < kStage; ++earlier) {
    const auto sums = sum_in_block(body.parts.load(earlier, block, thread));
    if (thread == 0) {
      body.rule.advance(earlier, body.parts.sample_of(block), sums, state);
      shared = state;
    }
    __syncthreads();
    state = shared;
  }
  if constexpr (kStage == Body::kStages) {
    body.apply(block, thread, state);
  } else {
    const auto sums = sum_in_block(body.template gather<kStage>(block, thread, state));
    if (thread == 0) body.parts.keep(kStage, block, sums);
  }
}

// As many rounds of sums as the state asks for, in one kernel: a block for each sample. Body: begin(block),
// gather(block, thread, state), advance(block, sums, state), done(state), apply(block, thread, state).
template <class Body>
__global__ void __launch_bounds__(kThreads, Body::kBlocks) rounds_kernel(const __grid_constant__ Body body) {
  __shared__ typename Body::State shared;
  const auto block = static_cast<int64_t>(blockIdx.x);
  const auto thread = static_cast<int>(threadIdx.x);
  typename Body::State state = body.begin(block);
  while (!state.done) {
    const auto sums = sum_in_block(body.gather(block, thread, state));
    if (thread == 0) {
      body.advance(block, sums, state);
      shared = state;
    }
    __syncthreads();
    state = shared;
  }
  body.apply(block, thread, state);
}

template <int kStage = 0, class Body>
void launch_samples(const Body& body, Stream stream) {
  launch_blocks(sample_kernel<Body, kStage>, body, body.parts.blocks(), stream);
  if constexpr (kStage < Body::kStages) launch_samples<kStage + 1>(body, stream);
}

template <class Body>
void launch_rounds(const Body& body, int64_t blocks, Stream stream) {
  launch_blocks(rounds_kernel<Body>, body, blocks, stream);
}

#else

template <class Gather>
auto sum_on_host(Gather&& gather) {
  auto sums = gather(0);
  for (int thread = 1; thread < kThreads; ++thread) sums.add(gather(thread));
  return sums;
}

template <int kStage = 0, class Body>
void launch_samples(const Body& body, Stream stream) {
  for (int64_t block = 0; block < body.parts.blocks(); ++block) {
    SampleState state = {};
    for (int earlier = 0; earlier < kStage; ++earlier) {
      const auto sums = sum_on_host([&](int thread) { return body.parts.load(earlier, block, thread); });
      body.rule.advance(earlier, body.parts.sample_of(block), sums, state);
    }
    if constexpr (kStage == Body::kStages)
      for (int thread = 0; thread < kThreads; ++thread) body.apply(block, thread, state);
    else
      body.parts.keep(kStage, block, sum_on_host([&](int thread) {
                        return body.template gather<kStage>(block, thread, state);
                      }));
  }
  if constexpr (kStage < Body::kStages) launch_samples<kStage + 1>(body, stream);
}

template <class Body>
void launch_rounds(const Body& body, int64_t blocks, Stream) {
  for (int64_t block = 0; block < blocks; ++block) {
    typename Body::State state = body.begin(block);
    while (!state.done)
      body.advance(block, sum_on_host([&](int thread) { return body.gather(block, thread, state); }), state);
    for (int thread = 0; thread < kThreads; ++thread) body.apply(block, thread, state);
  }
}

#endif

// Of a sample.
inline int64_t elements_of(Shape shape) {
  int64_t elements = 1;
  for (int d = 1; d < shape.rank; ++d) elements *= shape.sizes[d];
  return elements;
}

// Samples that follow each other in memory, each of them dense, alike in all operands, in packs.
struct DenseSamples {
  int64_t elements = 0;  // of one
  Coordinate channel;

  ROLI_FN int64_t place(int64_t sample, int64_t element) const { return sample * elements + element; }
};

inline bool make_dense_samples(DenseSamples& samples, Shape shape, const Operands& operands) {
  Dense dense;
  if (!make_dense(dense, shape, operands) || !packable(operands)) return false;
  samples.elements = dense.count / shape.sizes[0];
  samples.channel = dense.channel;
  const bool outermost = shape.sizes[0] == 1 || operands.arrays[0]->strides[0] == samples.elements;
  return outermost && samples.elements % kPack == 0;
}

// Samples of any strides, by the plan of one.
struct StridedSamples {
  Strided strided;
  int64_t stride[kMaxOperands];

  StridedSamples(const Plan& plan, int operands, int64_t channels) : strided(plan, operands, channels) {
    for (int k = 0; k < kMaxOperands; ++k) stride[k] = k < operands ? plan.sample_stride[k] : 0;
  }

  // Of the four elements from this one on, how many the sample has.
  ROLI_FN int count(int64_t element) const {
    return strided.count - element < kPack ? static_cast<int>(strided.count - element) : kPack;
  }

  ROLI_FN Place operator()(int64_t sample, int64_t element) const {
    Place place = strided(element);
    ROLI_UNROLL
    for (int k = 0; k < kMaxOperands; ++k) place.offset[k] += sample * stride[k];
    return place;
  }
};

}  // namespace roli::cuda
