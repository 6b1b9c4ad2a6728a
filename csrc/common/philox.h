// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) and how our ops
// draw from it: a pure function of (seed, sample index, logical element), the same on every backend.
#pragma once

#include <cstdint>

#include "macros.h"

namespace roli {

struct Philox4 {
  uint32_t x0, x1, x2, x3;
};

struct PhiloxKey {
  uint32_t k0, k1;
};

ROLI_FN Philox4 philox(Philox4 counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.x0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.x2;
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter.x1 ^ key.k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter.x3 ^ key.k1, static_cast<uint32_t>(p0)};
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  return counter;
}

ROLI_FN uint32_t low_word(int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x)); }
ROLI_FN uint32_t high_word(int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); }

// seed = (key, stream): the stream (which draw of a run this is) is folded into the key, so that the
// whole counter is left for sample and element.
ROLI_FN PhiloxKey philox_key(int64_t key, int64_t stream) {
  const Philox4 mixed = philox({low_word(stream), high_word(stream), 0, 0}, {low_word(key), high_word(key)});
  return {mixed.x0, mixed.x1};
}

// Elements 4 block .. 4 block + 3 of a sample, in logical (row-major) order.
ROLI_FN Philox4 philox_block(PhiloxKey key, int64_t sample, int64_t block) {
  return philox({low_word(block), high_word(block), low_word(sample), high_word(sample)}, key);
}

// 24 random bits to the open interval (-1, 1): the odd multiples of 2^-24, symmetric and exact in float.
template <class T>
ROLI_FN T symmetric_uniform(uint32_t bits) {
  const int32_t odd = static_cast<int32_t>((bits >> 8) * 2u + 1u) - (1 << 24);
  return static_cast<T>(odd) * static_cast<T>(1.0 / 16777216.0);
}

}  // namespace roli
