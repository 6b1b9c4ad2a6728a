// The ops on CPU tensors.
#include "cpu/kernels.h"
#include "torch_ops.h"

namespace roli {
namespace {

// Below this many elements a second thread costs more than it saves (torch's own grain size).
constexpr int64_t kGrain = 32768;

auto kernel_of(const LinfStep&) { return cpu::kernels().linf_step; }
auto kernel_of(const LinfStart&) { return cpu::kernels().linf_start; }
auto kernel_of(const Prepare&) { return cpu::kernels().prepare; }

struct Cpu {
  template <class Op>
  static void run(Op& op, const Call& call) {
    make_plan(op.plan, call.shape(), op.operands(), op.options());
    const auto kernel = kernel_of(op);
    const int64_t chunks = op.plan.chunks();
    const int64_t grain = std::max<int64_t>(1, kGrain / op.plan.chunk);
    if (chunks <= grain) return kernel(op, 0, chunks);
    torch::stable::parallel_for(0, chunks, grain,
                                [&](int64_t first, int64_t last) { kernel(op, first, last); });
  }
};

}  // namespace

// Twice: as the default choice of CPU tensors, which ROLI_FAST_BACKEND may replace, and under a name of
// their own, so that the kernels can be asked for whatever the default is.
STABLE_TORCH_LIBRARY_IMPL(roli_fast, CPU, m) { register_ops<Cpu>(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CPU, m) { register_ops<Cpu>(m); }

}  // namespace roli
