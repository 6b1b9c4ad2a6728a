// The Linf kernels on numpy arrays, where these lie: no copy, no torch.
//
// These are all the checks that there are. They refuse what roli_fast/ops/checks.py refuses and in its
// words: the op, the argument, what came and what is accepted, before anything is written.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string>

#include "common/ops.h"
#include "common/overlap.h"
#include "cpu/kernels.h"

namespace roli::numpy {

namespace py = pybind11;

using DTypes = std::initializer_list<DType>;
constexpr DTypes kStates = {DType::f32, DType::f64};
constexpr DTypes kFloats = {DType::f16, DType::bf16, DType::f32, DType::f64};
constexpr DTypes kImages = {DType::f16, DType::bf16, DType::f32, DType::f64, DType::u8};

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::u8:
      return "uint8";
  }
  return "";
}

inline std::string names_of(DTypes dtypes) {
  std::string names;
  for (const DType dtype : dtypes) {
    if (!names.empty()) names += ", ";
    names += name_of(dtype);
  }
  return names;
}

// None for a dtype that no kernel takes; in the other byte order that is every one.
inline std::optional<DType> dtype_of(const py::array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.byteorder() != '=' && dtype.byteorder() != '|') return std::nullopt;
  constexpr int half = 23;  // numpy's NPY_HALF, for which pybind11 has no name
  switch (dtype.num()) {
    case half:
      return DType::f16;
    case py::detail::npy_api::NPY_FLOAT_:
      return DType::f32;
    case py::detail::npy_api::NPY_DOUBLE_:
      return DType::f64;
    case py::detail::npy_api::NPY_UBYTE_:
      return DType::u8;
  }
  // numpy has none of its own; the package ml_dtypes brings one.
  if (dtype.itemsize() == 2 && std::string(py::str(dtype)) == "bfloat16") return DType::bf16;
  return std::nullopt;
}

// An array as the kernels take it: strides in elements, of either sign.
struct Operand {
  Array array;
  int64_t strides[kMaxRank];

  Operand() = default;
  Operand(const Operand&) = delete;  // array points to strides
};

// One op's call: its arguments are admitted one by one.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}

  Shape shape() const { return {rank_, sizes_}; }
  bool empty() const {
    return std::any_of(sizes_, sizes_ + rank_, [](int64_t size) { return size == 0; });
  }

  // Elements may be done in any order: along a dimension where all operands run backwards, they are done
  // forwards, from its end. Not where an index says whose sizes or which channel's mean are meant.
  void turn_forwards(const LinfStep& op, std::initializer_list<Operand*> operands) const {
    if (empty()) return;
    const PlanOptions options = op.options();
    for (int d = 0; d < rank_; ++d) {
      if (options.per_sample && d == options.sample_dim) continue;
      if (options.per_channel && d == options.sample_dim + 1) continue;
      if (std::any_of(operands.begin(), operands.end(), [&](Operand* o) { return o->strides[d] > 0; }))
        continue;
      for (Operand* o : operands) {
        const int64_t to_the_end = o->strides[d] * (sizes_[d] - 1) * item_size(o->array.dtype);
        o->array.data = static_cast<char*>(o->array.data) + to_the_end;
        o->strides[d] = -o->strides[d];
      }
    }
  }

  // float32 or float64. Its shape is that of all the others.
  void state(py::handle value, const char* name, Operand& to) {
    const Given given = array_of(value, name, kStates);
    if (given.array.ndim() == 0) refuse(name, "shape ()", "(N, ...), N samples");
    rank_ = static_cast<int>(given.array.ndim());
    std::copy_n(given.array.shape(), rank_, sizes_);
    state_dtype_ = given.dtype;
    admit(given, name, to);
  }

  void like_state(py::handle value, const char* name, DTypes dtypes, Operand& to) const {
    const Given given = array_of(value, name, dtypes);
    if (given.array.ndim() != rank_ || !std::equal(sizes_, sizes_ + rank_, given.array.shape()))
      refuse(name, "shape " + shape_of(given.array), "adv's shape " + state_shape());
    admit(given, name, to);
  }

  // A number, or an array of shape () or (N,) of the state's dtype.
  Parameter size(py::handle value, const char* name) const {
    const auto accepted = [this] {
      return std::string("a number >= 0, or a ") + name_of(state_dtype_) +
             " array of shape () or (N,), N = " + std::to_string(sizes_[0]);
    };
    if (!py::isinstance<py::array>(value)) {
      const double size = number(value, name, accepted);
      if (!(size >= 0)) refuse(name, text_of(value), accepted());
      return {size};
    }
    const Given given = array_of(value, name, {state_dtype_});
    const int64_t rank = given.array.ndim();
    if (rank > 1 || (rank == 1 && given.array.shape(0) != sizes_[0]))
      refuse(name, "shape " + shape_of(given.array), accepted());
    Operand operand;
    admit(given, name, operand);
    return {0, operand.array.data, rank == 0 ? 0 : operand.strides[0]};
  }

  Box box(py::handle lo, py::handle hi) const {
    const auto accepted = [] { return std::string("a number"); };
    const Box box = {number(lo, "lo", accepted), number(hi, "hi", accepted)};
    if (std::isnan(box.lo)) refuse("lo", "nan", accepted());
    if (std::isnan(box.hi)) refuse("hi", "nan", accepted());
    if (box.lo > box.hi) refuse("lo", text_of(lo) + ", above hi = " + text_of(hi), "lo <= hi");
    return box;
  }

  Mask mask(py::handle value, const char* name) const {
    if (value.is_none()) return {};
    const py::array array = array_of(value, name, "bool");
    if (array.dtype().num() != py::detail::npy_api::NPY_BOOL_)
      refuse(name, "dtype " + text_of(array.dtype()), "bool");
    Operand operand;
    admit_vector({array, DType::u8}, name, sizes_[0], "(N,)", operand);
    return {static_cast<const bool*>(operand.array.data), operand.strides[0]};
  }

  Normalization normalization(py::handle mean, py::handle std) const {
    if (mean.is_none() && std.is_none()) return {};
    if (mean.is_none() || std.is_none())
      refuse(mean.is_none() ? "mean" : "std", "None", "mean and std together, or neither");
    if (rank_ < 2)
      refuse("mean", "a mean for shape " + state_shape(), "(N, C, ...) arrays, where there are channels");
    Operand means, stds;
    admit_vector(array_of(mean, "mean", {state_dtype_}), "mean", sizes_[1], "(C,)", means);
    admit_vector(array_of(std, "std", {state_dtype_}), "std", sizes_[1], "(C,)", stds);
    return {means.array.data, stds.array.data, means.strides[0], stds.strides[0], sizes_[1]};
  }

  // That the array may be written, and each of its elements on its own.
  void writable(py::handle value, const char* name, const Operand& operand) const {
    if (!py::reinterpret_borrow<py::array>(value).writeable())
      refuse(name, "a read-only array", "a writable array");
    if (may_overlap_itself(rank_, sizes_, Ascending(*this, operand).strides))
      refuse(name,
             "an array whose elements overlap (shape " + state_shape() + ", strides " +
                 text_of(value.attr("strides")) + ")",
             std::string("one memory location per element: ") + name + ".copy()");
  }

  void disjoint(const Operand& written, const char* written_name, const Operand& other,
                const char* name) const {
    const Ascending a(*this, written), b(*this, other);
    if (overlap(rank_, sizes_, a.first, a.strides, item_size(written.array.dtype), b.first, b.strides,
                item_size(other.array.dtype)))
      refuse(name, std::string("an array that shares memory with ") + written_name + ", which is written",
             std::string("an array of its own: ") + name + ".copy()");
  }

  // A sample's size is read again and again while the sample is written.
  void disjoint(const Operand& written, const char* written_name, const Parameter& size,
                const char* name) const {
    if (size.data == nullptr) return;
    Operand sizes;
    sizes.array = {const_cast<void*>(size.data), state_dtype_, sizes.strides};
    std::fill_n(sizes.strides, rank_, 0);
    sizes.strides[0] = size.stride;
    disjoint(written, written_name, sizes, name);
  }

  [[noreturn]] void refuse(const char* argument, const std::string& got, const std::string& accepted) const {
    throw py::value_error(message(argument, got, accepted));
  }

 private:
  struct Given {
    py::array array;
    DType dtype;
  };

  // The elements of an operand in the order of their addresses, which is how overlap.h counts them.
  struct Ascending {
    const char* first;
    int64_t strides[kMaxRank];

    Ascending(const Call& call, const Operand& operand)
        : first(static_cast<const char*>(operand.array.data)) {
      for (int d = 0; d < call.rank_; ++d) {
        const int64_t stride = operand.strides[d];
        if (stride < 0) first += (call.sizes_[d] - 1) * stride * item_size(operand.array.dtype);
        strides[d] = std::abs(stride);
      }
    }
  };

  static std::string text_of(py::handle value) { return py::str(value); }
  static std::string shape_of(const py::array& array) { return text_of(array.attr("shape")); }
  std::string state_shape() const {
    py::tuple shape(rank_);
    for (int d = 0; d < rank_; ++d) shape[d] = sizes_[d];
    return text_of(shape);
  }

  std::string message(const char* argument, const std::string& got, const std::string& accepted) const {
    return std::string(op_) + ": " + argument + ": got " + got + ", accepted: " + accepted;
  }

  [[noreturn]] void refuse_type(const char* argument, py::handle value, const std::string& accepted) const {
    throw py::type_error(message(argument, "a " + text_of(py::type::of(value).attr("__name__")), accepted));
  }

  // Other objects are not converted to arrays: what is written to a copy would be lost.
  py::array array_of(py::handle value, const char* name, const std::string& dtypes) const {
    if (!py::isinstance<py::array>(value)) refuse_type(name, value, "a numpy array of dtype " + dtypes);
    return py::reinterpret_borrow<py::array>(value);
  }

  Given array_of(py::handle value, const char* name, DTypes dtypes) const {
    if (!py::isinstance<py::array>(value)) array_of(value, name, names_of(dtypes));
    const auto array = py::reinterpret_borrow<py::array>(value);
    const auto dtype = dtype_of(array);
    if (!dtype || std::find(dtypes.begin(), dtypes.end(), *dtype) == dtypes.end())
      refuse(name, "dtype " + text_of(array.dtype()), names_of(dtypes));
    return {array, *dtype};
  }

  template <class Accepted>
  double number(py::handle value, const char* name, Accepted&& accepted) const {
    if (!PyFloat_Check(value.ptr()) && !PyLong_Check(value.ptr()) &&
        !py::isinstance(value, py::module_::import("numbers").attr("Real")))
      refuse_type(name, value, accepted());
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      refuse(name, "a number beyond the range of float64", accepted());
    }
    return number;
  }

  // Strides in bytes to strides in elements. numpy has arrays where that cannot be, such as a field of
  // packed records.
  void admit(const Given& given, const char* name, Operand& to) const {
    const py::array& array = given.array;
    const int64_t item = item_size(given.dtype);
    to.array = {const_cast<void*>(array.data()), given.dtype, to.strides};
    bool aligned = reinterpret_cast<uintptr_t>(array.data()) % item == 0;
    for (int d = 0; d < array.ndim(); ++d) {
      const int64_t stride = array.shape(d) > 1 ? array.strides(d) : 0;  // else it means nothing
      aligned = aligned && stride % item == 0;
      to.strides[d] = stride / item;
    }
    if (!aligned && array.size() != 0)
      refuse(name,
             "elements that are not aligned to " + std::to_string(item) + " bytes (strides " +
                 text_of(array.attr("strides")) + ")",
             std::string("aligned ones: ") + name + ".copy()");
  }

  void admit_vector(const Given& given, const char* name, int64_t length, const char* meaning,
                    Operand& to) const {
    if (given.array.ndim() != 1 || given.array.shape(0) != length)
      refuse(name, "shape " + shape_of(given.array),
             std::string(meaning) + " = (" + std::to_string(length) + ",)");
    admit(given, name, to);
  }

  const char* op_;
  int rank_ = 0;
  int64_t sizes_[kMaxRank];
  DType state_dtype_ = DType::f32;
};

// On the calling thread, and without the interpreter's lock: callers have threads of their own.
inline void run(LinfStep& op, const Call& call) {
  const auto kernel = cpu::kernels().linf_step;
  if (call.empty()) return;
  make_plan(op.plan, call.shape(), op.operands(), op.options());
  const py::gil_scoped_release release;
  kernel(op, 0, op.plan.chunks());
}

inline void linf_step_(py::handle adv, py::handle grad, py::handle clean, py::handle step_size,
                       py::handle eps, py::handle lo, py::handle hi, py::handle active, py::handle out,
                       py::handle mean, py::handle std) {
  Call call(LinfStep::kStep);
  Operand advs, grads, cleans, outs;
  LinfStep op;
  call.state(adv, "adv", advs);
  call.like_state(grad, "grad", kFloats, grads);
  call.like_state(clean, "clean", kImages, cleans);
  op.step_size = call.size(step_size, "step_size");
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  op.active = call.mask(active, "active");
  if (!out.is_none())
    call.like_state(out, "out", kFloats, outs);
  else if (!mean.is_none() || !std.is_none())
    call.refuse(mean.is_none() ? "std" : "mean", "an array, without out", "mean and std only with out");
  op.normalization = call.normalization(mean, std);
  call.writable(adv, "adv", advs);
  call.disjoint(advs, "adv", grads, "grad");
  call.disjoint(advs, "adv", cleans, "clean");
  call.disjoint(advs, "adv", op.step_size, "step_size");
  call.disjoint(advs, "adv", op.eps, "eps");
  if (!out.is_none()) {
    call.writable(out, "out", outs);
    call.disjoint(advs, "adv", outs, "out");
    call.disjoint(outs, "out", grads, "grad");
    call.disjoint(outs, "out", cleans, "clean");
    call.disjoint(outs, "out", op.step_size, "step_size");
    call.disjoint(outs, "out", op.eps, "eps");
    call.turn_forwards(op, {&advs, &grads, &cleans, &outs});
    op.out = outs.array;
  } else {
    call.turn_forwards(op, {&advs, &grads, &cleans});
  }
  op.adv = advs.array;
  op.grad = grads.array;
  op.clean = cleans.array;
  run(op, call);
}

inline void linf_project_(py::handle adv, py::handle clean, py::handle eps, py::handle lo, py::handle hi) {
  Call call(LinfStep::kProject);
  Operand advs, cleans;
  LinfStep op;
  call.state(adv, "adv", advs);
  call.like_state(clean, "clean", kImages, cleans);
  op.eps = call.size(eps, "eps");
  op.box = call.box(lo, hi);
  call.writable(adv, "adv", advs);
  call.disjoint(advs, "adv", cleans, "clean");
  call.disjoint(advs, "adv", op.eps, "eps");
  call.turn_forwards(op, {&advs, &cleans});
  op.adv = advs.array;
  op.clean = cleans.array;
  run(op, call);
}

}  // namespace roli::numpy
