// The ops on CUDA tensors: on their device, in torch's current stream.
#include <vector>

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

Tensor empty_bytes(int64_t bytes, int32_t device) {
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), aoti_torch_device_type_cuda(),
                               device, &handle) != 0)
    throw std::runtime_error("roli_fast: no memory for " + std::to_string(bytes) + " bytes");
  return Tensor(handle);
}

struct Cuda {
  static void prepare_memory(const Tensor&) {}

  template <class Op>
  static void run(Op& op, const Call& call) {
    const int32_t index = call.device_index();
    const CurrentDevice device(index);
    std::vector<Tensor> memory;  // given back to torch's allocator, which knows the stream
    const auto allocate = [&](int64_t bytes) {
      return memory.emplace_back(empty_bytes(bytes, index)).data_ptr();
    };
    try {
      cuda::run(op, call.shape(), {current_stream(index), allocate});
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
