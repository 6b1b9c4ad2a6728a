"""The digests of what the ops compute over a varied set of calls.

As a script it prints them as JSON, so that each environment can have a process of its own.
"""

import hashlib
import itertools
import json

import torch

from roli_fast import _C
from roli_fast.ops import linf_project_, prepare

from ..ops.cases import BY_NAME, LAYOUTS, STATES, TORCH_OPS, arguments, bits, contiguous, copied
from ..ops.test_conversions import HALVES, every, tricky


def computed() -> dict[str, str]:
    digests: dict[str, str] = {}

    def add(name, *tensors):
        content = b"".join(bits(tensor).contiguous().numpy().tobytes() for tensor in tensors)
        digests[name] = hashlib.sha256(content).hexdigest()

    others = itertools.cycle(LAYOUTS[1:])
    for op in TORCH_OPS:
        for dtypes in op.dtypes():
            for shape in [(3, 3, 5, 7), (2, 1111)]:
                for layout in (contiguous, next(others)):
                    given = arguments(op, shape, **dtypes)
                    given |= {name: layout(given[name]) for name in op.tensors}
                    if op.agrees and op.state(given) == torch.float64:
                        continue  # the order of a sum shows, as it may
                    add(f"{op} {shape} {layout.__name__} {dtypes}", *op(**given))

    for length in (*range(1, 70), 1023, 1025, 40_000):
        for op in TORCH_OPS:
            given = arguments(op, (2, length))
            given |= {name: torch.tensor([0.01, 0.3]) for name in op.sizes}
            add(f"{op} of length {length}", *op(**given))

    for layout in LAYOUTS:
        step, by = BY_NAME["linf_step_"], arguments(BY_NAME["prepare"])
        for dtype in (*HALVES, *STATES):
            out = layout(torch.zeros(3, 3, 5, 7, dtype=dtype))
            given = copied(arguments(step)) | {"out": out, "mean": by["mean"], "std": by["std"]}
            add(f"out {layout.__name__} {dtype}", *step(**given, active=torch.tensor([True, False, True])))

    for half in HALVES:
        for state in STATES:
            adv = torch.full((1, 2**16), torch.inf, dtype=state)
            linf_project_(adv, every(half)[None], 0.0, -torch.inf, torch.inf)
            add(f"every {half} to {state}", adv)
            add(f"{state} to {half}", prepare(tricky(half, state)[None], None, None, dtype=half))
    return digests


if __name__ == "__main__":
    print(json.dumps({"capability": _C.cpu_capability(), "digests": computed()}))
