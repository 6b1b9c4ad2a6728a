"""Every op on every GPU backend and layout, on shapes that end inside packs, blocks and programs.

A script, to be run under a memory checker.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from ops.cases import BY_NAME, LAYOUTS, OPS, arguments
from ops.device import elsewhere

import roli_fast

# The last two: samples that several blocks share, in one kernel or in a kernel for each stage.
SHAPES = [
    (1,),
    (3,),
    (2, 5),
    (1, 2049),
    (3, 3, 5, 7),
    (2, 3, 16, 16),
    (5, 1, 28, 28),
    (2, 3, 65, 63),
    (1, 3, 150, 151),
]

calls = 0
for backend in ("cuda", "triton"):
    with roli_fast.backend(backend):
        for op in OPS:
            call = elsewhere(getattr(roli_fast.ops, op.name), "cuda")
            for shape in SHAPES:
                if "mean" in op.fixed and len(shape) < 2:
                    continue
                for layout in LAYOUTS:
                    given = arguments(op, shape)
                    call(**given | {name: layout(given[name]) for name in op.tensors})
                    calls += 1
                if "out" in op.options and len(shape) > 1:
                    by = arguments(BY_NAME["prepare"], shape)
                    given = arguments(op, shape) | {"mean": by["mean"], "std": by["std"]}
                    call(
                        **given, out=torch.empty(shape, dtype=torch.bfloat16), active=torch.ones(shape[0]) > 0
                    )
                    calls += 1
        call = elsewhere(roli_fast.ops.cross_entropy, "cuda")
        for classes in (1, 10, 31, 1025):
            for layout in LAYOUTS:
                call(layout(torch.randn(5, classes)), torch.tensor([0, 0, -1, 0, classes - 1]))
                calls += 1
torch.cuda.synchronize()
print(f"{calls} calls")
