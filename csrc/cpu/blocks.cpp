// How blocks are converted, compiled once per instruction set (ROLI_ISA): the loops of every dtype and
// layout, which all families share.
#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

// Calls run(tag) with a value of the type that the tensor holds.
template <class Run>
void with_float_type(DType dtype, Run&& run) {
  switch (dtype) {
    case DType::f16:
      return run(float16{});
    case DType::bf16:
      return run(bfloat16{});
    case DType::f32:
      return run(float{});
    case DType::f64:
      return run(double{});
    case DType::u8:
      return;  // refused by the caller: not a float type
  }
}

template <class Run>
void with_image_type(DType dtype, Run&& run) {
  if (dtype == DType::u8) return run(uint8_t{});
  with_float_type(dtype, run);
}

template <class T>
T* elements(const Array& array, int64_t offset) {
  return static_cast<T*>(array.data) + offset;
}

// Puts value(x) of the block's elements x into the buffer.
template <class T, class E, class Value>
void load_each(const E* from, int64_t stride, int64_t count, T* __restrict buffer, Value&& value) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) buffer[i] = value(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) buffer[i] = value(from[i * stride]);
}

// Rounds value(i) of the block's elements to the array's type and puts them there.
template <class Value>
void store_each(const Array& array, int64_t offset, int64_t stride, int64_t count, Value&& value) {
  with_float_type(array.dtype, [&](auto tag) {
    using D = decltype(tag);
    D* __restrict to = elements<D>(array, offset);
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) to[i] = convert<D>(value(i));
    else
      for (int64_t i = 0; i < count; ++i) to[i * stride] = convert<D>(value(i));
  });
}

}  // namespace

template <class T>
void load_converted(const Array& array, int64_t offset, int64_t stride, int64_t count, T* __restrict buffer) {
  with_image_type(array.dtype, [&](auto tag) {
    load_each(elements<decltype(tag)>(array, offset), stride, count, buffer,
              [](auto x) { return convert<T>(x); });
  });
}

template <class T>
void load_signs(const Array& array, int64_t offset, int64_t stride, int64_t count, T* __restrict buffer) {
  with_float_type(array.dtype, [&](auto tag) {
    load_each(elements<decltype(tag)>(array, offset), stride, count, buffer,
              [](auto x) { return sign<T>(x); });
  });
}

template <class T>
void store_values(const Array& array, int64_t offset, int64_t stride, int64_t count, const T* values) {
  store_each(array, offset, stride, count, [=](int64_t i) { return values[i]; });
}

// In one loop with the rounding: the divisions fill the time that memory takes.
template <class T>
void store_normalized(const Array& array, int64_t offset, int64_t stride, int64_t count,
                      const T* __restrict values, const T* __restrict means, const T* __restrict stds) {
  store_each(array, offset, stride, count,
             [=](int64_t i) { return normalize(values[i], means[i], stds[i]); });
}

template <class T>
void store_normalized(const Array& array, int64_t offset, int64_t stride, int64_t count,
                      const T* __restrict values, T mean, T std) {
  store_each(array, offset, stride, count, [=](int64_t i) { return normalize(values[i], mean, std); });
}

#define ROLI_CONVERSIONS(T)                                                                    \
  template void load_converted(const Array&, int64_t, int64_t, int64_t, T* __restrict);        \
  template void load_signs(const Array&, int64_t, int64_t, int64_t, T* __restrict);            \
  template void store_values(const Array&, int64_t, int64_t, int64_t, const T*);               \
  template void store_normalized(const Array&, int64_t, int64_t, int64_t, const T* __restrict, \
                                 const T* __restrict, const T* __restrict);                    \
  template void store_normalized(const Array&, int64_t, int64_t, int64_t, const T* __restrict, T, T)
ROLI_CONVERSIONS(float);
ROLI_CONVERSIONS(double);

}  // namespace roli::cpu::ROLI_ISA
