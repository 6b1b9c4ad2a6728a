// The CUDA kernels as plain C++: the very bodies and launchers of csrc/cuda, whose threads run one after
// the other, in the place of the CPU kernels. test_emulated.py builds it.
#include "cuda/linf.cu"
#include "torch_ops.h"

namespace roli {

struct Emulated {
  template <class Op>
  static void run(Op& op, const Call& call) {
    cuda::run(op, call.shape(), nullptr);
  }
};

STABLE_TORCH_LIBRARY_IMPL(roli_fast, CPU, m) { register_ops<Emulated>(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CPU, m) { register_ops<Emulated>(m); }

}  // namespace roli
