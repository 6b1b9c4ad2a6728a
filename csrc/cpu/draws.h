// Random words for runs of logical elements, several Philox blocks at a time.
//
// Included like blocks.h: once per instruction set, inside its namespace.

// Blocks of four words that a vector holds, one in each 64-bit lane.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

// The products of the low words of the lanes. The compilers do not find these instructions by themselves.
// (With a mask of ones: without one, gcc 12 warns of its own header.)
static inline Lanes multiply_words(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Room for the words of a block of elements that begins anywhere.
constexpr int64_t kWords = kBlock + 4 + 4 * kLanes;

// The words of Philox blocks [first, first + blocks) of a sample, four each, in order. Only the low word of a
// lane counts until the end.
static inline void draw_blocks(PhiloxKey key, int64_t sample, int64_t first, int64_t blocks,
                               uint32_t* words) {
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    k0[round] = key.k0 + kPhiloxW0 * static_cast<uint32_t>(round);
    k1[round] = key.k1 + kPhiloxW1 * static_cast<uint32_t>(round);
  }
  const Lanes zero = {}, low = zero + 0xffffffffu, m0 = zero + kPhiloxM0, m1 = zero + kPhiloxM1;
  Lanes number = zero;
  for (int lane = 0; lane < kLanes; ++lane) number[lane] = static_cast<uint64_t>(first + lane);
  for (int64_t i = 0; i < blocks; i += kLanes, number += kLanes) {
    Lanes x0 = number, x1 = number >> 32, x2 = zero + low_word(sample), x3 = zero + high_word(sample);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Lanes p0 = multiply_words(x0, m0), p1 = multiply_words(x2, m1);
      x0 = (p1 >> 32) ^ x1 ^ k0[round];
      x2 = (p0 >> 32) ^ x3 ^ k1[round];
      x1 = p1;
      x3 = p0;
    }
    const Lanes front = (x0 & low) | (x1 << 32), back = (x2 & low) | (x3 << 32);
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t four[2] = {front[lane], back[lane]};
      memcpy(words + 4 * (i + lane), four, sizeof(four));
    }
  }
}

// The words of logical elements [begin, begin + count) of a sample, count at most kBlock: words[0] is that of
// element begin. buffer: kWords long.
static inline const uint32_t* draw_words(PhiloxKey key, int64_t sample, int64_t begin, int64_t count,
                                         uint32_t* buffer) {
  const int64_t first = begin / 4;
  draw_blocks(key, sample, first, (begin + count + 3) / 4 - first, buffer);
  return buffer + (begin - 4 * first);
}
