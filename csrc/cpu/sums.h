// Sums in float64, many at a time: sixteen of them side by side, added in one order on every instruction set.
//
// Included like blocks.h: once per instruction set, inside its namespace, after it.

constexpr int kSide = 16;
typedef double Doubles __attribute__((vector_size(8 * kSide)));
typedef float Floats __attribute__((vector_size(4 * kSide)));

template <class T>
static inline Doubles widened(const T* from) {
  if constexpr (sizeof(T) == 8) {
    Doubles x;
    memcpy(&x, from, sizeof(x));
    return x;
  } else {
    Floats x;
    memcpy(&x, from, sizeof(x));
    return __builtin_convertvector(x, Doubles);
  }
}

// Of T: a difference that is NaN counts as 0.
template <class T>
static inline Doubles offsets(const T* a, const T* c) {
  typedef T Side __attribute__((vector_size(sizeof(T) * kSide)));
  Side x, y;
  memcpy(&x, a, sizeof(x));
  memcpy(&y, c, sizeof(y));
  const Side d = x - y, known = d == d ? d : Side{};
  if constexpr (sizeof(T) == 8)
    return known;
  else
    return __builtin_convertvector(known, Doubles);
}

static inline double total(const Doubles& of) {
  Doubles x = of;
  for (int half = kSide / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}
