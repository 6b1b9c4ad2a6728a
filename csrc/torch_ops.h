// The torch ops, once for all devices: each admits its arguments and hands them to the kernels of a
// device. The schemas stand in roli_fast/ops.
//
// Backend: run(op, call) computes a checked op whose tensors are not empty.
#pragma once

#include "torch_tensors.h"

namespace roli {

template <class Backend, class Size>
void linf_step_(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
                const Size& eps, double lo, double hi, const OptionalTensor& active,
                const OptionalTensor& out, const OptionalTensor& mean, const OptionalTensor& std) {
  Call call("linf_step_", adv, "adv");
  LinfStep op;
  op.adv = call.state(adv, "adv");
  op.grad = call.floats(grad, "grad");
  op.clean = call.image(clean, "clean");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  op.active = call.mask(active, "active", &op.active_stride);
  op.out = call.output(out, "out");
  op.normalization = call.normalization(mean, std);
  call.require(out.has_value() || !mean.has_value(), "mean", "needs out");
  call.distinct(op.adv, "adv");
  call.disjoint(op.adv, op.grad, "grad");
  call.disjoint(op.adv, op.clean, "clean");
  if (out) {
    call.distinct(op.out, "out");
    call.disjoint(op.adv, op.out, "out");
    call.disjoint(op.out, op.grad, "grad");
    call.disjoint(op.out, op.clean, "clean");
    call.refuse_gradient(*out, "out");
  }
  call.will_write(adv, "adv");
  if (out) call.will_write(*out, "out");
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Size>
void linf_project_(const Tensor& adv, const Tensor& clean, const Size& eps, double lo, double hi) {
  Call call("linf_project_", adv, "adv");
  LinfStep op;
  op.adv = call.state(adv, "adv");
  op.clean = call.image(clean, "clean");
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  call.distinct(op.adv, "adv");
  call.disjoint(op.adv, op.clean, "clean");
  call.will_write(adv, "adv");
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Size>
Tensor linf_start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
                  const OptionalTensor& index) {
  Call call("linf_start", clean, "clean");
  LinfStart op;
  op.clean = call.image(clean, "clean");
  const bool wide = op.clean.dtype == DType::f64;
  call.set_state_dtype(wide ? DType::f64 : DType::f32);
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  op.seed = call.seed(seed, "seed", &op.seed_stride);
  op.index = call.index(index, "index", &op.index_stride);
  call.refuse_gradient(clean, "clean");

  Tensor start = empty_like(clean, wide ? ScalarType::Double : ScalarType::Float, MemoryFormat::Preserve);
  op.start = call.state(start, "start");
  if (!call.empty()) Backend::run(op, call);
  return start;
}

template <class Backend>
Tensor prepare(const Tensor& adv, const OptionalTensor& mean, const OptionalTensor& std, ScalarType dtype,
               std::optional<MemoryFormat> memory_format) {
  Call call("prepare", adv, "adv");
  Prepare op;
  op.adv = call.state(adv, "adv");
  op.normalization = call.normalization(mean, std);
  call.require(memory_format != MemoryFormat::ChannelsLast || call.rank() == 4, "memory_format",
               "channels_last is for rank 4");
  call.require(memory_format != MemoryFormat::ChannelsLast3d || call.rank() == 5, "memory_format",
               "channels_last_3d is for rank 5");
  call.refuse_gradient(adv, "adv");

  Tensor out = empty_like(adv, dtype, memory_format.value_or(MemoryFormat::Preserve));
  op.out = call.floats(out, "dtype");
  if (!call.empty()) Backend::run(op, call);
  return out;
}

template <class Backend>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("linf_step_", TORCH_BOX(&(linf_step_<Backend, double>)));
  m.impl("linf_step_.tensor", TORCH_BOX(&(linf_step_<Backend, Tensor>)));
  m.impl("linf_project_", TORCH_BOX(&(linf_project_<Backend, double>)));
  m.impl("linf_project_.tensor", TORCH_BOX(&(linf_project_<Backend, Tensor>)));
  m.impl("linf_start", TORCH_BOX(&(linf_start<Backend, double>)));
  m.impl("linf_start.tensor", TORCH_BOX(&(linf_start<Backend, Tensor>)));
  m.impl("prepare", TORCH_BOX(&prepare<Backend>));
}

}  // namespace roli
