// The ops on CUDA tensors: on their device, in torch's current stream.
#include "cuda/kernels.h"
#include "torch_ops.h"

namespace roli {
namespace {

// Makes the tensors' device the current one while a kernel is launched.
class CurrentDevice {
 public:
  explicit CurrentDevice(int32_t index) {
    if (aoti_torch_create_device_guard(index, &guard_) != 0)
      throw std::runtime_error("roli_fast: no CUDA device " + std::to_string(index));
  }
  ~CurrentDevice() { aoti_torch_delete_device_guard(guard_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  DeviceGuardHandle guard_ = nullptr;
};

cuda::Stream current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != 0)
    throw std::runtime_error("roli_fast: no current CUDA stream");
  return static_cast<cuda::Stream>(stream);
}

struct Cuda {
  template <class Op>
  static void run(Op& op, const Call& call) {
    const CurrentDevice device(call.device_index());
    try {
      cuda::run(op, call.shape(), current_stream(call.device_index()));
    } catch (const std::runtime_error& error) {  // as on a GPU for which there are no kernels
      throw std::runtime_error(std::string(error.what()) + " (built for " ROLI_CUDA_ARCHITECTURES ")");
    }
  }
};

}  // namespace

// Twice, as in torch_cpu.cpp.
STABLE_TORCH_LIBRARY_IMPL(roli_fast, CUDA, m) { register_ops<Cuda>(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CUDA, m) { register_ops<Cuda>(m); }

}  // namespace roli
