"""What can be proved about the GPU kernels without a GPU: ``make gpu-static``.

Compiles the CUDA kernels with nvcc and Triton's with Triton for several GPUs, and reads their machine code:
registers, spills, the width of memory accesses, and in PTX the instructions that bit-exact kernels must not
have. ``--json`` prints the evidence for other programs (the tests assert on it). Compiling takes minutes:
``--library`` reads the CUDA kernels of a build instead, the accesses only in files with kernels of a known
form, ``--triton`` compiles the kernels that it names.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMS = (80, 90, 100)
H200_COPY = 4.3e12  # bytes per second, read and written, as measured on a device-to-device copy
IMAGES = 64 * 3 * 224 * 224
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1}

# Contracted, approximate or flushing arithmetic, and what ptxas may contract itself: a product and a sum
# without ".rn" may become one fma.
FORBIDDEN = re.compile(
    r"(?:^|[{;])\s*(?:@!?%p\d+\s+)?"
    r"((?:fma|mad)\.(?!lo|hi|wide)\S+|\S+\.approx\S*|div\.full\S*|\S+\.ftz\S*|(?:add|sub|mul)\.f\d+\S*)\s",
    re.M,
)

# What kernels read and write, by their names.
UPDATED = {
    **dict.fromkeys(("step", "project", "l2_step", "l2_project", "l1_step", "l1_project"), ("adv",)),
    **dict.fromkeys(("apgd_step", "l2_apgd_step"), ("adv", "previous")),
    "momentum": ("momentum",),
    "scale": ("start",),
}


@dataclass
class Kernel:
    """One kernel for one GPU.

    form: dtypes of the operands, "Any" where the kernel asks at run time; empty where strides are any.
    reads, writes: number of global memory instructions by width in bits.
    local: instructions that access local memory, which is where registers spill to.
    """

    backend: str
    name: str
    form: dict[str, str]
    sm: int
    registers: int
    stack: int
    local: int
    reads: dict[int, int]
    writes: dict[int, int]
    forbidden: list[str] = field(default_factory=list)

    @property
    def bytes_per_element(self) -> int | None:
        """What must move: inputs are read, outputs written, and what is updated is both."""
        if not self.form or "Any" in self.form.values():
            return None
        once = sum(BYTES[dtype] for dtype in self.form.values())
        return once + sum(BYTES[self.form[operand]] for operand in UPDATED.get(self.name.split(",")[0], ()))

    @property
    def microseconds(self) -> float | None:
        """The time that these bytes alone take on an H200, for a batch of 64 images of 3x224x224."""
        return self.bytes_per_element and 1e6 * self.bytes_per_element * IMAGES / H200_COPY

    def as_dict(self) -> dict[str, Any]:
        must = {"bytes_per_element": self.bytes_per_element, "microseconds": self.microseconds}
        return asdict(self) | must


# Machine code


def cuobjdump(*arguments: str, folder: str | None = None) -> str:
    from triton.backends import nvidia

    tool = str(Path(next(iter(nvidia.__path__))) / "bin" / "cuobjdump")
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True, cwd=folder).stdout


def read_cubin(cubin: Path, disassemble: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """The functions of a cubin by name: registers, stack, local accesses, reads and writes by width.

    Disassembling takes long. Without it there are no accesses; what is local shows in the stack.
    """
    usage = {}
    for name, found in re.findall(r"Function (\S+):\s+(REG:.*)", cuobjdump("-res-usage", str(cubin))):
        registers, stack, local = (
            int(re.findall(rf"{k}:(\d+)", found)[0]) for k in ("REG", "STACK", "LOCAL")
        )
        usage[name] = {"registers": registers, "stack": stack, "local": local, "reads": {}, "writes": {}}
    if not disassemble:
        yield from usage.items()
        return
    for function in cuobjdump("-sass", str(cubin)).split("Function : ")[1:]:
        name = function.split(maxsplit=1)[0]
        found = Counter(re.findall(r"\b(?:LDL|STL|LDG|STG)(?:\.\w+)*", function))
        local = sum(count for access, count in found.items() if access[:3] in ("LDL", "STL"))
        accesses = {"reads": _widths("LDG", found), "writes": _widths("STG", found)}
        yield name, usage[name] | {"local": local} | accesses


def _widths(instruction: str, found: Counter[str]) -> dict[int, int]:
    """How many there are by the bits that each moves: LDG.E.128 has 128, LDG.E.U16 16, LDG.E 32."""
    known = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
    widths: Counter[int] = Counter()
    for access, count in found.items():
        name, *parts = access.split(".")
        if name == instruction:
            widths[next((known[part] for part in parts if part in known), 32)] += count
    return dict(widths)


def forbidden_in(ptx: str) -> list[str]:
    return sorted(set(FORBIDDEN.findall(ptx)))


# CUDA C++


def find_nvcc() -> str:
    """As cmake/nvcc.cmake does."""
    pip = [
        str(path.parent) for path in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc")
    ]
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [*os.environ["PATH"].split(":"), *homes, "/usr/local/cuda/bin", *pip]
    found = os.environ.get("CUDACXX") or shutil.which("nvcc", path=":".join(folders))
    if not found:
        raise SystemExit("no nvcc (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda, pip's cuda-toolkit[nvcc])")
    return found


def cuda_kernels(sms: tuple[int, ...]) -> Iterator[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            outputs = {(sm, kind): Path(folder, f"{sm}.{kind}") for sm in sms for kind in ("cubin", "ptx")}
            _compile(source, outputs)
            for sm in sms:
                forbidden = _forbidden_by_entry(outputs[sm, "ptx"].read_text())
                yield from _kernels_of(outputs[sm, "cubin"], sm, forbidden)


def cuda_kernels_in(library: Path, sms: tuple[int, ...]) -> Iterator[Kernel]:
    """Those that a build has for these GPUs. Its PTX may be for another."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("elf", "ptx"):
            cuobjdump(f"-x{kind}", "all", str(library.resolve()), folder=folder)
        forbidden = {}
        for ptx in Path(folder).glob("*.ptx"):
            forbidden |= _forbidden_by_entry(ptx.read_text())
        for sm in sms:
            cubins = sorted(Path(folder).glob(f"*.sm_{sm}.cubin"))
            if not cubins or not forbidden:
                raise SystemExit(f"{library.name}: built without {'PTX' if cubins else f'code for sm_{sm}'}")
            for cubin in cubins:
                yield from _kernels_of(cubin, sm, forbidden, only_forms=True)


def _kernels_of(
    cubin: Path, sm: int, forbidden: dict[str, list[str]], only_forms: bool = False
) -> Iterator[Kernel]:
    """only_forms: accesses are looked at only where a kernel has a form that says what they should be."""
    found = dict(read_cubin(cubin, disassemble=False))
    done = subprocess.run(["c++filt", *found], check=True, capture_output=True, text=True)
    names = dict(zip(found, done.stdout.splitlines(), strict=True))
    if not only_forms or any(_cuda_form(name)[1] for name in names.values() if "unused_kernel" not in name):
        found = dict(read_cubin(cubin))
    for mangled, code in found.items():
        demangled = names[mangled]
        if "unused_kernel" in demangled:  # is there to be asked what it was compiled for
            continue
        name, form = _cuda_form(demangled)
        yield Kernel("cuda", name, form, sm, **code, forbidden=forbidden[mangled])


def _compile(source: Path, outputs: dict[tuple[int, str], Path]) -> None:
    """With the flags of the package's own build."""
    flags = (ROOT / "csrc" / "cuda" / "nvcc.flags").read_text().split()
    command = [find_nvcc(), "-std=c++20", *flags, str(source)]
    started = [
        subprocess.Popen([*command, f"-arch=sm_{sm}", f"-{kind}", "-o", str(output)])
        for (sm, kind), output in outputs.items()
    ]
    exit_codes = [process.wait() for process in started]
    if any(exit_codes):
        raise SystemExit(f"nvcc cannot compile {source.name}")


def _forbidden_by_entry(ptx: str) -> dict[str, list[str]]:
    entries = (entry.split("(", 1) for entry in re.split(r"\.entry\s+", ptx)[1:])
    return {name.strip(): forbidden_in(code) for name, code in entries}


OPERANDS = {
    "DenseStep": ("adv", "grad", "clean", "out", "previous"),
    "DenseStart": ("start", "clean"),
    "DensePrepare": ("adv", "out"),
}


def _cuda_form(demangled: str) -> tuple[str, dict[str, str]]:
    """kernel<DenseStep<float, bfloat16, ...>> as ("step", {"adv": "float32", "grad": "bfloat16", ...}).

    One that looks at whole samples by the name of its body, without a form.
    """
    plain = re.sub(r"\(anonymous namespace\)|\w+::|::", "", demangled)
    plain = re.sub(r"Packed<\w+, (Dense\w+<[^<>]*>) ?>", r"\1", plain)
    plain = re.sub(r"OneByOne<\w+, Dense(\w+)<(\w+)[^<>]*> ?>", r"OneByOne\1<\2>", plain)
    body, types = next(iter(re.findall(r" kernel<(\w+)<([^<>]*)> ?>", plain)), ("", ""))
    if not body:
        return re.findall(r"kernel<(.*)>\(", plain)[0].replace(" >", ">"), {}
    c_names = {"float": "float32", "double": "float64", "unsigned char": "uint8"}
    dtypes = [c_names.get(name, name) for name in types.split(", ")]
    if body not in OPERANDS:
        return f"{re.sub(r'(?<!^)(?=[A-Z])', ' ', body).lower()}, {dtypes[0]}", {}
    form = {o: dtype for o, dtype in zip(OPERANDS[body], dtypes, strict=True) if dtype != "None"}
    name = body.removeprefix("Dense").lower()
    if "previous" in form:
        return "apgd_step", form
    return ("project" if name == "step" and "grad" not in form else name), form


# Triton


POINTERS = {"float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16", "uint8": "*u8"}


def triton_forms() -> Iterator[tuple[str, dict[str, str]]]:
    """What is compiled of Triton's kernels: the forms of the benchmarks, and every storage type."""
    mixed = {"grad": "bfloat16", "clean": "uint8", "out": "bfloat16"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "float32"}
    yield "step", {"adv": "float32", "grad": "bfloat16", "clean": "float32"}
    yield "step", {"adv": "float32", "grad": "float16", "clean": "float32"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "uint8"}
    yield "step", {"adv": "float32", "grad": "bfloat16", "clean": "uint8"}
    yield "step", {"adv": "float32", "grad": "bfloat16", "clean": "float32", "out": "bfloat16"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "float32", "out": "float16"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "float32", "out": "float32"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "bfloat16"}
    yield "step", {"adv": "float32", "grad": "float32", "clean": "float16"}
    yield "step", {"adv": "float32", "grad": "float64", "clean": "float64", "out": "float64"}
    yield "step", {"adv": "float64", "grad": "float64", "clean": "float64"}
    yield "step", {"adv": "float64", "grad": "float32", "clean": "uint8", "out": "bfloat16"}
    yield "project", {"adv": "float32", "clean": "float32"}
    yield "apgd_step", {"adv": "float32", "previous": "float32", "grad": "float32", "clean": "float32"}
    yield "apgd_step", {"adv": "float64", "previous": "float64"} | mixed
    for name in ("l2_sums", "l2_step", "l1_step"):
        yield name, {"adv": "float32", "grad": "float32", "clean": "float32"}
        yield name, {"adv": "float64", "grad": "float64", "clean": "float64"}
        yield name, {"adv": "float32"} | mixed
    for name in ("l2_distance", "l2_apgd_step"):
        yield name, {"adv": "float32", "previous": "float32", "grad": "float32", "clean": "float32"}
        yield name, {"adv": "float64", "previous": "float64", "grad": "float64", "clean": "float64"}
        yield name, {"adv": "float32", "previous": "float32"} | mixed
    for name in ("l2_offsets", "l2_project", "l1_project"):
        yield name, {"adv": "float32", "clean": "float32"}
        yield name, {"adv": "float64", "clean": "uint8"}
    for name in ("normal", "laplace"):
        yield name, {"start": "float32"}
        yield name, {"start": "float64"}
    yield "scale", {"start": "float32", "clean": "float32"}
    yield "scale", {"start": "float32", "clean": "uint8"}
    yield "momentum_sums", {"grad": "float32"}
    yield "momentum_sums", {"grad": "float64"}
    yield "momentum", {"momentum": "float32", "grad": "float32"}
    yield "momentum", {"momentum": "float32", "grad": "bfloat16"}
    yield "momentum", {"momentum": "float64", "grad": "float64"}
    yield "keep_best", {"best": "float32", "adv": "float32"}
    yield "keep_best", {"best": "float64", "adv": "float64"}
    yield "best_values", {}
    yield "cross_entropy", {}
    yield "start", {"start": "float32", "clean": "float32"}
    yield "start", {"start": "float32", "clean": "uint8"}
    yield "prepare", {"adv": "float32", "out": "float32"}
    yield "prepare", {"adv": "float32", "out": "bfloat16"}
    yield "prepare", {"adv": "float32", "out": "float16"}


@dataclass(frozen=True)
class Variant:
    """How a kernel is called: with which of its optional tensors, and over how many elements."""

    name: str = ""  # of the plain call: aligned tensors, numbers for sizes, no mask
    tensors: tuple[str, ...] = ()
    constants: dict[str, bool] = field(default_factory=dict)


PLAIN = Variant()
VARIANTS = (
    Variant(
        "sizes and mask per sample",
        ("step_sizes", "epsilons", "momenta", "sparsities", "active"),
        {"PER_SAMPLE": True},
    ),
    Variant("index, eps per sample, odd samples", ("epsilons", "index"), {"WHOLE": False}),
    Variant("beyond 32 bits", (), {"WIDE": True}),
)


def triton_kernels(sms: tuple[int, ...], only: list[str] | None = None) -> Iterator[Kernel]:
    """Every form as a plain call, and the first form of each kernel in every variant that it knows."""
    seen = set()
    kernels = _triton_functions()
    for name, form in triton_forms():
        if only and name not in only:
            continue
        arguments = kernels[name][0].arg_names
        known = (v for v in VARIANTS if {*v.tensors, *v.constants} & {*arguments})
        for variant in (PLAIN,) if name in seen else (PLAIN, *known):
            for sm in sms:
                code, ptx = _compile_triton(*kernels[name], form, variant, sm)
                label = f"{name}, {variant.name}" if variant.name else name
                yield Kernel("triton", label, form, sm, **code, forbidden=forbidden_in(ptx))
        seen.add(name)


def _triton_functions() -> dict[str, tuple[Any, dict[str, Any]]]:
    """By the names of the forms: kernels, and the constants and options that tell their uses apart."""
    from roli_fast.kernels import (
        cross_entropy,
        direction,
        draws,
        keep_best,
        l1,
        l2,
        layout,
        linf,
        momentum,
        prepare,
    )

    large = {"num_warps": layout.LARGE_WARPS, "BLOCK": layout.LARGE_BLOCK}
    return {
        **dict.fromkeys(("step", "apgd_step", "project"), (linf.step_kernel, {})),
        "start": (linf.start_kernel, {}),
        "prepare": (prepare.prepare_kernel, {}),
        **dict.fromkeys(("l2_sums", "l2_offsets"), (direction.sums_kernel, {"POWER": 2})),
        "l2_distance": (l2.step_kernel, {"MEASURE": True}),
        **dict.fromkeys(("l2_step", "l2_apgd_step", "l2_project"), (l2.step_kernel, {"MEASURE": False})),
        **dict.fromkeys(("l1_step", "l1_project"), (l1.step_kernel, large)),
        "normal": (draws.draw_kernel, {"LAPLACE": False}),
        "laplace": (draws.draw_kernel, {"LAPLACE": True}),
        "scale": (draws.scale_kernel, {"LAPLACE": False}),
        "momentum_sums": (direction.sums_kernel, {"POWER": 1}),
        "momentum": (momentum.momentum_kernel, {}),
        "keep_best": (keep_best.keep_kernel, {}),
        "best_values": (keep_best.values_kernel, {}),
        "cross_entropy": (cross_entropy.cross_entropy_kernel, {}),
    }


def _compile_triton(
    kernel: Any, constants: dict[str, Any], form: dict[str, str], variant: Variant, sm: int
) -> tuple[dict[str, Any], str]:
    import triton
    from roli_fast.kernels import layout
    from triton.backends.compiler import GPUTarget

    source = _triton_source(kernel, constants, form, variant)
    options = layout.OPTIONS | {k: v for k, v in constants.items() if k in layout.OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        ((_, code),) = read_cubin(Path(file.name))
    return code, compiled.asm["ptx"]


def _triton_source(kernel: Any, constants: dict[str, Any], form: dict[str, str], variant: Variant) -> Any:
    """The kernel specialised as a call of this form and variant would have it."""
    from roli_fast.kernels import layout
    from triton.compiler import ASTSource

    state = POINTERS[next(iter(form.values()), "float32")]
    numbers = ("step_size", "eps", "momentum", "sparsity", "decay", "lo", "hi")
    types = dict.fromkeys(numbers, "fp64") | {"seed": "*i64", "best_value": state, "value": state}
    types |= dict.fromkeys(("partials", "distances", "logarithm", "radius", "loss"), "*fp64")
    types |= {"logits": state, "slope": state, "labels": "*i64"}
    types |= {operand: POINTERS[dtype] for operand, dtype in form.items()}
    types |= dict.fromkeys(("mean", "std"), state) if "out" in form else {}
    types |= {tensor: {"active": "*i1", "index": "*i64"}.get(tensor, state) for tensor in variant.tensors}
    counts = ("count", "samples", "channels", "elements", "parts", "blocks", "classes")
    types |= {a: "i32" for a in kernel.arg_names if a.endswith("stride") or a in counts}
    values = {"PER_SAMPLE": False, "WIDE": False, "WHOLE": True, "BLOCK": layout.BLOCK, "PARTS": layout.PARTS}
    values |= constants | variant.constants

    positions = {argument: (i,) for i, argument in enumerate(kernel.arg_names)}
    return ASTSource(
        kernel,
        {argument: types.get(argument, "constexpr") for argument in positions},
        constexprs={at: values.get(a) for a, at in positions.items() if a not in types},  # None: no tensor
        attrs={
            at: [["tt.divisibility", 16]] for a, at in positions.items() if types.get(a, "").startswith("*")
        },
    )


# The table


def print_table(kernels: list[Kernel]) -> None:
    line = "{:<7} {:<40} {:<63} {:>3} {:>4} {:>6} {:>25} {:>24} {:>6} {:>5}  {}".format
    print(line("", "kernel", "form", "sm", "regs", "spills", "reads", "writes", "B/elem", "us", "forbidden"))
    for k in kernels:
        form = ", ".join(f"{operand} {dtype}" for operand, dtype in k.form.items())
        accesses = (
            " ".join(f"{count}x{bits}" for bits, count in sorted(widths.items(), reverse=True))
            for widths in (k.reads, k.writes)
        )
        must = (k.bytes_per_element, f"{k.microseconds:.1f}") if k.bytes_per_element else ("", "")
        forbidden = " ".join(k.forbidden)
        print(line(k.backend, k.name, form, k.sm, k.registers, k.local, *accesses, *must, forbidden))
    print(
        "reads, writes: memory instructions by bits, those of the tail included. B/elem: bytes that must\n"
        "move per element. us: the time that these alone take for 64x3x224x224 on an H200, at a copy\n"
        f"bandwidth of {H200_COPY / 1e12} TB/s; an estimate."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What can be proved about the GPU kernels without a GPU.")
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")
    parser.add_argument("--sm", type=int, nargs="*", choices=SMS, default=SMS, help="default: all of these")
    parser.add_argument("--library", type=Path, help="read its CUDA kernels instead of compiling them")
    parser.add_argument("--triton", nargs="+", metavar="KERNEL", help="compile these of Triton's, not all")
    arguments = parser.parse_args()
    sms = tuple(arguments.sm)
    cuda = cuda_kernels_in(arguments.library, sms) if arguments.library else cuda_kernels(sms)
    evidence = [*cuda, *triton_kernels(sms, arguments.triton)]
    if arguments.json:
        print(json.dumps([k.as_dict() for k in evidence]))
    else:
        print_table(evidence)
