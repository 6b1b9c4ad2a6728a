// How a body of work becomes a kernel. A body is a struct of arguments whose operator() does the work of
// one thread, reads nothing that another thread writes and is told its place: that keeps it a function of
// plain C++, and a compiler without CUDA runs the same bodies in loops (the tests do).
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "kernels.h"

namespace roli::cuda {

constexpr int kThreads = 256;  // in a block

// So that a thread may have 64 registers: left to itself, ptxas aims at 40 for some kernels, and spills.
constexpr int kBlocks = 4;  // at least, on a multiprocessor

inline int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

#ifdef __CUDACC__

// The arguments stay in constant memory: no thread makes a copy of its own.
template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks) kernel(const __grid_constant__ Body body) {
  body(blockIdx.x, static_cast<int>(threadIdx.x));
}

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  const bool unfit = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInsufficientDriver ||
                     error == cudaErrorUnsupportedPtxVersion;
  const char* hint =
      unfit ? "; ROLI_FAST_BACKEND=triton compiles kernels for the GPU and driver at hand" : "";
  throw std::runtime_error(std::string("roli_fast: CUDA kernel: ") + cudaGetErrorString(error) + hint);
}

// More blocks than a grid has would be cut off without an error.
inline unsigned int grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::runtime_error("roli_fast: CUDA kernel: more than 2^31 - 1 blocks");
  return static_cast<unsigned int>(blocks);
}

// Starts so many blocks of a kernel on the body.
template <class Body>
void launch_blocks(void (*kernel)(Body), const Body& body, int64_t blocks, Stream stream) {
  static_assert(sizeof(Body) <= 4096, "more than every CUDA driver passes to a kernel");
  kernel<<<grid_of(blocks), kThreads, 0, stream>>>(body);
  check_launch();
}

// Says what all kernels were compiled for. A template, so that several files may have it.
template <class>
__global__ void unused_kernel() {}

// How many blocks can work together, reading each other's shared memory: as many as every GPU since Hopper
// lets form a cluster, where this was compiled for such. Of the current device: a machine may have several
// kinds.
inline int64_t largest_cluster() {
  constexpr int kDevices = 64;  // whose answer is kept
  static std::atomic<int64_t> known[kDevices];
  int device = 0;
  cudaGetDevice(&device);
  if (device < kDevices && known[device] != 0) return known[device];
  cudaFuncAttributes compiled;
  const bool there =
      cudaFuncGetAttributes(&compiled, unused_kernel<void>) == cudaSuccess && compiled.ptxVersion >= 90;
  const int64_t largest = there ? 8 : 1;
  if (device < kDevices) known[device] = largest;
  return largest;
}

// The same for clusters of so many blocks.
template <class Body>
void launch_clusters(void (*kernel)(Body), const Body& body, int64_t blocks, int64_t cluster, Stream stream) {
  if (cluster == 1) return launch_blocks(kernel, body, blocks, stream);
  static_assert(sizeof(Body) <= 4096, "more than every CUDA driver passes to a kernel");
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned int>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid_of(blocks);
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, body);
  check_launch();
}

// Runs the body on at least so many threads, in the stream.
template <class Body>
void launch(const Body& body, int64_t threads, Stream stream) {
  launch_blocks(kernel<Body>, body, blocks_for(threads), stream);
}

#else

inline int64_t largest_cluster() { return 8; }

template <class Body>
void launch(const Body& body, int64_t threads, Stream) {
  for (int64_t block = 0; block < blocks_for(threads); ++block)
    for (int thread = 0; thread < kThreads; ++thread) body(block, thread);
}

#endif

}  // namespace roli::cuda
