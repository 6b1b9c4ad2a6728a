// What lets one header serve the C++ and the CUDA compiler.
#pragma once

// A build may say what it is: where nothing is optimised, code that is inlined takes twice as long to
// compile.
#ifndef ROLI_FN
// Always inlined: the CPU compiles these headers once per instruction set, and an out-of-line copy of
// an AVX-512 instance must never be the one that the linker keeps for the baseline.
#if defined(__CUDACC__)
#define ROLI_FN __host__ __device__ __forceinline__
#else
#define ROLI_FN inline __attribute__((always_inline))
#endif
#endif

// Before a loop over the elements of a small array: on a GPU, only an unrolled one keeps the array in
// registers.
#if defined(__CUDA_ARCH__)
#define ROLI_UNROLL _Pragma("unroll")
#else
#define ROLI_UNROLL
#endif
