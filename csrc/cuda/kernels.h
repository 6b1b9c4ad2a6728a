// The CUDA kernels' launchers. No torch: checked ops on raw pointers of the current device, and a stream.
#pragma once

#include <functional>

#include "../common/ops.h"

struct CUstream_st;

namespace roli::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Where kernels run, and where they put what one leaves for the next: memory that may be used again by
// whatever comes after them in the stream.
struct Context {
  Stream stream = nullptr;
  std::function<void*(int64_t bytes)> allocate;
};

void run(LinfStep& op, Shape shape, const Context& context);
void run(LinfStart& op, Shape shape, const Context& context);
void run(Prepare& op, Shape shape, const Context& context);
void run(L2Step& op, Shape shape, const Context& context);
void run(L1Step& op, Shape shape, const Context& context);
void run(L2Start& op, Shape shape, const Context& context);
void run(L1Start& op, Shape shape, const Context& context);
void run(Momentum& op, Shape shape, const Context& context);
void run(KeepBest& op, Shape shape, const Context& context);
void run(CrossEntropy& op, Shape shape, const Context& context);

}  // namespace roli::cuda
