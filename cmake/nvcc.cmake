# Finds nvcc and says for which GPUs it compiles. Sets nvcc, cuda_architectures (CMake's list) and
# cuda_arch_list (torch's notation), or says in cuda_built why there is none.

# The user's, the system's, or the one that pip installs beside torch (the extra "dev" brings it).
file(GLOB pip_nvcc ${torch_root}/../nvidia/cu*/bin ${torch_root}/../nvidia/cuda_nvcc/bin)
if(NOT "$ENV{CUDACXX}" STREQUAL "")
  set(nvcc "$ENV{CUDACXX}")
else()
  find_program(nvcc nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda ${pip_nvcc} PATH_SUFFIXES bin)
endif()
if(NOT nvcc)
  unset(nvcc)
  set(cuda_built "no: nvcc was not found (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda, pip's cuda-toolkit[nvcc])")
  return()
endif()

# Every GPU from Ampere to Blackwell runs one of these; memory-bound kernels gain nothing from finer ones.
set(cuda_arch_list "$ENV{TORCH_CUDA_ARCH_LIST}")
if(cuda_arch_list STREQUAL "")
  set(cuda_arch_list "8.0;9.0;10.0;12.0+PTX")
endif()
string(REGEX REPLACE "[ ,;]+" ";" cuda_arch_list "${cuda_arch_list}")
set(cuda_architectures "")
foreach(entry IN LISTS cuda_arch_list)
  if(NOT entry MATCHES "^([0-9]+)\\.([0-9][af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: got '${entry}', accepted: 8.0, 9.0a, 12.0+PTX and the like")
  endif()
  set(sm "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
  list(APPEND cuda_architectures ${sm}-real)
  if(CMAKE_MATCH_3)
    list(APPEND cuda_architectures ${sm}-virtual)
  endif()
endforeach()
string(REPLACE ";" " " cuda_arch_list "${cuda_arch_list}")
