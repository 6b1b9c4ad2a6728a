// How an element-wise op walks over tensors of equal shape and any strides. Host code, no torch.
//
// Dimensions are put into an operand's memory order and merged where all operands allow it; what is
// innermost then is a row. Operands of the same dense layout become a single row, or one per sample
// where the op has per-sample parameters: that is the fast path, and there is no other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "numeric.h"

namespace roli {

constexpr int kMaxRank = 64;  // torch's own limit
constexpr int kMaxOperands = 5;

// A tensor operand: strides in elements, one per dimension; data is null where there is no tensor.
struct Array {
  void* data = nullptr;
  DType dtype = DType::f32;
  const int64_t* strides = nullptr;
};

struct Shape {
  int rank;
  const int64_t* sizes;
};

// The operands of one call, the first of them the one whose memory order a plan prefers.
struct Operands {
  const Array* arrays[kMaxOperands];
  int count;
};

// How the channel (dimension 1) varies along a row: not at all, or with every element.
enum class Channel { constant, periodic };

struct PlanOptions {
  int sample_dim = 0;          // of the shape; channels are the next one. -1: the shape is one sample's
  bool per_sample = false;     // a row must not span samples
  bool per_channel = false;    // the op needs to know each element's channel
  bool logical_order = false;  // a row is a run of logical (row-major) elements
};

struct Plan {
  int64_t length;  // elements in a row
  int64_t row_stride[kMaxOperands];
  int64_t rows;
  int rank;  // dimensions over which rows are counted, outermost first
  int64_t size[kMaxRank];
  int64_t stride[kMaxOperands][kMaxRank];
  int sample_dim;   // which of them counts samples; -1: there is one sample, or rows span samples
  int channel_dim;  // which of them counts channels; -1: there is one channel, or rows repeat them
  Channel channel;
  int64_t chunk;  // rows are cut into chunks of at most this length, the unit of parallel work
  int64_t chunks_per_row;
  int64_t samples = 1;  // that all have this plan, sample_stride apart
  int64_t sample_stride[kMaxOperands] = {};

  int64_t chunks() const { return rows * chunks_per_row; }
  int64_t elements() const { return rows * length; }
};

// 128 KiB of float32: small enough to share evenly, long enough that starting a chunk costs nothing.
constexpr int64_t kMaxChunk = 1 << 15;

// Dimensions in an order, the innermost first, merged where all operands allow it.
struct MergedDims {
  int count = 0;
  int sample_at = -1, channel_at = -1;
  int64_t size[kMaxRank], stride[kMaxOperands][kMaxRank];
};

// The dimensions of a size above 1, sorted by the magnitude of these strides, the innermost last; null keeps
// the logical order. Returns how many there are.
inline int order_dims(int* order, const int64_t* strides, Shape shape, const PlanOptions& options) {
  // By insertion: stable, and cheaper than a library's sort for the handful that there are.
  const auto apart = [&](int d) { return strides[d] < 0 ? -strides[d] : strides[d]; };
  int kept = 0;
  for (int d = 0; d < shape.rank; ++d) {
    if (shape.sizes[d] == 1) continue;
    int at = kept++;
    for (; strides && at > 0 && order[at - 1] != options.sample_dim && apart(order[at - 1]) < apart(d); --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  return kept;
}

inline void merge_dims(MergedDims& merged, const int* order, int kept, Shape shape, const Operands& operands,
                       const PlanOptions& options) {
  for (int i = kept - 1; i >= 0; --i) {
    const int d = order[i], last = merged.count - 1;
    const bool is_sample = options.per_sample && d == options.sample_dim;
    const bool is_channel = options.per_channel && d == options.sample_dim + 1;
    // Other dimensions may be merged into an innermost channel dimension: the row then repeats its channels.
    bool merge = last >= 0 && !is_sample && !is_channel && (merged.channel_at != last || last == 0);
    for (int k = 0; k < operands.count && merge; ++k)
      merge = operands.arrays[k]->strides[d] == merged.stride[k][last] * merged.size[last];
    if (merge) {
      merged.size[last] *= shape.sizes[d];
      continue;
    }
    if (is_sample) merged.sample_at = merged.count;
    if (is_channel) merged.channel_at = merged.count;
    merged.size[merged.count] = shape.sizes[d];
    for (int k = 0; k < operands.count; ++k) merged.stride[k][merged.count] = operands.arrays[k]->strides[d];
    ++merged.count;
  }
}

// In the order of these strides; null keeps the logical order.
inline void plan_in_order(Plan& plan, const int64_t* strides, Shape shape, const Operands& operands,
                          const PlanOptions& options) {
  int order[kMaxRank];
  const int kept = order_dims(order, strides, shape, options);
  MergedDims merged;
  merge_dims(merged, order, kept, shape, operands, options);

  plan.length = plan.rows = 1;
  plan.rank = 0;
  plan.sample_dim = plan.channel_dim = -1;
  plan.channel = merged.channel_at == 0 ? Channel::periodic : Channel::constant;
  const bool has_row = merged.count > 0 && merged.sample_at != 0;
  for (int k = 0; k < operands.count; ++k) plan.row_stride[k] = has_row ? merged.stride[k][0] : 1;
  if (has_row) plan.length = merged.size[0];
  for (int i = merged.count - 1; i >= (has_row ? 1 : 0); --i, ++plan.rank) {
    if (i == merged.sample_at) plan.sample_dim = plan.rank;
    if (i == merged.channel_at) plan.channel_dim = plan.rank;
    plan.size[plan.rank] = merged.size[i];
    for (int k = 0; k < operands.count; ++k) plan.stride[k][plan.rank] = merged.stride[k][i];
    plan.rows *= merged.size[i];
  }
  plan.chunk = std::max<int64_t>(1, std::min(plan.length, kMaxChunk));
  plan.chunks_per_row = (plan.length + plan.chunk - 1) / plan.chunk;
}

// Rows shorter than this spend more on being found than on their elements.
constexpr int64_t kShortRow = 32;

// In the memory order of the first operand; where layouts differ so much that its rows are short (an
// innermost channel of 3), in that of the operand with the longest ones.
inline void make_plan(Plan& plan, Shape shape, const Operands& operands, const PlanOptions& options) {
  const int64_t* order = options.logical_order ? nullptr : operands.arrays[0]->strides;
  plan_in_order(plan, order, shape, operands, options);
  if (options.logical_order || plan.length >= kShortRow) return;
  int longest = 0;
  int64_t length = plan.length;
  for (int k = 1; k < operands.count; ++k) {
    plan_in_order(plan, operands.arrays[k]->strides, shape, operands, options);
    if (plan.length > length) {
      length = plan.length;
      longest = k;
    }
  }
  plan_in_order(plan, operands.arrays[longest]->strides, shape, operands, options);
}

// The plan of one sample, for ops that look at a whole sample before they write to it.
inline void make_sample_plan(Plan& plan, Shape shape, const Operands& operands, PlanOptions options) {
  Array arrays[kMaxOperands];
  Operands of_sample{{}, operands.count};
  plan.samples = shape.sizes[0];
  for (int k = 0; k < operands.count; ++k) {
    arrays[k] = *operands.arrays[k];
    plan.sample_stride[k] = arrays[k].strides[0];
    ++arrays[k].strides;
    of_sample.arrays[k] = &arrays[k];
  }
  options.sample_dim = -1;
  make_plan(plan, {shape.rank - 1, shape.sizes + 1}, of_sample, options);
}

// A chunk: `count` elements of one row, from `begin` on.
struct Chunk {
  int64_t row, begin, count;
  int64_t sample, channel;
  int64_t offset[kMaxOperands];  // of its first element, in elements
};

// Calls visit(chunk) for the chunks [first, last) of the plan. sample: which one, where the plan is one
// sample's.
template <class Visit>
inline void for_each_chunk(const Plan& plan, int operands, int64_t first, int64_t last, Visit&& visit,
                           int64_t sample = 0) {
  for (int64_t index = first; index < last; ++index) {
    Chunk chunk;
    chunk.row = index / plan.chunks_per_row;
    chunk.begin = index % plan.chunks_per_row * plan.chunk;
    chunk.count = std::min(plan.chunk, plan.length - chunk.begin);
    chunk.sample = sample;
    chunk.channel = 0;
    for (int k = 0; k < operands; ++k)
      chunk.offset[k] = sample * plan.sample_stride[k] + chunk.begin * plan.row_stride[k];
    int64_t rest = chunk.row;
    for (int d = plan.rank - 1; d >= 0; --d) {
      const int64_t coordinate = rest % plan.size[d];
      rest /= plan.size[d];
      if (d == plan.sample_dim) chunk.sample = coordinate;
      if (d == plan.channel_dim) chunk.channel = coordinate;
      for (int k = 0; k < operands; ++k) chunk.offset[k] += coordinate * plan.stride[k][d];
    }
    visit(chunk);
  }
}

}  // namespace roli
