"""Where the time of an epoch goes, in each stage and on each engine: training as it is run, with a clock
where one phase gives way to another."""

import contextlib
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from roli_fast.models import find_classifier
from roli_fast.speed.timing import OtherLoad
from roli_fast.training import Recipe, Rounds, history, probe, rounds, train
from roli_fast.training.attack import TrainingAttack
from roli_fast.training.head_fit import HeadFit
from roli_fast.training.learner import Learner

from ..baselines import recipe as public
from . import problem

SIZE = 200  # images of each class, of phases
PHASES = (
    "attack, forward",  # and its steps
    "attack, backward",
    "training, forward",
    "training, backward",
    "optimiser",
    "features",  # of probing by rounds, with their images
    "fits",
    "validation",
    "rest",  # making the model, images, and what keeps account
)
# What a phase is called: where it begins.
PLACES: dict[str, list[tuple[Any, str]]] = {
    "attack, forward": [(public, "attacked"), (TrainingAttack, "__call__")],
    "training, forward": [(public, "step"), (Learner, "step")],
    "optimiser": [(torch.optim.AdamW, "step"), (torch.optim.SGD, "step")],
    "features": [(rounds._Probing, "_pass")],
    "fits": [(HeadFit, "fit")],
    "validation": [(public, "validate"), (history, "evaluate")],
}
# Of the phase that it is called in. A GPU's attack is a graph, in which nobody can look at the clock.
_BACKWARD = [] if problem.DEVICE == "cuda" else [(torch.autograd, "grad"), (torch.autograd, "backward")]


class PhaseClock:
    """Seconds by phase; a phase within another stops the other's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phase, self._since = "rest", time.perf_counter()

    def enter(self, phase: str) -> None:
        if problem.DEVICE == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def wrap(self, call: Callable[..., Any], phase: str | None) -> Callable[..., Any]:
        """phase: None for the backward pass of the phase that it is called in."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            within = self._phase
            self.enter(within.replace("forward", "backward") if phase is None else phase)
            try:
                return call(*args, **kwargs)
            finally:
                self.enter(within)

        return timed

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        places = [(*place, phase) for phase, there in PLACES.items() for place in there]
        places += [(*place, None) for place in _BACKWARD]
        with contextlib.ExitStack() as stack:
            for owner, name, phase in places:
                timed = self.wrap(getattr(owner, name), phase)
                stack.enter_context(mock.patch.object(owner, name, timed))
            self.seconds.clear()
            self._phase, self._since = "rest", time.perf_counter()
            yield
            self.enter("rest")


@functools.cache
def _probed(size: int) -> dict[str, Tensor]:
    """A head's weights."""
    model = problem.backbone(0, "linear")
    probe(model, problem.splits(size), Recipe(1, 1.0, **problem.ATTACK))
    return find_classifier(model).head.state_dict()


def stages(size: int) -> dict[str, Callable[[], object]]:
    """An epoch of each, or of rounds the whole stage. Epochs begin with a probed head: images that withstand
    an attack cost more in validation than others."""
    data, head = problem.splits(size), _probed(size)
    finetuning = problem.FINETUNING | {"epochs": 1, "lr": 1e-4, "warmup_epochs": 0}
    probing = problem.PROBING | {"epochs": 1, "lr": 0.1, "warmup_epochs": 0}

    def of(trains: Callable[..., object], method: str, settings: dict[str, Any], *more: Any) -> object:
        model = problem.backbone(0, method)
        if trains is not probe:
            find_classifier(model).head.load_state_dict(head)
        return trains(model, data, Recipe(**settings), *more)

    bf16, nfgsm = {"precision": "bf16"}, {"attack": "nfgsm"}
    return {
        "probing, public code: an epoch": lambda: of(public.train, "linear", probing),
        "probing, ours: an epoch of SGD": lambda: of(train, "linear", probing),
        "probing, ours: rounds, all of it": lambda: of(probe, "linear", probing, Rounds()),
        "probing, ours, bf16: rounds, all of it": lambda: of(probe, "linear", probing | bf16, Rounds()),
        "finetuning, public code: an epoch": lambda: of(public.train, "full", finetuning),
        "finetuning, ours: an epoch": lambda: of(train, "full", finetuning),
        "finetuning, ours, N-FGSM: an epoch": lambda: of(train, "full", finetuning | nfgsm),
        "finetuning, ours, N-FGSM, bf16: an epoch": lambda: of(train, "full", finetuning | nfgsm | bf16),
    }


def phases(repeats: int) -> dict[str, Any]:
    """Seconds of each phase, per training image: medians over repeats, all stages in turns."""
    clock, load = PhaseClock(), OtherLoad()
    images = len(problem.splits(SIZE).train)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(repeats):
        for name, run in stages(SIZE).items():
            with clock.running():
                run()
            found[name].append({phase: clock.seconds[phase] / images for phase in PHASES})
    medians = {
        name: {phase: statistics.median(run[phase] for run in runs) for phase in PHASES}
        for name, runs in found.items()
    }
    return {
        "images": images,
        "repeats": repeats,
        "other_cores_busy": load.cores(),
        "seconds_per_image": medians,
        "of_each_repeat": {name: [sum(run.values()) for run in runs] for name, runs in found.items()},
    }
