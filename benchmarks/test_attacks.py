"""PGD on whole models: ours captured, eager and compiled, the peers' loops, and the model alone.

``pytest benchmarks/test_attacks.py --device cuda``, or ``make gpu PARTS=attacks``. Weights are random, labels
the model's own predictions: robust accuracy says whether the attacks are equally strong. Timings are never
asserted on; a contender that fails or leaves the ball fails alone.
"""

import copy
import functools
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD, verify
from roli_fast.engine import PRECISIONS, AttackView
from roli_fast.speed.bare import CALLS_TO_SPEED, model_alone
from roli_fast.speed.memory import peak_bytes
from roli_fast.speed.subjects import labelled, random_images, settle, timm_model
from roli_fast.speed.timing import Call, Measurement, interleaved, quartiles, until_done

from .baselines import loops
from .shared import CLOCK, QUICK, enter, launches

OURS = tuple(f"ours-{precision}" for precision in ("bf16", "tf32", "fp32"))  # captured on a GPU
EAGER = tuple(f"{ours}-eager" for ours in OURS)
ALONE = tuple(ours.replace("ours", "alone") for ours in OURS)
COMPILED = "ours-bf16-compiled"
PEERS = ("torchattacks-autocast", "torchattacks", "foolbox-autocast", "foolbox", "roli")
EVERYONE = (*OURS, *ALONE, *EAGER, *PEERS)
SOME = (*OURS, ALONE[0], EAGER[0], *PEERS)  # where a call takes long

# How many of 255 a random network can lose and is still right on some images: robust accuracies of 4 to 16
# images were 0.4 to 0.7 with these, after PGD-4 to PGD-10 in bf16. None of the times depends on it.
EPS = {"resnet18": 0.5, "resnet50": 0.1, "vit_small_patch16_224": 0.5, "swin_base_patch4_window7_224": 0.2}
# What the last scale of a ResNet's block is. With the ones of timm_model an image is lost to any change.
LAST_SCALE = 0.05


@dataclass(frozen=True)
class Case:
    """trains: an attack and a backward pass to the weights, without the optimiser."""

    model: str
    shape: tuple[int, int, int, int]
    rounds: int
    contenders: tuple[str, ...]
    steps: int = 10
    trains: bool = False

    @property
    def eps(self) -> float:
        return EPS.get(self.model, 0.1) / 255

    @property
    def step_size(self) -> float:
        return self.eps / 4


RESNET18, RESNET50, VIT, SWIN = EPS
CASES = {
    "cpu": {"resnet18-16": Case(RESNET18, (16, 3, 32, 32), 5, (*OURS, *ALONE, *PEERS))},
    # The most important first: a run may end before the last. About two and a half minutes on an H200 by
    # counting operations, a quarter of them for compiling.
    "cuda": {
        "resnet18-128": Case(RESNET18, (128, 3, 32, 32), 20, EVERYONE),
        "swin-b-64": Case(SWIN, (64, 3, 224, 224), 3, (*OURS, ALONE[0], EAGER[0], *PEERS[:2], "roli")),
        "swin-b-64-training": Case(SWIN, (64, 3, 224, 224), 3, (OURS[0], "roli"), steps=7, trains=True),
        "resnet50-64": Case(RESNET50, (64, 3, 224, 224), 5, SOME),
        "vit-s-64": Case(VIT, (64, 3, 224, 224), 5, SOME),
        "resnet18-1024": Case(RESNET18, (1024, 3, 32, 32), 3, SOME),
        "resnet18-128-compiled": Case(RESNET18, (128, 3, 32, 32), 20, (OURS[0], ALONE[0], COMPILED)),
    },
}
TINY = {
    "test-resnet-2": Case("test_resnet", (2, 3, 32, 32), 2, (*EVERYONE, COMPILED), steps=2),
    "test-resnet-2-training": Case("test_resnet", (2, 3, 32, 32), 2, (OURS[0], "roli"), trains=True, steps=2),
}
COUNTED = ("resnet18-128", "test-resnet-2")  # cases whose launches are counted


def cases(device: str) -> dict[str, Case]:
    return TINY if QUICK else CASES[device]


def pytest_generate_tests(metafunc: Any) -> None:
    """A test per case and contender of the device."""
    device = metafunc.config.getoption("--device")
    every = [(device, name, who) for name, case in cases(device).items() for who in case.contenders]
    metafunc.parametrize(("device", "case", "contender"), every)


@dataclass(frozen=True)
class Subject:
    """A model that takes pixels, the same laid out channels-last, and a batch with its own predictions."""

    model: nn.Module
    channels_last: nn.Module
    images: Tensor
    labels: Tensor


def make_subject(case: Case, device: str) -> Subject:
    torch.manual_seed(0)
    model = timm_model(case.model, case.shape[1:])
    network = model.model
    if isinstance(network, timm.models.ResNet):
        if case.shape[-1] == 32 and isinstance(network.conv1, nn.Conv2d):
            network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        for block in network.modules():
            if isinstance(block, (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck)):
                nn.init.constant_(getattr(block, "bn3", block.bn2).weight, LAST_SCALE)
    images = random_images(case.shape[0], case.shape[1:]).to(device)
    model = model.to(device)
    settle(model, [images])
    ((images, labels),) = labelled(model, [images])
    return Subject(model, copy.deepcopy(model).to(memory_format=torch.channels_last), images, labels)


@dataclass(frozen=True)
class Contender:
    """call: returns adversarial images, unless it is no attack. attack: of ours."""

    call: Call
    attack: PGD | None = None
    is_attack: bool = True


Build = Callable[[Case, Subject], Contender]


def ours(case: Case, subject: Subject, precision: str, change: Callable[[PGD, Subject], None]) -> Contender:
    attack = PGD(eps=case.eps, step_size=case.step_size, steps=case.steps, precision=precision)
    change(attack, subject)
    arithmetic = PRECISIONS[precision]

    def call() -> Tensor:
        adv = attack(subject.model, subject.images, subject.labels)
        if case.trains:
            half = torch.autocast(subject.images.device.type, arithmetic.dtype, enabled=arithmetic.is_half)
            with arithmetic.arithmetic(), half:
                loops.backward_to_weights(subject.model, adv, subject.labels)
        return adv

    return Contender(call, attack)


def as_it_is(attack: PGD, subject: Subject) -> None:
    pass


def without_graphs(attack: PGD, subject: Subject) -> None:
    oracle = attack._oracle(subject.model)
    oracle.captured = lambda function, at=0: function  # type: ignore[method-assign]


def compiled(attack: PGD, subject: Subject) -> None:
    """What the view computes with, in place, so that it is still refreshed; captured as ours always is."""
    attack(subject.model, subject.images, subject.labels)  # the copy gets its final dtype
    torch.compiler.reset()
    frozen = attack.view(subject.model)._copy
    assert frozen is not None
    frozen.module.compile(dynamic=False, backend="aot_eager" if QUICK else "inductor")


def alone(case: Case, subject: Subject, precision: str) -> Contender:
    batches = [(subject.images, subject.labels)]
    (call,) = model_alone(AttackView(subject.model, precision=precision), batches, case.steps, precision)
    return Contender(call, is_attack=False)


def peer(case: Case, subject: Subject, loop: Callable[..., Tensor], at_its_best: bool = False) -> Contender:
    """As torch's defaults have it, with TF32 in convolutions alone; or under autocast and channels-last."""
    model = subject.channels_last if at_its_best else subject.model
    layout = torch.channels_last if at_its_best else torch.preserve_format
    images = subject.images.contiguous(memory_format=layout)

    def call() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=at_its_best):
            return loop(model, images, subject.labels, case.eps, case.step_size, case.steps)

    return Contender(call)


def roli(case: Case, subject: Subject) -> Contender:
    return peer(case, subject, loops.roli_batch if case.trains else loops.roli_pgd)


BUILD: dict[str, Build] = {
    **{name: partial(ours, precision=name.split("-")[1], change=as_it_is) for name in OURS},
    **{name: partial(ours, precision=name.split("-")[1], change=without_graphs) for name in EAGER},
    **{name: partial(alone, precision=name.split("-")[1]) for name in ALONE},
    COMPILED: partial(ours, precision="bf16", change=compiled),
    "torchattacks": partial(peer, loop=loops.torchattacks_pgd),
    "torchattacks-autocast": partial(peer, loop=loops.torchattacks_pgd, at_its_best=True),
    "foolbox": partial(peer, loop=loops.foolbox_pgd),
    "foolbox-autocast": partial(peer, loop=loops.foolbox_pgd, at_its_best=True),
    "roli": roli,
}


@dataclass
class Result:
    """errors: what kept a contender from being measured. robust: accuracy under attack, with labels that are
    right for all clean images. peak: bytes on top of model and images, in the first calls. notes: such as
    why there was no graph."""

    measured: Measurement | None = None
    errors: dict[str, str] = field(default_factory=dict)
    robust: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)
    launches: dict[str, int | None] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@functools.cache
def measure(device: str, name: str) -> Result:
    case, result = cases(device)[name], Result()
    try:
        subject = make_subject(case, device)
        there = {who: built for who in case.contenders if (built := try_out(who, case, subject, result))}
        calls = {who: [contender.call] for who, contender in there.items()}
        if calls:
            result.measured = interleaved(calls, case.rounds, 1, until_done, warm_ups=1)
        for who, contender in there.items():
            if contender.attack is not None:
                result.notes[who] = contender.attack._oracle(subject.model).notes
        if device == "cuda" and name in COUNTED:
            count_launches(there, subject, result)
    except Exception as error:  # of all together: each of their tests would only run into it again
        shown = {case.contenders[0]: traceback.format_exc()}
        result.errors = dict.fromkeys(case.contenders, repr(error)) | shown | result.errors
    if device == "cuda":
        gc.collect()  # models and their graphs
        torch.cuda.empty_cache()
    return result


def try_out(who: str, case: Case, subject: Subject, result: Result) -> Contender | None:
    """Builds a contender, brings it to speed and checks what it returns."""
    built: list[Contender] = []
    returned: list[Any] = []

    def first_calls() -> None:
        built.append(BUILD[who](case, subject))
        graphs = subject.images.is_cuda and built[0].attack is not None
        returned[:] = [built[0].call() for _ in range(CALLS_TO_SPEED if graphs else 1)][-1:]

    for model in (subject.model, subject.channels_last):
        model.zero_grad(set_to_none=True)  # what another has left there
    try:
        result.peak[who] = peak_bytes(first_calls, subject.images.device)
        if built[0].is_attack:
            result.robust[who] = robust_accuracy(returned[0], case, subject)
    except Exception:
        result.errors[who] = traceback.format_exc()
        return None
    return built[0]


def robust_accuracy(adv: Tensor, case: Case, subject: Subject) -> float:
    checked = verify(subject.model, subject.images, adv.detach(), subject.labels, "linf", case.eps)
    outside = (~(checked.finite & checked.in_box & checked.in_ball)).sum().item()
    assert outside == 0, f"{outside} images are outside the ball or the box"
    return (~checked.success).double().mean().item()


def count_launches(contenders: dict[str, Contender], subject: Subject, result: Result) -> None:
    """Of whatever does not synchronise: our loop, and torchattacks'."""
    images, labels = subject.images, subject.labels
    for who, contender in contenders.items():
        if who in EAGER and contender.attack is not None:
            attack = contender.attack
            trial = attack._begin(subject.model, images, labels, None, None)
            count = launches(partial(attack._run_whole, trial, trial.rows, 0))
            result.launches |= {who: count, who.removesuffix("-eager"): count}
        elif who.startswith("torchattacks"):
            result.launches[who] = launches(contender.call)


def overhead(measured: Measurement, contender: str) -> dict[str, float] | None:
    """The share of ours, captured, that is not the model's forward and backward."""
    alone = contender.replace("ours", "alone")
    if contender not in OURS or alone not in measured.seconds:
        return None
    pairs = zip(measured.seconds[alone], measured.seconds[contender], strict=True)
    return quartiles([1 - model / everything for model, everything in pairs])


@pytest.mark.benchmark(timer=CLOCK)
def test_attacks(benchmark: Any, record_case: Callable, device: str, case: str, contender: str) -> None:
    result, described = measure(device, case), cases(device)[case]
    if contender in result.errors:
        pytest.fail(result.errors[contender], pytrace=False)
    measured = result.measured
    assert measured is not None
    enter(
        benchmark,
        measured,
        contender,
        case,
        model=described.model,
        shape=described.shape,
        steps=described.steps,
        eps=described.eps,
        trains=described.trains,
        images_per_s=described.shape[0] / measured.seconds_of(contender)["median"],
        robust_accuracy=result.robust.get(contender),
        peak_bytes=result.peak[contender],
        launches=result.launches.get(contender),
        notes=result.notes.get(contender, ()),
        ratio_to={to: measured.ratio(contender, to) for to in OURS if to in measured.seconds},
        overhead=overhead(measured, contender),
    )
    if contender == described.contenders[0]:
        record_case(case, "", measured)
