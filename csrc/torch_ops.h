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
  for (const Array* written : {&op.adv, &op.previous, &op.out}) {
    call.disjoint(*written, op.step_size, "step_size");
    call.disjoint(*written, op.eps, "eps");
    call.disjoint(*written, op.momentum, "momentum");
    call.disjoint(*written, op.sparsity, "sparsity");
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
void step(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size, const Size& eps,
          double lo, double hi, const OptionalTensor& active, const OptionalTensor& out,
          const OptionalTensor& mean, const OptionalTensor& std) {
  Call call(Op::kStep, adv, "adv");
  Op op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  admit_step(call, op, adv, nullptr, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

// Share: a size with a default; as a tensor it may be absent, and has it then.
template <class Backend, class Size, class Share>
void l1_step(const Tensor& adv, const Tensor& grad, const Tensor& clean, const Size& step_size,
             const Size& eps, double lo, double hi, const Share& sparsity, const OptionalTensor& active,
             const OptionalTensor& out, const OptionalTensor& mean, const OptionalTensor& std) {
  Call call(L1Step::kStep, adv, "adv");
  L1Step op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.sparsity = call.share(sparsity, 0.05, "sparsity");
  admit_step(call, op, adv, nullptr, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Op, class Size, class Share>
void apgd_step(const Tensor& adv, const Tensor& previous, const Tensor& grad, const Tensor& clean,
               const Size& step_size, const Size& eps, double lo, double hi, const Share& momentum,
               const OptionalTensor& active, const OptionalTensor& out, const OptionalTensor& mean,
               const OptionalTensor& std) {
  Call call(Op::kApgdStep, adv, "adv");
  Op op;
  op.adv = call.state(adv, "adv");
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.momentum = call.share(momentum, 0.75, "momentum");
  admit_step(call, op, adv, &previous, grad, clean, lo, hi, active, out, mean, std);
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Op, class Size>
void project(const Tensor& adv, const Tensor& clean, const Size& eps, double lo, double hi) {
  Call call(Op::kProject, adv, "adv");
  Op op;
  op.adv = call.state(adv, "adv");
  op.clean = call.image(clean, "clean");
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  call.distinct(op.adv, "adv");
  call.disjoint(op.adv, op.clean, "clean");
  call.disjoint(op.adv, op.eps, "eps");
  call.will_write(adv, "adv");
  if (!call.empty()) Backend::run(op, call);
}

template <class Backend, class Op, class Size>
Tensor start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
             const OptionalTensor& index) {
  Call call(Op::kStart, clean, "clean");
  Op op;
  op.clean = call.image(clean, "clean");
  const bool wide = op.clean.dtype == DType::f64;
  call.set_state_dtype(wide ? DType::f64 : DType::f32);
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  op.seed.data = call.seed(seed, "seed", &op.seed.stride);
  op.seed.index = call.index(index, "index", &op.seed.index_stride);
  call.refuse_gradient(clean, "clean");

  Tensor start = empty_like(clean, wide ? ScalarType::Double : ScalarType::Float, MemoryFormat::Preserve);
  Backend::prepare_memory(start);
  op.start = call.state(start, "start");
  if (!call.empty()) Backend::run(op, call);
  return start;
}

template <class Backend>
void momentum(const Tensor& momentum, const Tensor& grad, double decay) {
  Call call(Momentum::kName, momentum, "momentum");
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
void keep_best(const Tensor& best, const Tensor& best_value, const Tensor& adv, const Tensor& value,
               const OptionalTensor& active) {
  Call call(KeepBest::kName, best, "best");
  KeepBest op;
  op.best = call.state(best, "best");
  op.adv = call.state(adv, "adv");
  call.require(op.adv.dtype == op.best.dtype, "adv", "is not of best's dtype");
  op.best_value = call.per_sample(best_value, "best_value", &op.best_value_stride);
  op.value = call.per_sample(value, "value", &op.value_stride);
  op.active = call.mask(active, "active");
  call.distinct(op.best, "best");
  call.disjoint(op.best, op.adv, "adv");
  call.disjoint(op.best, Parameter{0, op.best_value, op.best_value_stride}, "best_value");
  call.disjoint(op.best, Parameter{0, op.value, op.value_stride}, "value");
  call.disjoint(op.adv, Parameter{0, op.best_value, op.best_value_stride}, "best_value");
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
  Call call(Prepare::kName, adv, "adv");
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
std::tuple<Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& labels) {
  Call call(CrossEntropy::kName, logits, "logits");
  CrossEntropy op;
  op.logits = call.state(logits, "logits");
  call.require(call.rank() == 2 && call.sizes()[1] > 0, "logits", "is not of shape (N, classes)");
  op.classes = call.sizes()[1];
  op.labels = call.index(labels, "labels", &op.label_stride);
  call.refuse_gradient(logits, "logits");

  const Tensor loss = empty_like(labels, ScalarType::Double, MemoryFormat::Contiguous);
  const Tensor slope = empty_like(logits, logits.scalar_type(), MemoryFormat::Preserve);
  op.loss = static_cast<double*>(loss.data_ptr());
  op.slope = call.state(slope, "slope");
  if (!call.empty()) Backend::run(op, call);
  return {loss, slope};
}

using Library = torch::stable::detail::StableLibrary;
using Boxed = void (*)(StableIValue* stack, uint64_t inputs, uint64_t outputs);

// An op with sizes: as numbers, and in an overload as tensors.
inline void register_sized(Library& m, const std::string& name, Boxed numbers, Boxed tensors) {
  m.impl(name.c_str(), numbers);
  m.impl((name + ".tensor").c_str(), tensors);
}

template <class Backend, class Op>
void register_step(Library& m) {
  register_sized(m, Op::kStep, TORCH_BOX(&(step<Backend, Op, double>)),
                 TORCH_BOX(&(step<Backend, Op, Tensor>)));
}

template <class Backend, class Op>
void register_apgd_step(Library& m) {
  register_sized(m, Op::kApgdStep, TORCH_BOX(&(apgd_step<Backend, Op, double, double>)),
                 TORCH_BOX(&(apgd_step<Backend, Op, Tensor, OptionalTensor>)));
}

template <class Backend, class Op>
void register_project(Library& m) {
  register_sized(m, Op::kProject, TORCH_BOX(&(project<Backend, Op, double>)),
                 TORCH_BOX(&(project<Backend, Op, Tensor>)));
}

template <class Backend, class Op>
void register_start(Library& m) {
  register_sized(m, Op::kStart, TORCH_BOX(&(start<Backend, Op, double>)),
                 TORCH_BOX(&(start<Backend, Op, Tensor>)));
}

template <class Backend>
void register_ops(Library& m) {
  register_step<Backend, LinfStep>(m);
  register_apgd_step<Backend, LinfStep>(m);
  register_project<Backend, LinfStep>(m);
  register_start<Backend, LinfStart>(m);

  register_step<Backend, L2Step>(m);
  register_apgd_step<Backend, L2Step>(m);
  register_project<Backend, L2Step>(m);
  register_start<Backend, L2Start>(m);

  register_sized(m, L1Step::kStep, TORCH_BOX(&(l1_step<Backend, double, double>)),
                 TORCH_BOX(&(l1_step<Backend, Tensor, OptionalTensor>)));
  register_project<Backend, L1Step>(m);
  register_start<Backend, L1Start>(m);

  m.impl(Momentum::kName, TORCH_BOX(&momentum<Backend>));
  m.impl(KeepBest::kName, TORCH_BOX(&keep_best<Backend>));
  m.impl(Prepare::kName, TORCH_BOX(&prepare<Backend>));
  m.impl(CrossEntropy::kName, TORCH_BOX(&cross_entropy<Backend>));
}

}  // namespace roli
