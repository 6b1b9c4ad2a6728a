// Sums in float64, sixteen side by side, added in one order on every instruction set: the compiler makes
// vectors of the lanes, since it need not reorder a sum for it.
//
// Included like blocks.h: once per instruction set, inside its namespace.

constexpr int kSide = 16;

struct Sums {
  double at[kSide] = {};

  double total() const {
    double x[kSide];
    for (int j = 0; j < kSide; ++j) x[j] = at[j];
    for (int half = kSide / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) x[j] += x[j + half];
    return x[0];
  }
};
