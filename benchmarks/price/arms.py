"""What is compared."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from .problem import EPS

EPOCHS, PROBING_EPOCHS = 15, 20  # of finetuning, of probing by SGD
RATES = (1e-4, 3e-4, 1e-3)  # of finetuning
SGD = tuple(itertools.product((0.03, 0.1, 0.3), (0.3, 1.0, 3.0)))  # of probing: learning rate, weight decay
# How heads are probed, and the settings among which the first seed chooses: by Rounds, attacks in float32
# or in bfloat16; by 20 epochs of SGD on our engine; on the public code's, with what ours chooses.
ROUNDS_IN = {"rounds": "fp32", "rounds, bf16": "bf16"}
HEADS: dict[str, tuple[tuple[float, ...], ...]] = {
    **dict.fromkeys(ROUNDS_IN, ((),)),
    "sgd": SGD,
    "public": ((0.1, 1.0),),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """head: with which training begins: "random", which is torch's own small one; "paper", RoLI's random one;
        or one of HEADS.
    settings: of the recipe, beside the learning rate. public: whether on the public code's engine.
    carried: whether perturbations are carried from epoch to epoch.
    epochs: None where the head is all that trains."""

    head: str
    epochs: int | None = EPOCHS
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    public: bool = False
    carried: bool = False


_HALF_STEP = {"steps": 1, "step_size": EPS / 2}
NFGSM = {"attack": "nfgsm"}
ARMS = {
    "Linear, 20 epochs of SGD": Arm("sgd", None),
    "Linear, public code": Arm("public", None, public=True),
    "Linear, rounds": Arm("rounds", None),
    "RanLI Full-FT": Arm("random"),
    "RanLI Full-FT, the paper's head": Arm("paper"),
    "RoLI Full-FT, 20 epochs of SGD": Arm("sgd"),
    "RoLI Full-FT, rounds": Arm("rounds"),
    "RoLI Full-FT, rounds, N-FGSM": Arm("rounds", settings=NFGSM),
    "RoLI Full-FT, rounds, N-FGSM, bf16": Arm("rounds, bf16", settings=NFGSM | {"precision": "bf16"}),
    "RoLI Full-FT, rounds, carried": Arm("rounds", settings=_HALF_STEP, carried=True),
    "RanLI Full-FT, twice as long": Arm("random", 2 * EPOCHS),
    "RanLI Full-FT, PGD-2": Arm("random", settings={"steps": 2, "step_size": EPS / 2}),
    "RanLI Full-FT, PGD-3": Arm("random", settings={"steps": 3, "step_size": EPS / 2}),
    "RanLI Full-FT, N-FGSM": Arm("random", settings=NFGSM),
    "RanLI Full-FT, N-FGSM, 20 epochs": Arm("random", 20, NFGSM),  # as many passes as RoLI by it in all
    "RanLI Full-FT, public code": Arm("random", public=True),
    "RoLI Full-FT, public code": Arm("public", public=True),
}

RANLI, ROUNDS = "RanLI Full-FT", "RoLI Full-FT, rounds"
CHEAPEST = "RoLI Full-FT, rounds, N-FGSM"
MAIN = (RANLI, ROUNDS, CHEAPEST, "Linear, rounds")
# The public code's engine learns what ours learns, which one size shows; its price is timed.
PUBLIC_SIZE = 50


def by_importance(name: str) -> tuple[int, bool]:
    return (MAIN.index(name) if name in MAIN else len(MAIN), not ARMS[name].public)


def of_size(arms: Sequence[str] | None, size: int) -> list[str]:
    """Of all arms those that are trained at this size, or of those asked for, all; the main ones first."""
    if arms is None:
        arms = [name for name, arm in ARMS.items() if size == PUBLIC_SIZE or not arm.public]
    return sorted(arms, key=by_importance)
