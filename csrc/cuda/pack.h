// Four elements at once, of a storage type known to the compiler or of any.
//
// Four, whatever the type: then every access of a warp covers whole memory lines, in 128 bits per thread for
// float32 (two of them for float64), 64 for half precision and 32 for uint8. Eight half-precision elements
// in 128 bits would leave a thread's float32 elements 32 bytes apart, in half-used sectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../common/numeric.h"
#include "../common/plan.h"

namespace roli::cuda {

constexpr int kPack = 4;

template <class S>
struct alignas(sizeof(S) * kPack < 16 ? sizeof(S) * kPack : 16) Pack {
  S at[kPack];
};

// A pack in one access, or two of 16 bytes. Stores in PTX: the compiler makes one per element of some.
template <class P>
ROLI_FN P read_pack(const void* from) {
  return *static_cast<const P*>(from);
}

template <class P>
ROLI_FN void write_pack(void* to, const P& pack) {
#ifdef __CUDA_ARCH__
  struct Words {
    uint32_t at[sizeof(P) / 4];
  };
  const auto words = bit_cast<Words>(pack);
  const uint32_t* w = words.at;
  const size_t address = __cvta_generic_to_global(to);
  if constexpr (sizeof(P) == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(w[0]) : "memory");
  } else if constexpr (sizeof(P) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(w[0]), "r"(w[1]) : "memory");
  } else {
    ROLI_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(P) / 16); ++i)
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address + 16 * i), "r"(w[4 * i]),
                   "r"(w[4 * i + 1]), "r"(w[4 * i + 2]), "r"(w[4 * i + 3])
                   : "memory");
  }
#else
  *static_cast<P*>(to) = pack;
#endif
}

// Whether the operands begin where packs can be moved in one access each.
inline bool packable(const Operands& operands) {
  for (int k = 0; k < operands.count; ++k) {
    const Array& array = *operands.arrays[k];
    const uintptr_t access = std::min<uintptr_t>(16, kPack * item_size(array.dtype));
    if (reinterpret_cast<uintptr_t>(array.data) % access != 0) return false;
  }
  return true;
}

// Stands where a kernel learns the storage type at run time.
struct Any {};

// An operand: its type comes with it where the kernel does not know it.
struct Memory {
  void* data = nullptr;
  DType dtype = DType::f32;

  Memory() = default;
  explicit Memory(const Array& array) : data(array.data), dtype(array.dtype) {}
};

// Calls run(tag) with a value of the operand's storage type, S where that is known. Float types first, by
// how often they come.
template <class S, class Run>
ROLI_FN void with_type(const Memory& memory, Run&& run) {
  if constexpr (!std::is_same_v<S, Any>) {
    run(S{});
  } else {
    switch (memory.dtype) {
      case DType::f32:
        return run(float{});
      case DType::bf16:
        return run(bfloat16{});
      case DType::f16:
        return run(float16{});
      case DType::f64:
        return run(double{});
      case DType::u8:
        return run(uint8_t{});
    }
  }
}

// How what was read is meant: as a value (uint8: divided by 255), or as a direction, of which the sign
// counts.
struct AsValue {
  template <class T, class S>
  static ROLI_FN T of(S x) {
    return convert<T>(x);
  }
};

struct AsDirection {
  template <class T, class S>
  static ROLI_FN T of(S x) {
    if constexpr (std::is_same_v<S, uint8_t>)  // admitted nowhere as a direction
      return T(0);
    else if constexpr (sizeof(S) <= sizeof(T))
      return convert<T>(x);
    else
      return sign<T>(x);  // of a float64 that float32 may not hold
  }
};

template <class S>
ROLI_FN const S* elements(const Memory& memory, int64_t place) {
  return static_cast<const S*>(memory.data) + place;
}

// What is read before it is converted, so that a thread's reads do not wait for each other.
template <class T, class S>
using Raw = Pack<std::conditional_t<std::is_same_v<S, Any>, T, S>>;

template <class Meaning, class T, class S>
ROLI_FN Raw<T, S> fetch(const Memory& memory, int64_t place) {
  Raw<T, S> raw;
  with_type<S>(memory, [&](auto tag) {
    using Stored = decltype(tag);
    const auto pack = read_pack<Pack<Stored>>(elements<Stored>(memory, place));
    if constexpr (std::is_same_v<S, Any>) {
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) raw.at[k] = Meaning::template of<T>(pack.at[k]);
    } else {
      raw = pack;
    }
  });
  return raw;
}

template <class Meaning, class T, class S>
ROLI_FN T meant(const Raw<T, S>& raw, int k) {
  if constexpr (std::is_same_v<S, Any>)
    return raw.at[k];
  else
    return Meaning::template of<T>(raw.at[k]);
}

template <class S, class T>
ROLI_FN void put(const Memory& memory, int64_t place, const Pack<T>& values) {
  with_type<S>(memory, [&](auto tag) {
    using Stored = decltype(tag);
    if constexpr (!std::is_same_v<Stored, uint8_t>) {  // nothing is written as uint8
      Pack<Stored> pack;
      ROLI_UNROLL
      for (int k = 0; k < kPack; ++k) pack.at[k] = convert<Stored>(values.at[k]);
      write_pack(static_cast<Stored*>(memory.data) + place, pack);
    }
  });
}

// One element.
template <class Meaning, class T, class S>
ROLI_FN T fetch_one(const Memory& memory, int64_t place) {
  T value{};
  with_type<S>(memory,
               [&](auto tag) { value = Meaning::template of<T>(*elements<decltype(tag)>(memory, place)); });
  return value;
}

template <class S, class T>
ROLI_FN void put_one(const Memory& memory, int64_t place, T value) {
  with_type<S>(memory, [&](auto tag) {
    using Stored = decltype(tag);
    if constexpr (!std::is_same_v<Stored, uint8_t>)
      static_cast<Stored*>(memory.data)[place] = convert<Stored>(value);
  });
}

}  // namespace roli::cuda
