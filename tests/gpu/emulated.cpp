// The CUDA kernels as plain C++: the very bodies and launchers of csrc/cuda, whose threads run one after
// the other, in the place of the CPU kernels. test_emulated.py builds it.
#include <memory>
#include <vector>

#include "cuda/kernels.h"
#include "torch_ops.h"

namespace roli {

struct Emulated {
  static void prepare_memory(const Tensor&) {}

  template <class Op>
  static void run(Op& op, const Call& call) {
    std::vector<std::unique_ptr<char[]>> memory;
    const auto allocate = [&](int64_t bytes) { return memory.emplace_back(new char[bytes]).get(); };
    cuda::run(op, call.shape(), {nullptr, allocate});
  }
};

STABLE_TORCH_LIBRARY_IMPL(roli_fast, CPU, m) { register_ops<Emulated>(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CPU, m) { register_ops<Emulated>(m); }

}  // namespace roli
