// The two ways over dense operands: in packs, and one by one. A body has their index, dense; reads and writes
// a pack; does one element.
#pragma once

#include "index.h"
#include "launch.h"
#include "pack.h"

namespace roli::cuda {

// Packs that a thread moves: 32 bytes of state. Their reads are in flight together.
template <class T>
constexpr int packs = 8 / sizeof(T);

// The number of threads that move so many elements, in packs or one by one.
template <class T>
int64_t threads_for(int64_t elements) {
  constexpr int64_t per_thread = kPack * packs<T>;
  return (elements + per_thread - 1) / per_thread;
}

// In packs; the last elements, too few for one, one by one.
template <class T, class Body>
struct Packed {
  Body body;

  ROLI_FN void operator()(int64_t block, int thread) const {
    const int64_t first = (block * packs<T> * kThreads + thread) * kPack;
    typename Body::Read packed[packs<T>];
    ROLI_UNROLL
    for (int p = 0; p < packs<T>; ++p) {
      const int64_t place = first + p * kThreads * kPack;
      if (place + kPack <= body.dense.count) packed[p] = body.read(place);
    }
    ROLI_UNROLL
    for (int p = 0; p < packs<T>; ++p) {
      const int64_t place = first + p * kThreads * kPack;
      if (place + kPack <= body.dense.count)
        body.write(place, packed[p]);
      else
        for (int64_t i = place; i < body.dense.count; ++i) body.one(i);
    }
  }
};

// Where operands begin where packs cannot: as many elements per thread.
template <class T, class Body>
struct OneByOne {
  Body body;

  ROLI_FN void operator()(int64_t block, int thread) const {
    constexpr int count = kPack * packs<T>;
    const int64_t first = block * count * kThreads + thread;
    ROLI_UNROLL
    for (int i = 0; i < count; ++i)
      if (first + i * kThreads < body.dense.count) body.one(first + i * kThreads);
  }
};

template <class T, class Body>
void launch_packed(const Body& body, Stream stream) {
  launch(Packed<T, Body>{body}, threads_for<T>(body.dense.count), stream);
}

template <class T, class Body>
void launch_one_by_one(const Body& body, Stream stream) {
  launch(OneByOne<T, Body>{body}, threads_for<T>(body.dense.count), stream);
}

}  // namespace roli::cuda
