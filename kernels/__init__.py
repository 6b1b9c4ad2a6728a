"""The ops as Triton kernels, one file per family; installed as ``roli_fast.kernels``.

``roli_fast.ops`` has checked the arguments, and gives all of them by name. Float numbers are declared fp64,
which Triton would otherwise cut to fp32, and are rounded to the state's dtype inside, as the other backends
do.
"""
