// The CUDA kernels' launchers. No torch: checked ops on raw pointers of the current device, and a stream.
#pragma once

#include "../common/ops.h"

struct CUstream_st;

namespace roli::cuda {

using Stream = CUstream_st*;  // cudaStream_t

void run(LinfStep& op, Shape shape, Stream stream);
void run(LinfStart& op, Shape shape, Stream stream);
void run(Prepare& op, Shape shape, Stream stream);

}  // namespace roli::cuda
