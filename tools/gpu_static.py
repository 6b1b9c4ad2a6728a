"""What can be proved about the GPU kernels without a GPU: ``make gpu-static``.

Compiles the CUDA kernels with nvcc and Triton's with Triton for several GPUs, and reads their machine code:
registers, spills, the width of memory accesses, and in PTX the instructions that bit-exact kernels must not
have. ``--json`` prints the evidence for other programs (the tests assert on it).
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

ROOT = Path(__file__).resolve().parents[1]
SMS = (80, 90, 100)
H200_COPY = 4.3e12  # bytes per second, read and written, as measured on a device-to-device copy
IMAGES = 64 * 3 * 224 * 224
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1}

# Contracted, approximate or flushing arithmetic: other bits than the CPU's.
FORBIDDEN = re.compile(
    r"^\s*(?:@%p\d+\s+)?((?:fma|mad)\.(?:rn|rz)\S*|\S+\.approx\S*|div\.full\S*|\S+\.ftz\S*)\s", re.M
)


@dataclass
class Kernel:
    """One kernel for one GPU.

    form: dtypes of the operands; empty for kernels that ask for them at run time.
    reads, writes: number of global memory instructions by width in bits.
    local: instructions that access local memory, which holds spilled registers.
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
        """What must move: inputs are read, outputs written, and a step's adv is both."""
        if not self.form:
            return None
        once = sum(BYTES[dtype] for dtype in self.form.values())
        return once + BYTES[self.form["adv"]] if self.name in ("step", "project") else once

    @property
    def microseconds(self) -> float | None:
        """The time that these bytes alone take on an H200, for a batch of 64 images of 3x224x224."""
        return self.bytes_per_element and 1e6 * self.bytes_per_element * IMAGES / H200_COPY


def find_nvcc() -> str:
    pip = [
        str(path.parent) for path in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc")
    ]
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [*os.environ["PATH"].split(":"), *homes, "/usr/local/cuda/bin", *pip]
    found = os.environ.get("CUDACXX") or shutil.which("nvcc", path=":".join(folders))
    if not found:
        raise SystemExit(
            "gpu_static: no nvcc (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda, pip's cuda-toolkit[nvcc])"
        )
    return found


def cuobjdump(*arguments: str) -> str:
    from triton.backends import nvidia

    tool = Path(nvidia.__path__[0] if hasattr(nvidia, "__path__") else nvidia.__file__) / "bin" / "cuobjdump"
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout


def read_machine_code(cubin: Path) -> Iterator[tuple[str, dict]]:
    """The functions of a cubin by name: registers, stack, local accesses, widths of reads and writes."""
    usage = dict(re.findall(r"Function (\S+):\s+(REG:\d+ STACK:\d+)", cuobjdump("-res-usage", str(cubin))))
    for function in cuobjdump("-sass", str(cubin)).split("Function : ")[1:]:
        name = function.split(maxsplit=1)[0]
        registers, stack = re.findall(r"\d+", usage[name])
        yield (
            name,
            {
                "registers": int(registers),
                "stack": int(stack),
                "local": len(re.findall(r"\b(?:LDL|STL)\b", function)),
                "reads": _widths("LDG", function),
                "writes": _widths("STG", function),
            },
        )


def _widths(instruction: str, sass: str) -> dict[int, int]:
    widths: Counter[int] = Counter()
    for suffixes in re.findall(rf"\b{instruction}((?:\.\w+)*)", sass):
        parts = suffixes.split(".")
        narrow = re.search(r"\.[US](8|16)\b", suffixes)
        wide = [int(part) for part in parts if part in ("64", "128", "256")]
        widths[int(narrow[1]) if narrow else wide[0] if wide else 32] += 1
    return dict(widths)


def forbidden_in(ptx: str) -> list[str]:
    return sorted({found for found in FORBIDDEN.findall(ptx)})


# CUDA C++


def cuda_kernels() -> Iterator[Kernel]:
    flags = (ROOT / "csrc" / "cuda" / "nvcc.flags").read_text().split()
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            processes = [
                subprocess.Popen(
                    [
                        find_nvcc(),
                        "-std=c++20",
                        *flags,
                        f"-arch=sm_{sm}",
                        f"-{kind}",
                        "-o",
                        f"{folder}/{sm}.{kind}",
                        str(source),
                    ]  # fmt: skip
                )
                for sm in SMS
                for kind in ("cubin", "ptx")
            ]
            if any(process.wait() for process in processes):
                raise SystemExit(f"gpu_static: nvcc cannot compile {source.name}")
            for sm in SMS:
                forbidden = _forbidden_by_entry(Path(folder, f"{sm}.ptx").read_text())
                for mangled, code in read_machine_code(Path(folder, f"{sm}.cubin")):
                    name, form = _cuda_form(mangled)
                    yield Kernel("cuda", name, form, sm, **code, forbidden=forbidden[mangled])


def _forbidden_by_entry(ptx: str) -> dict[str, list[str]]:
    entries = re.split(r"\.entry\s+", ptx)[1:]
    return {re.match(r"\w+", entry)[0]: forbidden_in(entry) for entry in entries}  # type: ignore[index]


def _cuda_form(mangled: str) -> tuple[str, dict[str, str]]:
    """DenseStep<float, roli::bfloat16, ...> as ("step", {"adv": "float32", "grad": "bfloat16", ...})."""
    demangled = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True).stdout
    demangled = re.sub(r"\(anonymous namespace\)|\w+::|::", "", demangled)
    body, types = re.search(r"kernel<(\w+)<([^<>]*)> ?>", demangled).groups()  # type: ignore[union-attr]
    named = {"float": "float32", "double": "float64", "unsigned char": "uint8"}
    dtypes = [named.get(t.strip(), t.strip()) for t in types.split(",")]
    operands = {"DenseStep": ("adv", "grad", "clean", "out"), "DenseStart": ("start", "clean"),
                "DensePrepare": ("adv", "out")}.get(body, ())  # fmt: skip
    form = dict(zip(operands, dtypes, strict=False))
    if "Any" in form.values() or not form:
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", body).lower()
        return f"{words} {dtypes[0]}, any dtypes" if form else f"{words} {dtypes[0]}", {}
    form = {operand: dtype for operand, dtype in form.items() if dtype != "None"}
    name = body.removeprefix("Dense").lower()
    return ("project" if name == "step" and "grad" not in form else name), form


# Triton


def triton_forms() -> Iterator[tuple[str, dict[str, str]]]:
    """What is compiled of Triton's kernels: the forms of the benchmarks, and each dtype once."""
    f32 = {"adv": "float32", "grad": "float32", "clean": "float32"}
    for grad, clean, out in [
        ("float32", "float32", None),
        ("bfloat16", "float32", None),
        ("float16", "float32", None),
        ("float32", "uint8", None),
        ("bfloat16", "uint8", None),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "float16"),
        ("float32", "float32", "float32"),
    ]:
        yield "step", {"adv": "float32", "grad": grad, "clean": clean} | ({"out": out} if out else {})
    yield "step", dict.fromkeys(f32, "float64")
    yield "project", {"adv": "float32", "clean": "float32"}
    yield "start", {"start": "float32", "clean": "float32"}
    yield "start", {"start": "float32", "clean": "uint8"}
    for out in ("float32", "bfloat16", "float16"):
        yield "prepare", {"adv": "float32", "out": out}


def triton_kernels() -> Iterator[Kernel]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from roli_fast.kernels import layout, linf, prepare

    jitted = {"step": linf.step_kernel, "project": linf.step_kernel, "start": linf.start_kernel,
              "prepare": prepare.prepare_kernel}  # fmt: skip
    types = {"float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16", "uint8": "*u8"}
    constants = {"PER_SAMPLE": False, "WIDE": False, "WHOLE": True, "BLOCK": layout.BLOCK}
    for name, form in triton_forms():
        state = types[form.get("adv", form.get("start", ""))]
        kernel = jitted[name]
        signature, values, aligned = {}, {}, {}
        for i, argument in enumerate(kernel.arg_names):
            pointer = types.get(form.get(argument, ""))
            if argument in ("mean", "std") and "out" in form:
                pointer = state
            if argument == "seed":
                pointer = "*i64"
            if pointer:
                signature[argument], aligned[(i,)] = pointer, [["tt.divisibility", 16]]
            elif argument in ("step_size", "eps", "lo", "hi"):
                signature[argument] = "fp64"
            elif argument.endswith("stride") or argument in ("count", "samples", "channels", "elements"):
                signature[argument] = "i32"
            else:  # a constant, or a tensor that is not there
                signature[argument], values[(i,)] = "constexpr", constants.get(argument)
        source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
        for sm in SMS:
            compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=layout.OPTIONS)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                Path(file.name).write_bytes(compiled.asm["cubin"])
                ((_, code),) = read_machine_code(Path(file.name))
            yield Kernel("triton", name, form, sm, **code, forbidden=forbidden_in(compiled.asm["ptx"]))


def evidence() -> list[Kernel]:
    return [*cuda_kernels(), *triton_kernels()]


def _print(kernels: list[Kernel]) -> None:
    line = "{:<7} {:<22} {:<42} {:>5} {:>5} {:>6} {:>24} {:>18} {:>6} {:>8}  {}".format
    print(line("", "kernel", "form", "sm", "regs", "spills", "reads by bits", "writes by bits", "B/elem",
               "us", "forbidden"))  # fmt: skip
    for k in kernels:
        form = ", ".join(f"{operand} {dtype}" for operand, dtype in k.form.items())
        widths = [
            " ".join(f"{n}x{w}" for w, n in sorted(c.items(), reverse=True)) for c in (k.reads, k.writes)
        ]
        time = "" if k.microseconds is None else f"{k.microseconds:.1f}"
        print(line(k.backend, k.name, form, k.sm, k.registers, k.local, *widths, k.bytes_per_element or "", time,
                   " ".join(k.forbidden)))  # fmt: skip
    print(
        f"B/elem: bytes that must move per element. us: the time that they alone take for 64x3x224x224 on an H200\n"
        f"at {H200_COPY / 1e12} TB/s of copy bandwidth, an estimate. Reads and writes include those of the tails."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")
    arguments = parser.parse_args()
    found = evidence()
    if arguments.json:
        print(json.dumps([asdict(k) | {"bytes_per_element": k.bytes_per_element} for k in found]))
    else:
        _print(found)
