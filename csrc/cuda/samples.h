// Kernels that look at a whole sample before they write to it. The sums of a block's threads are added up
// here and given to the body, so that a body stays a function of plain C++ (see launch.h).
#pragma once

#include "../common/samples.h"
#include "index.h"
#include "launch.h"
#include "pack.h"

namespace roli::cuda {

// Elements of a part of a sample, the work of one block: many, so that few sums remain to be added.
constexpr int64_t kPart = 8192;

inline int64_t parts_of(int64_t elements) { return (elements + kPart - 1) / kPart; }

// How samples are cut into parts: by their own size alone, so that the batch does not show in their sums. The
// blocks of a small sample form a cluster, and one kernel does all, which finds in the cache what it reads
// once more. Of large samples the cache holds too few: they take a kernel for each stage.
struct Parts {
  int64_t elements;  // of a sample
  int64_t count;     // of a sample's parts
  int64_t size;      // of a part, but for the last
  int64_t samples;
  bool joined;               // whether a sample's blocks form a cluster
  GradSums* sums = nullptr;  // between kernels: (stages, samples, count)

  Parts(int64_t elements, int64_t samples, int stages, const Context& context)
      : elements(elements), count(1), size(kPart), samples(samples) {
    while (count * kPart < elements) count *= 2;
    joined = count <= largest_cluster();
    if (joined) {
      size = (elements + count * kPack - 1) / (count * kPack) * kPack;
      return;
    }
    count = parts_of(elements);
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
    const int64_t first = (block - sample_of(block) * count) * size;
    const int64_t last = first + size < elements ? first + size : elements;
    int64_t element = first + thread * kPack;
    // A part is small: what is left of it takes half the registers of a place in the sample.
    for (int left = static_cast<int>(last - element); left > 0; left -= kThreads * kPack) {
      visit(element);
      element += kThreads * kPack;
    }
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

// Threads wait at a cluster's barrier for all of its blocks to arrive there.
__device__ inline void arrive_in_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The sum over the blocks of a cluster, made of doubles; thread 0 has it. mine: the block's, in thread 0.
// shared: where other blocks read it, until all have come to the next barrier.
template <class Sums>
__device__ Sums sum_in_cluster(const Sums& mine, Sums& shared, int64_t blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks == 1) return mine;
  if (threadIdx.x == 0) shared = mine;
  arrive_in_cluster();
  wait_for_cluster();
  Sums sums;
  if (threadIdx.x < blocks) {
    uint32_t theirs;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(theirs)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(&shared))), "r"(threadIdx.x));
    ROLI_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(Sums) / sizeof(double)); ++i)
      asm volatile("ld.shared::cluster.f64 %0, [%1];"
                   : "=d"(reinterpret_cast<double*>(&sums)[i])
                   : "r"(theirs + 8 * i)
                   : "memory");
  }
  return sum_in_block(sums);
#else
  return mine;
#endif
}

// The state after all stages, in one kernel.
template <class Body, int kStage = 0>
__device__ SampleState sum_stages(const Body& body, int64_t block, int thread, SampleState state) {
  if constexpr (kStage == Body::kStages) {
    return state;
  } else {
    __shared__ GradSums of_block;  // one for each stage
    __shared__ SampleState shared;
    const auto mine = sum_in_block(body.template gather<kStage>(block, thread, state));
    const auto sums = sum_in_cluster(mine, of_block, body.parts.count);
    if (thread == 0) {
      body.rule.advance(kStage, body.parts.sample_of(block), sums, state);
      shared = state;
    }
    __syncthreads();
    return sum_stages<Body, kStage + 1>(body, block, thread, shared);
  }
}

// All stages and the elements, of samples whose blocks form a cluster.
template <class Body>
__global__ void __launch_bounds__(kThreads, Body::kBlocks) joined_kernel(const __grid_constant__ Body body) {
  const auto block = static_cast<int64_t>(blockIdx.x);
  const auto thread = static_cast<int>(threadIdx.x);
  const SampleState state = sum_stages(body, block, thread, SampleState{});
  arrive_in_cluster();
  body.apply(block, thread, state);
  wait_for_cluster();  // another block may read this one's shared memory as long as it is there
}

// As many rounds of sums as the state asks for, in one kernel: a block for each sample. Body: begin(block),
// gather(block, thread, state), advance(block, sums, state), apply(block, thread, state); State, with done.
// The state stays in shared memory, where all threads read it: copies would take registers.
template <class Body>
__global__ void __launch_bounds__(kThreads, Body::kBlocks) rounds_kernel(const __grid_constant__ Body body) {
  __shared__ typename Body::State state;
  const auto block = static_cast<int64_t>(blockIdx.x);
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread == 0) state = body.begin(block);
  __syncthreads();
  while (!state.done) {
    const auto sums = sum_in_block(body.gather(block, thread, state));
    if (thread == 0) body.advance(block, sums, state);
    __syncthreads();
  }
  body.apply(block, thread, state);
}

template <int kStage = 0, class Body>
void launch_stages(const Body& body, Stream stream) {
  launch_blocks(sample_kernel<Body, kStage>, body, body.parts.blocks(), stream);
  if constexpr (kStage < Body::kStages) launch_stages<kStage + 1>(body, stream);
}

template <class Body>
void launch_samples(const Body& body, Stream stream) {
  if (!body.parts.joined) return launch_stages(body, stream);
  launch_clusters(joined_kernel<Body>, body, body.parts.blocks(), body.parts.count, stream);
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
void launch_stages(const Body& body, Stream stream) {
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
  if constexpr (kStage < Body::kStages) launch_stages<kStage + 1>(body, stream);
}

// The state after all stages: blocks, from the first of a sample on.
template <int kStage = 0, class Body>
SampleState sum_stages(const Body& body, int64_t first, SampleState state) {
  if constexpr (kStage == Body::kStages) {
    return state;
  } else {
    GradSums sums;
    for (int64_t block = first; block < first + body.parts.count; ++block)
      sums.add(sum_on_host([&](int thread) { return body.template gather<kStage>(block, thread, state); }));
    body.rule.advance(kStage, body.parts.sample_of(first), sums, state);
    return sum_stages<kStage + 1>(body, first, state);
  }
}

template <class Body>
void launch_samples(const Body& body, Stream stream) {
  if (!body.parts.joined) return launch_stages(body, stream);
  for (int64_t first = 0; first < body.parts.blocks(); first += body.parts.count) {
    const SampleState state = sum_stages(body, first, SampleState{});
    for (int64_t block = first; block < first + body.parts.count; ++block)
      for (int thread = 0; thread < kThreads; ++thread) body.apply(block, thread, state);
  }
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

// How many elements a sample has.
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
