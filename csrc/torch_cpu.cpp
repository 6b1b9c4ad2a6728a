// The CPU kernels as torch ops. The schemas stand in roli_fast/ops.
#include "cpu/kernels.h"
#include "torch_tensors.h"

namespace roli {
namespace {

// Below this many elements a second thread costs more than it saves (torch's own grain size).
constexpr int64_t kGrain = 32768;

template <class Op>
void run(void (*kernel)(const Op&, int64_t, int64_t), const Op& op) {
  const int64_t chunks = op.plan.chunks();
  const int64_t grain = std::max<int64_t>(1, kGrain / op.plan.chunk);
  if (chunks <= grain) return kernel(op, 0, chunks);
  torch::stable::parallel_for(0, chunks, grain,
                              [&](int64_t first, int64_t last) { kernel(op, first, last); });
}

template <class Size>
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
  if (call.empty()) return;

  const Array* operands[] = {&op.adv, &op.clean, &op.grad, &op.out};
  const bool per_sample = op.active != nullptr || op.step_size.stride != 0 || op.eps.stride != 0;
  make_plan(op.plan, call.rank(), call.sizes(), operands, out ? 4 : 3, {per_sample, mean.has_value()});
  run(cpu::kernels().linf_step, op);
}

template <class Size>
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
  if (call.empty()) return;

  const Array* operands[] = {&op.adv, &op.clean};
  make_plan(op.plan, call.rank(), call.sizes(), operands, 2, {op.eps.stride != 0});
  run(cpu::kernels().linf_step, op);
}

template <class Size>
Tensor linf_start(const Tensor& clean, const Size& eps, const Tensor& seed, double lo, double hi,
                  const OptionalTensor& index) {
  Call call("linf_start", clean, "clean");
  LinfStart op;
  op.clean = call.image(clean, "clean");
  const bool wide = op.clean.dtype == DType::f64;
  call.set_state_dtype(wide ? DType::f64 : DType::f32);
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  call.require(seed.scalar_type() == ScalarType::Long && seed.dim() == 1 && seed.size(0) == 2, "seed",
               "is not a (2,) int64 tensor");
  const auto* words = static_cast<const int64_t*>(seed.data_ptr());
  op.seed[0] = words[0];
  op.seed[1] = words[seed.stride(0)];
  op.index = call.index(index, "index", &op.index_stride);
  call.refuse_gradient(clean, "clean");

  Tensor start = empty_like(clean, wide ? ScalarType::Double : ScalarType::Float, MemoryFormat::Preserve);
  op.start = call.state(start, "start");
  if (call.empty()) return start;
  const Array* operands[] = {&op.start, &op.clean};
  make_plan(op.plan, call.rank(), call.sizes(), operands, 2,
            {.per_sample = true, .per_channel = false, .logical_order = true});
  run(cpu::kernels().linf_start, op);
  return start;
}

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
  if (call.empty()) return out;
  const Array* operands[] = {&op.out, &op.adv};
  make_plan(op.plan, call.rank(), call.sizes(), operands, 2, {false, mean.has_value()});
  run(cpu::kernels().prepare, op);
  return out;
}

void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("linf_step_", TORCH_BOX(&linf_step_<double>));
  m.impl("linf_step_.tensor", TORCH_BOX(&linf_step_<Tensor>));
  m.impl("linf_project_", TORCH_BOX(&linf_project_<double>));
  m.impl("linf_project_.tensor", TORCH_BOX(&linf_project_<Tensor>));
  m.impl("linf_start", TORCH_BOX(&linf_start<double>));
  m.impl("linf_start.tensor", TORCH_BOX(&linf_start<Tensor>));
  m.impl("prepare", TORCH_BOX(&prepare));
}

}  // namespace

// Twice: as the default choice of CPU tensors, which ROLI_FAST_BACKEND may replace, and under a name of
// their own, so that the kernels can be asked for whatever the default is.
STABLE_TORCH_LIBRARY_IMPL(roli_fast, CPU, m) { register_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(roli_fast_native, CPU, m) { register_ops(m); }

}  // namespace roli
