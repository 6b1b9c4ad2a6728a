#include "isa.h"

namespace roli::cpu::ROLI_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    ROLI_ISA_NAME, &linf_step_chunks, &linf_start_chunks, &prepared_chunks, &l2_step,
    &l2_start,     &l1_start,         &momentum,          &l1_step,         &keep_best,
};

}  // namespace roli::cpu::ROLI_ISA
