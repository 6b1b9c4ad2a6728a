// From a thread's place to elements, samples and channels, by multiplication instead of division.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "../common/macros.h"
#include "../common/plan.h"

namespace roli::cuda {

ROLI_FN uint64_t high_product(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// n / divisor and n % divisor for 0 <= n < 2^63 (Granlund and Montgomery, Division by Invariant Integers
// using Multiplication, PLDI 1994, figure 4.1). For numbers of 31 bits the upper half of the multiplier is
// enough, and a tenth of the instructions.
struct Divider {
  int64_t divisor = 1;
  uint64_t multiplier = 1;
  uint32_t small_multiplier = 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t divisor) : divisor(divisor) {
    const auto d = static_cast<unsigned __int128>(divisor);
    while ((static_cast<unsigned __int128>(1) << shift) < d) ++shift;
    const auto excess = (static_cast<unsigned __int128>(1) << shift) - d;
    multiplier = static_cast<uint64_t>((excess << 64) / d + 1);
    small_multiplier = static_cast<uint32_t>((excess << 32) / d + 1);
  }

  ROLI_FN int64_t quotient(int64_t n) const {
    const auto u = static_cast<uint64_t>(n);
    return static_cast<int64_t>((high_product(multiplier, u) + u) >> shift);
  }
  ROLI_FN int64_t remainder(int64_t n) const { return n - quotient(n) * divisor; }

  // The same, for n and divisor below 2^31.
  ROLI_FN uint32_t small_quotient(uint32_t n) const {
#ifdef __CUDA_ARCH__
    const uint32_t high = __umulhi(small_multiplier, n);
#else
    const auto high = static_cast<uint32_t>((uint64_t{small_multiplier} * n) >> 32);
#endif
    return (high + n) >> shift;
  }
  ROLI_FN uint32_t small_remainder(uint32_t n) const {
    return n - small_quotient(n) * static_cast<uint32_t>(divisor);
  }
};

// The index, in one dimension, of the element at a place of dense memory: place / stride % size.
struct Coordinate {
  Divider stride, size;
  bool steady = true;  // the same for each aligned group of four elements
  bool small = true;   // all places have 31 bits

  Coordinate() = default;
  // count: of all elements.
  Coordinate(int64_t stride, int64_t size, int64_t count)
      : stride(size == 1 ? 1 : stride),
        size(size),
        steady(size == 1 || stride % 4 == 0),
        small(count < (int64_t{1} << 31)) {}

  ROLI_FN int64_t operator()(int64_t place) const {
    if (small) return size.small_remainder(stride.small_quotient(static_cast<uint32_t>(place)));
    return size.remainder(stride.quotient(place));
  }

  // The coordinate of the next place. coordinate: that of this place.
  ROLI_FN int64_t next(int64_t coordinate, int64_t place) const {
    if (stride.divisor != 1) return (*this)(place + 1);
    return coordinate + 1 == size.divisor ? 0 : coordinate + 1;
  }
};

// Operands that fill their memory without gaps, all in the same order: one index serves them all.
struct Dense {
  int64_t count;
  Coordinate sample, channel;
};

// Whether the operands are such.
inline bool make_dense(Dense& dense, Shape shape, const Operands& operands) {
  const auto [rank, sizes] = shape;
  const int64_t* strides = operands.arrays[0]->strides;
  for (int k = 0; k < operands.count; ++k) {
    for (int d = 0; d < rank; ++d)
      if (sizes[d] != 1 && operands.arrays[k]->strides[d] != strides[d]) return false;
  }
  // Dense: from the smallest stride up, each steps over exactly what lies below.
  int64_t reach = 1;
  bool found = true;
  while (found) {
    found = false;
    for (int d = 0; d < rank && !found; ++d)
      if (sizes[d] != 1 && strides[d] == reach) {
        reach *= sizes[d];
        found = true;
      }
  }
  dense.count = 1;
  for (int d = 0; d < rank; ++d) dense.count *= sizes[d];
  dense.sample = Coordinate(strides[0], sizes[0], dense.count);
  if (rank > 1) dense.channel = Coordinate(strides[1], sizes[1], dense.count);
  return reach == dense.count;
}

// One element of a plan.
struct Place {
  int64_t offset[kMaxOperands];  // in each operand, in elements
  int64_t sample, channel;
};

// Dimensions of a plan have two indices or more, so that a tensor of 2^48 elements has no more of them.
constexpr int kMaxDims = 48;

// Any plan, element by element: its rows, and the elements of a row as a last dimension.
struct Strided {
  int64_t count;
  int rank, operands, sample_dim, channel_dim;
  Divider size[kMaxDims];
  int64_t stride[kMaxOperands][kMaxDims];
  Divider channels;  // how many channels a row repeats; 1 where it does not
  bool small;        // all indices have 31 bits

  Strided(const Plan& plan, int operands, int64_t channels)
      : count(plan.rows * plan.length),
        rank(plan.rank + 1),
        operands(operands),
        sample_dim(plan.sample_dim),
        channel_dim(plan.channel_dim),
        channels(plan.channel == Channel::periodic ? channels : 1),
        small(count < (int64_t{1} << 31)) {
    if (rank > kMaxDims) throw std::runtime_error("roli_fast: more than 2^48 elements");
    for (int d = 0; d <= plan.rank; ++d) {
      const bool row = d == plan.rank;
      size[d] = Divider(row ? plan.length : plan.size[d]);
      for (int k = 0; k < operands; ++k) stride[k][d] = row ? plan.row_stride[k] : plan.stride[k][d];
    }
  }

  ROLI_FN Place operator()(int64_t index) const {
    Place place = {};
    for (int d = rank - 1; d >= 0; --d) {
      const int64_t rest = small ? static_cast<int64_t>(size[d].small_quotient(static_cast<uint32_t>(index)))
                                 : size[d].quotient(index);
      const int64_t coordinate = index - rest * size[d].divisor;
      index = rest;
      if (d == rank - 1) place.channel = channels.remainder(coordinate);
      if (d == sample_dim) place.sample = coordinate;
      if (d == channel_dim) place.channel = coordinate;
      // Over a constant number of operands: offsets stay in registers.
      ROLI_UNROLL
      for (int k = 0; k < kMaxOperands; ++k)
        if (k < operands) place.offset[k] += coordinate * stride[k][d];
    }
    return place;
  }
};

}  // namespace roli::cuda
