// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) and how our ops
// draw from it: a pure function of (seed, sample index, logical element), the same on every backend.
#pragma once

#include <cstdint>

#include "macros.h"
#include "numeric.h"

namespace roli {

struct Philox4 {
  uint32_t x0, x1, x2, x3;
};

struct PhiloxKey {
  uint32_t k0, k1;
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // that the key grows by
constexpr int kPhiloxRounds = 10;

ROLI_FN Philox4 philox(Philox4 counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxM0} * counter.x0;
    const uint64_t p1 = uint64_t{kPhiloxM1} * counter.x2;
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter.x1 ^ key.k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter.x3 ^ key.k1, static_cast<uint32_t>(p0)};
    key.k0 += kPhiloxW0;
    key.k1 += kPhiloxW1;
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

// And to (0, 1].
ROLI_FN float unit_uniform(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>((bits >> 8) + 1u)) * (1.0f / 16777216.0f);
}

// The block of words that no element has; its first is the radius of a sample's point.
constexpr int64_t kRadiusBlock = -1;

// The natural logarithm of x in (0, 1], by the polynomial of Cephes' logf (Moshier): libraries differ in the
// last bit, and a draw has the same bits on every backend.
ROLI_FN float log_unit(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const float fraction = bit_cast<float>((bits & 0x7fffffu) | 0x3f000000u);
  const bool small = fraction < 0.70710677f;
  const auto exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - (small ? 127 : 126));
  const float z = (small ? fraction + fraction : fraction) - 1.0f;
  const float square = z * z;
  float y = 7.0376836292e-2f;
  y = y * z + -1.1514610310e-1f;
  y = y * z + 1.1676998740e-1f;
  y = y * z + -1.2420140846e-1f;
  y = y * z + 1.4249322787e-1f;
  y = y * z + -1.6668057665e-1f;
  y = y * z + 2.0000714765e-1f;
  y = y * z + -2.4999993993e-1f;
  y = y * z + 3.3333331174e-1f;
  y = y * z * square;
  y = y + exponent * -2.12194440e-4f;
  y = y - square * 0.5f;
  return (z + y) + exponent * 0.693359375f;
}

struct Pair {
  float x, y;
};

// The cosine and sine of a uniform angle: two bits choose the quadrant, 24 an offset within 45 degrees of its
// axis; by the polynomials of Cephes' sinf and cosf (Moshier).
ROLI_FN Pair cos_and_sin(uint32_t word) {
  const uint32_t quadrant = word >> 30;
  const int32_t centred = static_cast<int32_t>(((word >> 6) & 0xffffffu) * 2u + 1u) - (1 << 24);
  const float x = static_cast<float>(centred) * static_cast<float>(0.78539816339744830962 / 16777216.0);
  const float z = x * x;
  const float sin = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z + -1.6666654611e-1f) * z * x + x;
  float cos = ((z * 2.443315711809948e-5f + -1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z;
  cos = (cos - z * 0.5f) + 1.0f;
  const bool odd = (quadrant & 1u) != 0;
  const float c = odd ? sin : cos, s = odd ? cos : sin;
  return {quadrant == 1 || quadrant == 2 ? -c : c, quadrant >= 2 ? -s : s};
}

// Two standard normal draws of two words (Box and Muller 1958).
ROLI_FN Pair normal_pair(uint32_t first, uint32_t second) {
  const float square = log_unit(unit_uniform(first)) * -2.0f;
#ifdef __CUDA_ARCH__
  const float radius = __fsqrt_rn(square);
#else
  const float radius = __builtin_sqrtf(square);
#endif
  const Pair direction = cos_and_sin(second);
  return {radius * direction.x, radius * direction.y};
}

// An exponential draw of random sign.
ROLI_FN float laplace(uint32_t word) {
  const float size = -log_unit(unit_uniform(word));
  return (word & 1u) != 0 ? -size : size;
}

}  // namespace roli
