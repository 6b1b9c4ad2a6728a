// From stable-ABI tensors to the kernels' arguments, shared by the torch libraries of all devices.
//
// roli_fast/ops/checks.py is the check that users see: it names the argument, what came and what is
// accepted, for every backend. What stands here keeps a kernel on raw pointers safe, whoever calls it,
// and refuses everything that checks.py refuses; roli_fast.ops then asks checks.py for the reason.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "common/ops.h"
#include "common/overlap.h"

namespace roli {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// None for a dtype that no kernel takes, and for an undefined tensor.
inline std::optional<DType> dtype_of(const Tensor& tensor) {
  int32_t code = 0;
  if (!tensor.defined() || aoti_torch_get_dtype(tensor.get(), &code) != 0) return std::nullopt;
  if (code == aoti_torch_dtype_float32()) return DType::f32;
  if (code == aoti_torch_dtype_float64()) return DType::f64;
  if (code == aoti_torch_dtype_bfloat16()) return DType::bf16;
  if (code == aoti_torch_dtype_float16()) return DType::f16;
  if (code == aoti_torch_dtype_uint8()) return DType::u8;
  return std::nullopt;
}

struct Device {
  int32_t type = 0, index = 0;
};

inline Device device_of(const Tensor& tensor) {
  Device device;
  if (aoti_torch_get_device_type(tensor.get(), &device.type) != 0 ||
      aoti_torch_get_device_index(tensor.get(), &device.index) != 0)
    throw std::runtime_error("roli_fast: a tensor without a device");
  return device;
}

// An ATen op through the dispatcher; the stack holds its arguments, then its results.
inline void call_torch(const char* op, StableIValue* stack) {
  if (torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION) != 0)
    throw std::runtime_error(std::string(op) + " failed");
}

inline Tensor empty_like(const Tensor& tensor, ScalarType dtype, MemoryFormat memory_format) {
  using torch::stable::detail::from;
  StableIValue stack[6] = {from(tensor),       from(std::optional(dtype)),
                           from(std::nullopt), from(std::nullopt),
                           from(std::nullopt), from(std::optional(memory_format))};
  call_torch("aten::empty_like", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// One op's call: its arguments are admitted one by one.
class Call {
 public:
  // like: the tensor whose shape the others share.
  Call(const char* op, const Tensor& like, const char* name) : op_(op) {
    require(like.defined(), name, "is missing");
    rank_ = like.dim();
    sizes_ = like.sizes().data();
    device_ = device_of(like);
    require(rank_ >= 1, name, "has no sample dimension");
  }

  int rank() const { return static_cast<int>(rank_); }
  const int64_t* sizes() const { return sizes_; }
  Shape shape() const { return {rank(), sizes_}; }
  int32_t device_index() const { return device_.index; }
  int64_t samples() const { return sizes_[0]; }
  bool empty() const {
    return std::any_of(sizes_, sizes_ + rank_, [](int64_t size) { return size == 0; });
  }

  void require(bool condition, const char* argument, const char* reason) const {
    if (!condition)
      throw std::runtime_error(std::string("roli_fast::") + op_ + ": " + argument + " " + reason);
  }

  // float32 or float64.
  Array state(const Tensor& tensor, const char* name) {
    const Array array = admit(tensor, name);
    require(array.dtype == DType::f32 || array.dtype == DType::f64, name, "is not float32 or float64");
    state_dtype_ = array.dtype;
    return array;
  }

  Array floats(const Tensor& tensor, const char* name) const {
    const Array array = admit(tensor, name);
    require(array.dtype != DType::u8, name, "is not of a float dtype");
    return array;
  }

  Array image(const Tensor& tensor, const char* name) const { return admit(tensor, name); }

  Array output(const OptionalTensor& tensor, const char* name) const {
    return tensor ? floats(*tensor, name) : Array{};
  }

  void distinct(const Array& written, const char* name) const {
    require(!may_overlap_itself(rank(), sizes_, written.strides), name, "overlaps itself");
  }

  void disjoint(const Array& written, const Array& other, const char* name) const {
    if (written.data == nullptr || other.data == nullptr) return;
    require(!overlap(rank(), sizes_, written.data, written.strides, item_size(written.dtype), other.data,
                     other.strides, item_size(other.dtype)),
            name, "shares memory with a tensor that is written");
  }

  Parameter size(double number, const char* name) const {
    require(number >= 0, name, "is negative or NaN");
    return {number};
  }

  Parameter size(const Tensor& tensor, const char* name) const {
    require(dtype_of(tensor) == state_dtype_, name, "is not of the state's dtype");
    accessible(tensor, name);
    return {0, tensor.data_ptr(), per_sample_stride(tensor, name)};
  }

  // A size with a default; as a number from 0 to 1.
  Parameter share(double number, double, const char* name) const {
    require(number >= 0 && number <= 1, name, "is not a number from 0 to 1");
    return {number};
  }

  Parameter share(const OptionalTensor& tensor, double otherwise, const char* name) const {
    return tensor ? size(*tensor, name) : Parameter{otherwise};
  }

  // A sample's size is read again and again while the sample is written.
  void disjoint(const Array& written, const Parameter& size, const char* name) const {
    const int64_t strides[kMaxRank] = {size.stride};
    disjoint(written, Array{const_cast<void*>(size.data), state_dtype_, strides}, name);
  }

  // A (N,) tensor of the state's dtype.
  void* per_sample(const Tensor& tensor, const char* name, int64_t* stride) const {
    require(dtype_of(tensor) == state_dtype_ && tensor.dim() == 1, name,
            "is not of shape (N,) and the state's dtype");
    accessible(tensor, name);
    *stride = per_sample_stride(tensor, name);
    return tensor.data_ptr();
  }

  void distinct_values(const Tensor& written, const char* name) const {
    require(!may_overlap_itself(1, sizes_, written.strides().data()), name, "overlaps itself");
  }

  void disjoint_values(const Tensor& written, const Tensor& other, const char* name) const {
    require(!overlap(1, sizes_, written.data_ptr(), written.strides().data(), item_size(state_dtype_),
                     other.data_ptr(), other.strides().data(), item_size(state_dtype_)),
            name, "shares memory with a tensor that is written");
  }

  Box box(double lo, double hi) const {
    require(lo <= hi, "lo", "is above hi or NaN");
    return {lo, hi};
  }

  Mask mask(const OptionalTensor& tensor, const char* name) const {
    if (!tensor) return {};
    require(tensor->scalar_type() == ScalarType::Bool && tensor->dim() == 1, name,
            "is not a (N,) bool tensor");
    accessible(*tensor, name);
    return {static_cast<const bool*>(tensor->data_ptr()), per_sample_stride(*tensor, name)};
  }

  const int64_t* index(const OptionalTensor& tensor, const char* name, int64_t* stride) const {
    if (!tensor) return nullptr;
    require(tensor->scalar_type() == ScalarType::Long && tensor->dim() == 1, name,
            "is not a (N,) int64 tensor");
    accessible(*tensor, name);
    *stride = per_sample_stride(*tensor, name);
    return static_cast<const int64_t*>(tensor->data_ptr());
  }

  const int64_t* seed(const Tensor& tensor, const char* name, int64_t* stride) const {
    require(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1 && tensor.size(0) == 2, name,
            "is not a (2,) int64 tensor");
    accessible(tensor, name);
    *stride = tensor.stride(0);
    return static_cast<const int64_t*>(tensor.data_ptr());
  }

  Normalization normalization(const OptionalTensor& mean, const OptionalTensor& std) const {
    require(mean.has_value() == std.has_value(), "mean and std", "come together");
    if (!mean) return {};
    require(rank_ >= 2, "mean", "needs a channel dimension");
    for (const Tensor* tensor : {&*mean, &*std}) {
      const char* name = tensor == &*mean ? "mean" : "std";
      require(dtype_of(*tensor) == state_dtype_ && tensor->dim() == 1 && tensor->size(0) == sizes_[1], name,
              "is not of shape (C,) and the state's dtype");
      accessible(*tensor, name);
    }
    return {mean->data_ptr(), std->data_ptr(), mean->stride(0), std->stride(0), sizes_[1]};
  }

  // Ops are not differentiable: in grad mode, what requires a gradient is refused. The stable ABI cannot
  // ask for that; a view of the tensor is a leaf of the graph only where it does not.
  void refuse_gradient(const Tensor& tensor, const char* name) const {
    if (!aoti_torch_grad_mode_is_enabled()) return;
    StableIValue stack[1] = {torch::stable::detail::from(tensor)};
    call_torch("aten::alias", stack);
    require(is_leaf(torch::stable::detail::to<Tensor>(stack[0])), name, "requires a gradient");
  }

  // Last of all checks: tells autograd that the tensor is about to be written.
  //
  // A kernel on raw pointers leaves the version counter alone, and autograd would not notice that a
  // tensor which it saved was overwritten. Exchanging a dimension with itself does nothing else. It
  // fails for a leaf that requires a gradient: with a look at the others that is as good as
  // refuse_gradient, and cheaper.
  void will_write(const Tensor& tensor, const char* name) const {
    using torch::stable::detail::from;
    require(!aoti_torch_grad_mode_is_enabled() || is_leaf(tensor), name, "requires a gradient");
    StableIValue stack[3] = {from(tensor), from(int64_t{0}), from(int64_t{0})};
    require(torch_call_dispatcher("aten::transpose_", "", stack, TORCH_ABI_VERSION) == 0, name,
            "requires a gradient or is an inference tensor");
    aoti_torch_delete_tensor_object(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
  }

  void set_state_dtype(DType dtype) { state_dtype_ = dtype; }

 private:
  static bool is_leaf(const Tensor& tensor) {
    StableIValue stack[1] = {torch::stable::detail::from(tensor)};
    call_torch("aten::is_leaf", stack);
    return torch::stable::detail::to<bool>(stack[0]);
  }

  Array admit(const Tensor& tensor, const char* name) const {
    require(tensor.defined(), name, "is missing");
    const auto sizes = tensor.sizes();
    bool same = static_cast<int64_t>(sizes.size()) == rank_;
    for (int64_t d = 0; d < rank_ && same; ++d) same = sizes[d] == sizes_[d];
    require(same, name, "differs in shape");
    accessible(tensor, name);
    const auto dtype = dtype_of(tensor);
    require(dtype.has_value(), name, "is of a dtype that is not accepted");
    return {tensor.data_ptr(), *dtype, tensor.strides().data()};
  }

  // The dispatcher sends a call with tensors of several devices to the kernels of one of them. A pointer to
  // half an element is undefined behaviour to C++, and to a GPU an error that ends its use.
  void accessible(const Tensor& tensor, const char* name) const {
    const Device device = device_of(tensor);
    require(device.type == device_.type && device.index == device_.index, name, "is on another device");
    const auto address = reinterpret_cast<uintptr_t>(tensor.data_ptr());
    require(address != 0 || tensor.numel() == 0, name, "has no memory any more");
    require(address % tensor.element_size() == 0, name, "is not aligned to its elements");
  }

  int64_t per_sample_stride(const Tensor& tensor, const char* name) const {
    const int64_t rank = tensor.dim();
    require(rank == 0 || (rank == 1 && tensor.size(0) == samples()), name, "is not of shape () or (N,)");
    return rank == 0 ? 0 : tensor.stride(0);
  }

  const char* op_;
  int64_t rank_;
  const int64_t* sizes_;
  Device device_;
  DType state_dtype_ = DType::f32;
};

}  // namespace roli
