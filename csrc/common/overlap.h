// Whether strided tensors share memory. Host code, no torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan.h"

namespace roli {

// False only where no two indices can address the same element: each stride steps over everything that
// the smaller ones reach.
inline bool may_overlap_itself(int rank, const int64_t* sizes, const int64_t* strides) {
  int order[kMaxRank], kept = 0;
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] == 0) return false;
    if (sizes[d] > 1) order[kept++] = d;
  }
  std::sort(order, order + kept, [strides](int x, int y) { return strides[x] < strides[y]; });
  int64_t reach = 0;
  for (int i = 0; i < kept; ++i) {
    if (strides[order[i]] <= reach) return true;
    reach += (sizes[order[i]] - 1) * strides[order[i]];
  }
  return false;
}

namespace overlap_detail {

// Is there an index with low <= target - sum(k_i stride_i) <= high, where |k_i| stays below its bound?
// Strides are sorted downwards, so that each leaves few candidates for k_i.
struct Term {
  int64_t stride, smallest, largest;
};

inline bool reaches(const Term* terms, int count, int64_t low, int64_t high, int* budget) {
  if (--*budget < 0) return true;  // too intertwined to tell: say that they overlap
  if (count == 0) return low <= 0 && 0 <= high;
  int64_t rest_low = 0, rest_high = 0;
  for (int i = 1; i < count; ++i) {
    rest_low += terms[i].smallest * terms[i].stride;
    rest_high += terms[i].largest * terms[i].stride;
  }
  const auto floor_div = [](int64_t a, int64_t b) { return a / b - (a % b != 0 && a < 0); };
  const int64_t stride = terms[0].stride;
  const int64_t from = std::max(terms[0].smallest, -floor_div(-(low - rest_high), stride));
  const int64_t to = std::min(terms[0].largest, floor_div(high - rest_low, stride));
  for (int64_t k = from; k <= to; ++k)
    if (reaches(terms + 1, count - 1, low - k * stride, high - k * stride, budget)) return true;
  return false;
}

}  // namespace overlap_detail

// Whether an element of a and an element of b share a byte. Strides in elements, none negative. Exact
// until a search of 10,000 steps, which no pair of slices of one tensor comes near; then "yes".
inline bool overlap(int rank, const int64_t* sizes, const void* a, const int64_t* a_strides, int64_t a_item,
                    const void* b, const int64_t* b_strides, int64_t b_item) {
  int64_t a_reach = a_item, b_reach = b_item;
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] == 0) return false;
    a_reach += (sizes[d] - 1) * a_strides[d] * a_item;
    b_reach += (sizes[d] - 1) * b_strides[d] * b_item;
  }
  const int64_t distance = static_cast<const char*>(b) - static_cast<const char*>(a);
  if (distance >= a_reach || -distance >= b_reach) return false;

  // An element of a begins at sum i_d a_d, one of b at distance + sum j_d b_d. They share a byte where
  // sum i_d a_d - sum j_d b_d lies in (distance - a_item, distance + b_item).
  overlap_detail::Term terms[2 * kMaxRank];
  int count = 0;
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] == 1) continue;
    const int64_t last = sizes[d] - 1;
    if (a_strides[d] * a_item == b_strides[d] * b_item) {
      if (a_strides[d] != 0) terms[count++] = {a_strides[d] * a_item, -last, last};
      continue;
    }
    if (a_strides[d] != 0) terms[count++] = {a_strides[d] * a_item, 0, last};
    if (b_strides[d] != 0) terms[count++] = {b_strides[d] * b_item, -last, 0};
  }
  std::sort(terms, terms + count, [](const auto& x, const auto& y) { return x.stride > y.stride; });
  int budget = 10000;
  return overlap_detail::reaches(terms, count, distance - a_item + 1, distance + b_item - 1, &budget);
}

}  // namespace roli
