// Storage types of tensors and the conversions between them, written with integer arithmetic so that
// every compiler vectorises them and every backend gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "macros.h"

namespace roli {

enum class DType : uint8_t { f16, bf16, f32, f64, u8 };

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return 1;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
  }
  return 0;
}

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

template <class To, class From>
ROLI_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// convert<To>(x): the nearest value, ties to even. double reaches the half types through float, as
// torch's own casts do. uint8 is an image in [0, 255] and becomes x / 255 (a true division).
template <class To>
ROLI_FN To convert(float x) {
  return static_cast<To>(x);
}

template <>
ROLI_FN bfloat16 convert<bfloat16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // One instruction; of NaN it makes 0x7fff.
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {x != x ? uint16_t{0x7fc0} : bits};
#endif
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
ROLI_FN float16 convert<float16>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Below 2^-14 a half is a multiple of 2^-24: adding 0.5f puts that grid on float's last bit.
  const float aligned = bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = bit_cast<uint32_t>(aligned) - 0x3f000000u;
  // Otherwise drop 13 mantissa bits (ties to even) and re-bias the exponent from 127 to 15.
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {static_cast<uint16_t>(sign | half)};
}

template <class To>
ROLI_FN To convert(double x) {
  return convert<To>(static_cast<float>(x));
}

template <>
ROLI_FN double convert<double>(double x) {
  return x;
}

template <class To>
ROLI_FN To convert(bfloat16 x) {
  return static_cast<To>(bit_cast<float>(static_cast<uint32_t>(x.bits) << 16));
}

template <class To>
ROLI_FN To convert(float16 x) {
#if defined(__CUDA_ARCH__)
  float exact;
  asm("cvt.f32.f16 %0, %1;" : "=f"(exact) : "h"(x.bits));
  return static_cast<To>(exact);
#endif
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t normal = magnitude + 0x38000000u;
  const uint32_t infinite = magnitude | 0x7f800000u;
  // A subnormal half counts steps of 2^-24: let the integer conversion normalise it.
  const float subnormal = static_cast<float>(static_cast<int32_t>(x.bits & 0x3ffu)) * (1.0f / 16777216.0f);
  uint32_t u = magnitude < 0x00800000u ? bit_cast<uint32_t>(subnormal) : normal;
  u = magnitude >= 0x0f800000u ? infinite : u;
  return static_cast<To>(bit_cast<float>(u | sign));
}

template <class To>
ROLI_FN To convert(uint8_t x) {
#if defined(__CUDA_ARCH__)
  // A division costs a GPU more than the memory does. In base 256, x / 255 is 0.xxxx...: four of the digits,
  // and a unit for those that follow, round to what all of them round to (0 and 255 have none).
  if constexpr (sizeof(To) == 4)
    return static_cast<To>(x * 0x01010101u + static_cast<uint32_t>(x - 1u < 254u)) * static_cast<To>(0x1p-32);
#endif
  return static_cast<To>(static_cast<int32_t>(x)) / static_cast<To>(255);
}

// sign<T>(g): 1, -1, or 0 for zero and NaN. It looks at the gradient in its own type: a double of 1e-60
// has a sign, although it is zero as a float.
template <class T, class G>
ROLI_FN T sign(G g) {
  return static_cast<T>(g > G(0)) - static_cast<T>(g < G(0));
}

template <class T>
ROLI_FN T sign_of_half_bits(uint32_t bits, uint32_t infinity) {
  const uint32_t magnitude = bits & 0x7fffu;
  const bool counts = magnitude - 1u < infinity;  // neither zero nor NaN
  return counts ? (bits & 0x8000u ? T(-1) : T(1)) : T(0);
}

template <class T>
ROLI_FN T sign(bfloat16 g) {
  return sign_of_half_bits<T>(g.bits, 0x7f80u);
}

template <class T>
ROLI_FN T sign(float16 g) {
  return sign_of_half_bits<T>(g.bits, 0x7c00u);
}

template <class T>
ROLI_FN bool is_nan(T x) {
  return x != x;
}

template <class T>
ROLI_FN bool is_infinite(T x) {
  return x == std::numeric_limits<T>::infinity() || x == -std::numeric_limits<T>::infinity();
}

}  // namespace roli
