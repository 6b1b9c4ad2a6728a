// The torch ops, once for all devices: each admits its arguments and hands them to the kernels of a
// device. The schemas stand in roli_fast/ops.
//
// Backend: run(op, call) computes a checked op whose tensors are not empty; prepare_memory(tensor) is told of
// new memory.
#pragma once

#include "torch_tensors.h"

namespace roli {

// What all steps take; previous: of APGD's.
inline void admit_step(Call& call, Step& op, const Tensor& adv, const Tensor* previous, const Tensor& grad,
                       const Tensor& clean, double lo, double hi, const OptionalTensor& active,
                       const OptionalTensor& out, const OptionalTensor& mean, const OptionalTensor& std) {
  op.grad = call.floats(grad, "grad");
  op.clean = call.image(clean, "clean");
  op.box = call.box(lo, hi);
  op.active = call.mask(active, "active");
  op.out = call.output(out, "out");
  op.normalization = call.normalization(mean, std);
  call.require(out.has_value() || !mean.has_value(), "mean", "needs out");
  call.distinct(op.adv, "adv");
  call.disjoint(op.adv, op.grad, "grad");
  call.disjoint(op.adv, op.clean, "clean");
  if (previous != nullptr) {
    op.previous = call.state(*previous, "previous");
    call.require(op.previous.dtype == op.adv.dtype, "previous", "is not of adv's dtype");
    call.distinct(op.previous, "previous");
    call.disjoint(op.adv, op.previous, "previous");
    call.disjoint(op.previous, op.grad, "grad");
    call.disjoint(op.previous, op.clean, "clean");
    call.refuse_gradient(*previous, "previous");
  }
  if (out) {
    call.distinct(op.out, "out");
    call.disjoint(op.adv, op.out, "out");
    call.disjoint(op.previous, op.out, "out");
    call.disjoint(op.out, op.grad, "grad");
    call.disjoint(op.out, op.clean, "clean");
    call.refuse_gradient(*out, "out");
  }
  call.will_write(adv, "adv");
  if (previous != nullptr) call.will_write(*previous, "previous");
  if (out) call.will_write(*out, "out");
}

template <class Backend, class Op, class Size>
void step(const char* name, const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
          const Size& eps, double lo, double hi, const OptionalTensor& active, const OptionalTensor& out,
          const OptionalTensor& mean, const OptionalTensor& std) {
  Call call(name, adv, "adv");
  Op op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  admit_step(call, op, adv, nullptr, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Size>
void linf_step_(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
                const Size& eps, double lo, double hi, const OptionalTensor& active,
                const OptionalTensor& out, const OptionalTensor& mean, const OptionalTensor& std) {
  step<Backend, LinfStep>("linf_step_", adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std);
}

template <class Backend, class Size>
void l2_step_(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
              const Size& eps, double lo, double hi, const OptionalTensor& active, const OptionalTensor& out,
              const OptionalTensor& mean, const OptionalTensor& std) {
  step<Backend, L2Step>("l2_step_", adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std);
}

// Share: a size with a default; as a tensor it may be absent, and has it then.
template <class Backend, class Size, class Share>
void l1_step_(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
              const Size& eps, double lo, double hi, const Share& sparsity, const OptionalTensor& active,
              const OptionalTensor& out, const OptionalTensor& mean, const OptionalTensor& std) {
  Call call("l1_step_", adv, "adv");
  L1Step op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.sparsity = call.share(sparsity, 0.05, "sparsity");
  admit_step(call, op, adv, nullptr, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Op, class Size, class Share>
void apgd_step(const char* name, const Tensor& adv, const Tensor& previous, const Tensor& grad,
               const Tensor& clean, const Size& step_size, const Size& eps, double lo, double hi,
               const Share& momentum, const OptionalTensor& active, const OptionalTensor& out,
               const OptionalTensor& mean, const OptionalTensor& std) {
  Call call(name, adv, "adv");
  Op op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.momentum = call.share(momentum, 0.75, "momentum");
  admit_step(call, op, adv, &previous, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Size, class Share>
void linf_apgd_step_(const Tensor& adv, const Tensor& previous, const Tensor& grad, const Tensor& clean,
                     const Size& step_size, const Size& eps, double lo, double hi, const Share& momentum,
                     const OptionalTensor& active, const OptionalTensor& out, const OptionalTensor& mean,
                     const OptionalTensor& std) {
  apgd_step<Backend, LinfStep>("linf_apgd_step_", adv, previous, grad, clean, step_size, eps, lo, hi,
                               momentum, active, out, mean, std);
}

template <class Backend, class Size, class Share>
void l2_apgd_step_(const Tensor& adv, const Tensor& previous, const Tensor& grad, const Tensor& clean,
                   const Size& step_size, const Size& eps, double lo, double hi, const Share& momentum,
                   const OptionalTensor& active, const OptionalTensor& out, const OptionalTensor& mean,
                   const OptionalTensor& std) {
  apgd_step<Backend, L2Step>("l2_apgd_step_", adv, previous, grad, clean, step_size, eps, lo, hi, momentum,
                             active, out, mean, std);
}

template <class Backend, class Op, class Size>
void project(const char* name, const Tensor& adv, const Tensor& clean, const Size& eps, double lo,
             double hi) {
  Call call(name, adv, "adv");
  Op op;
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
void linf_project_(const Tensor& adv, const Tensor& clean, const Size& eps, double lo, double hi) {
  project<Backend, LinfStep>("linf_project_", adv, clean, eps, lo, hi);
}

template <class Backend, class Size>
void l2_project_(const Tensor& adv, const Tensor& clean, const Size& eps, double lo, double hi) {
  project<Backend, L2Step>("l2_project_", adv, clean, eps, lo, hi);
}

template <class Backend, class Size>
void l1_project_(const Tensor& adv, const Tensor& clean, const Size& eps, double lo, double hi) {
  project<Backend, L1Step>("l1_project_", adv, clean, eps, lo, hi);
}

template <class Backend, class Op, class Size>
Tensor start(const char* name, const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
             const OptionalTensor& index) {
  Call call(name, clean, "clean");
  Op op;
  op.clean = call.image(clean, "clean");
  const bool wide = op.clean.dtype == DType::f64;
  call.set_state_dtype(wide ? DType::f64 : DType::f32);
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  op.seed = call.seed(seed, "seed", &op.seed_stride);
  op.index = call.index(index, "index", &op.index_stride);
  call.refuse_gradient(clean, "clean");

  Tensor start = empty_like(clean, wide ? ScalarType::Double : ScalarType::Float, MemoryFormat::Preserve);
  Backend::prepare_memory(start);
  op.start = call.state(start, "start");
  if (!call.empty()) Backend::run(op, call);
  return start;
}

template <class Backend, class Size>
Tensor linf_start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
                  const OptionalTensor& index) {
  return start<Backend, LinfStart>("linf_start", clean, eps, seed, lo, hi, index);
}

template <class Backend, class Size>
Tensor l2_start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
                const OptionalTensor& index) {
  return start<Backend, L2Start>("l2_start", clean, eps, seed, lo, hi, index);
}

template <class Backend, class Size>
Tensor l1_start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
                const OptionalTensor& index) {
  return start<Backend, L1Start>("l1_start", clean, eps, seed, lo, hi, index);
}

template <class Backend>
void momentum_(const Tensor& momentum, const Tensor& grad, double decay) {
  Call call("momentum_", momentum, "momentum");
  Momentum op;
  op.momentum = call.state(momentum, "momentum");
  op.grad = call.floats(grad, "grad");
  call.require(decay >= 0, "decay", "is negative or NaN");
  op.decay = decay;
  call.distinct(op.momentum, "momentum");
  call.disjoint(op.momentum, op.grad, "grad");
  call.will_write(momentum, "momentum");
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend>
void keep_best_(const Tensor& best, const Tensor& best_value, const Tensor& adv, const Tensor& value,
                const OptionalTensor& active) {
  Call call("keep_best_", best, "best");
  KeepBest op;
  op.best = call.state(best, "best");
  op.adv = call.state(adv, "adv");
  call.require(op.adv.dtype == op.best.dtype, "adv", "is not of best's dtype");
  op.best_value = call.per_sample(best_value, "best_value", &op.best_value_stride);
  op.value = call.per_sample(value, "value", &op.value_stride);
  op.active = call.mask(active, "active");
  call.distinct(op.best, "best");
  call.disjoint(op.best, op.adv, "adv");
  call.distinct_values(best_value, "best_value");
  call.disjoint_values(best_value, value, "value");
  call.refuse_gradient(best_value, "best_value");
  call.will_write(best, "best");
  call.will_write(best_value, "best_value");
  if (call.samples() > 0) Backend::run(op, call);
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
  Backend::prepare_memory(out);
  op.out = call.floats(out, "dtype");
  if (!call.empty()) Backend::run(op, call);
  return out;
}

template <class Backend>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("linf_step_", TORCH_BOX(&(linf_step_<Backend, double>)));
  m.impl("linf_step_.tensor", TORCH_BOX(&(linf_step_<Backend, Tensor>)));
  m.impl("linf_apgd_step_", TORCH_BOX(&(linf_apgd_step_<Backend, double, double>)));
  m.impl("linf_apgd_step_.tensor", TORCH_BOX(&(linf_apgd_step_<Backend, Tensor, OptionalTensor>)));
  m.impl("linf_project_", TORCH_BOX(&(linf_project_<Backend, double>)));
  m.impl("linf_project_.tensor", TORCH_BOX(&(linf_project_<Backend, Tensor>)));
  m.impl("linf_start", TORCH_BOX(&(linf_start<Backend, double>)));
  m.impl("linf_start.tensor", TORCH_BOX(&(linf_start<Backend, Tensor>)));
  m.impl("l2_step_", TORCH_BOX(&(l2_step_<Backend, double>)));
  m.impl("l2_step_.tensor", TORCH_BOX(&(l2_step_<Backend, Tensor>)));
  m.impl("l2_apgd_step_", TORCH_BOX(&(l2_apgd_step_<Backend, double, double>)));
  m.impl("l2_apgd_step_.tensor", TORCH_BOX(&(l2_apgd_step_<Backend, Tensor, OptionalTensor>)));
  m.impl("l2_project_", TORCH_BOX(&(l2_project_<Backend, double>)));
  m.impl("l2_project_.tensor", TORCH_BOX(&(l2_project_<Backend, Tensor>)));
  m.impl("l2_start", TORCH_BOX(&(l2_start<Backend, double>)));
  m.impl("l2_start.tensor", TORCH_BOX(&(l2_start<Backend, Tensor>)));
  m.impl("l1_step_", TORCH_BOX(&(l1_step_<Backend, double, double>)));
  m.impl("l1_step_.tensor", TORCH_BOX(&(l1_step_<Backend, Tensor, OptionalTensor>)));
  m.impl("l1_project_", TORCH_BOX(&(l1_project_<Backend, double>)));
  m.impl("l1_project_.tensor", TORCH_BOX(&(l1_project_<Backend, Tensor>)));
  m.impl("l1_start", TORCH_BOX(&(l1_start<Backend, double>)));
  m.impl("l1_start.tensor", TORCH_BOX(&(l1_start<Backend, Tensor>)));
  m.impl("momentum_", TORCH_BOX(&momentum_<Backend>));
  m.impl("keep_best_", TORCH_BOX(&keep_best_<Backend>));
  m.impl("prepare", TORCH_BOX(&prepare<Backend>));
}

}  // namespace roli
