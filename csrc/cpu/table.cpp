#include "isa.h"

namespace roli::cpu::ROLI_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    .name = ROLI_ISA_NAME,
    .linf_step = linf_step_chunks,
    .linf_start = linf_start_chunks,
    .l2_step = &l2_step,
    .l2_start = &l2_start,
    .l1_step = l1_step_sample,
    .l1_start = &l1_start,
    .momentum = &momentum,
    .keep_best = keep_best_samples,
    .prepare = prepare_chunks,
    .cross_entropy = cross_entropy_samples,
};

}  // namespace roli::cpu::ROLI_ISA
