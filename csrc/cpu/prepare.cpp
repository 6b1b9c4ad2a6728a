// The model's input, compiled once per instruction set (ROLI_ISA).
#include <algorithm>
#include <memory>
#include <type_traits>

#include "isa.h"

namespace roli::cpu::ROLI_ISA {
namespace {

#include "blocks.h"

template <class T>
void prepare(const Prepare& op, int64_t first, int64_t last) {
  enum { kOut, kAdv };
  const Normalizer<T> normalizer(op.normalization, op.plan.channel);
  alignas(64) T buffer[kBlock];
  for_each_block(op.plan, 2, first, last, [&](const Block& block) {
    normalizer.store(op.out, kOut, block, load(op.adv, kAdv, block, buffer));
  });
}

}  // namespace

void prepare_chunks(const Prepare& op, int64_t first, int64_t last) {
  with_state_type(op.adv.dtype, [&](auto tag) { prepare<decltype(tag)>(op, first, last); });
}

}  // namespace roli::cpu::ROLI_ISA
