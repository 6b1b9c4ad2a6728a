// roli_fast._C: what the native build is, and the ops on numpy arrays. Those on tensors are libraries of
// their own.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "numpy_ops.h"

namespace py = pybind11;

namespace {

py::dict build_config() {
  std::vector<std::string> built;
  for (const roli::cpu::Kernels* const* k = roli::cpu::built; *k != nullptr; ++k)
    built.emplace_back((*k)->name);
  py::dict config;
  config["version"] = ROLI_VERSION;
  config["compiler"] = ROLI_COMPILER;
  config["torch"] = ROLI_TORCH_VERSION;
  config["cpu_capabilities"] = built;
  config["cuda"] = ROLI_CUDA_BUILT;
  return config;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native build of roli_fast.";
  m.def("build_config", &build_config,
        "What was compiled: version, compiler, the torch whose headers were used, the CPU instruction "
        "sets, and which nvcc built CUDA kernels for which GPUs, or why none did.");
  m.def(
      "cpu_capability", [] { return std::string(roli::cpu::kernels().name); },
      "The instruction set that the CPU kernels use here. Raises RuntimeError where "
      "ROLI_FAST_CPU_CAPABILITY names one that cannot run.");
  m.def("linf_step_", &roli::numpy::linf_step_, "As roli_fast.numpy.linf_step_; all by position.");
  m.def("linf_project_", &roli::numpy::linf_project_, "As roli_fast.numpy.linf_project_; all by position.");
}
