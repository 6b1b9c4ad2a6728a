// The ops on CPU tensors.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "torch_ops.h"

namespace roli {
namespace {

using cpu::SampleKernel;
using cpu::Scratch;

// Below this many elements a second thread costs more than it saves (torch's own grain size).
constexpr int64_t kGrain = 32768;

// What an exponential costs, in elements of an op that moves them.
constexpr int64_t kExponential = 8;

// From so many samples on, each is the work of one thread, which finds in its cache what it reads twice; of
// fewer, all threads share each.
constexpr int64_t kManySamples = 16;

// So many tasks of so many elements each.
template <class Run>
void in_parallel(int64_t tasks, int64_t elements, Run&& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  if (tasks <= grain) return run(0, tasks);
  torch::stable::parallel_for(0, tasks, grain, run);
}

template <class Op>
void run_chunks(Op& op, Shape shape, void (*kernel)(const Op&, int64_t, int64_t)) {
  make_plan(op.plan, shape, op.operands(), op.options());
  in_parallel(op.plan.chunks(), op.plan.chunk, [&](int64_t first, int64_t last) { kernel(op, first, last); });
}

// The sums of a sample are those of its chunks, added in order: the same whoever computes them.
template <class Op>
void run_samples(Op& op, Shape shape, const SampleKernel<Op>& kernel) {
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const int64_t chunks = op.plan.chunks();
  const auto run_sample = [&](int64_t sample, std::vector<GradSums>& of_chunks, auto&& over_chunks) {
    SampleState state;
    int needed = stages(op);
    if constexpr (requires { op.active; }) {
      const bool is_active = op.active.has(sample);
      if (!is_active && !op.has_out()) return;
      if (!is_active) needed = 0;  // its state moves nothing
    }
    for (int stage = 0; stage < needed; ++stage) {
      over_chunks([&](int64_t first, int64_t last) {
        kernel.gather(op, stage, sample, first, last, state, of_chunks.data() + first);
      });
      GradSums sums;
      for (const GradSums& of_chunk : of_chunks) sums.add(of_chunk);
      kernel.advance(op, stage, sample, sums, state);
    }
    over_chunks([&](int64_t first, int64_t last) { kernel.apply(op, sample, first, last, state); });
  };
  if (op.plan.samples >= kManySamples || chunks == 1) {
    in_parallel(op.plan.samples, op.plan.elements(), [&](int64_t first, int64_t last) {
      std::vector<GradSums> of_chunks(chunks);
      for (int64_t sample = first; sample < last; ++sample)
        run_sample(sample, of_chunks, [&](auto&& run) { run(0, chunks); });
    });
  } else {
    std::vector<GradSums> of_chunks(chunks);
    for (int64_t sample = 0; sample < op.plan.samples; ++sample)
      run_sample(sample, of_chunks, [&](auto&& run) { in_parallel(chunks, op.plan.chunk, run); });
  }
}

void run_l1(L1Step& op, Shape shape) {
  make_sample_plan(op.plan, shape, op.operands(), op.options());
  const int64_t n = op.plan.elements(), item = item_size(op.adv.dtype);
  in_parallel(op.plan.samples, n, [&](int64_t first, int64_t last) {
    const std::unique_ptr<char[]> memory(new char[n * (3 * item + 8)]);
    char* at = memory.get();  // keys first: they need the strictest alignment
    const Scratch scratch = {at + 8 * n, at + (8 + item) * n, at + (8 + 2 * item) * n, at};
    for (int64_t sample = first; sample < last; ++sample) cpu::kernels().l1_step(op, sample, scratch);
  });
}

struct Cpu {
  // The first touch of new memory costs more than the op that fills it, by far in pages of 4 KiB: asks for
  // large ones. A hint, which the system may ignore.
  static void prepare_memory(const Tensor& tensor) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = 1 << 21;
    const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
    const uintptr_t end = begin + tensor.numel() * tensor.element_size();
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }

  static void run(LinfStep& op, const Call& call) { run_chunks(op, call.shape(), cpu::kernels().linf_step); }
  static void run(LinfStart& op, const Call& call) {
    run_chunks(op, call.shape(), cpu::kernels().linf_start);
  }
  static void run(Prepare& op, const Call& call) { run_chunks(op, call.shape(), cpu::kernels().prepare); }
  static void run(L2Step& op, const Call& call) { run_samples(op, call.shape(), *cpu::kernels().l2_step); }
  static void run(L2Start& op, const Call& call) { run_samples(op, call.shape(), *cpu::kernels().l2_start); }
  static void run(L1Start& op, const Call& call) { run_samples(op, call.shape(), *cpu::kernels().l1_start); }
  static void run(Momentum& op, const Call& call) { run_samples(op, call.shape(), *cpu::kernels().momentum); }
  static void run(L1Step& op, const Call& call) { run_l1(op, call.shape()); }
  static void run(KeepBest& op, const Call& call) {
    make_sample_plan(op.plan, call.shape(), op.operands(), op.options());
    in_parallel(op.plan.samples, op.plan.elements(),
                [&](int64_t first, int64_t last) { cpu::kernels().keep_best(op, first, last); });
  }
  static void run(CrossEntropy& op, const Call& call) {
    in_parallel(call.samples(), kExponential * op.classes,
                [&](int64_t first, int64_t last) { cpu::kernels().cross_entropy(op, first, last); });
  }
};

}  // namespace

// Twice: as the default choice of CPU tensors, which ROLI_FAST_BACKEND may replace, and under a name of
// their own, so that the kernels can be asked for whatever the default is.
STABLE_TORCH_LIBRARY_IMPL(roli_fast, CPU, m) { register_ops<Cpu>(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CPU, m) { register_ops<Cpu>(m); }

}  // namespace roli
