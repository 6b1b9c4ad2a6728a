"""Our PGD and other libraries' on one model: time, memory and robust accuracy, measured side by side.

There are two kinds of columns. In the column of a precision, all contenders have the same conditions: this
precision (peers under autocast if it is a half one), channels-last weights and images, and the model as
training has it. In the column "best", each contender runs in the fastest of its variants. Ours may have any
of the precisions. So may a peer, which also may be channels-last or not, and have parameters that require
gradients or that do not.
"""

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import PGD, verify
from ..checks import brief
from ..engine import PRECISIONS, AttackView
from ..evaluation import Accuracy, difference
from .bare import CALLS_TO_SPEED, model_alone
from .memory import peak_bytes
from .peers import Attack, Build, Settings
from .subjects import Batches
from .timing import Measurement, interleaved, quartiles, until_done

OURS, BARE, BEST = "ours", "model alone", "best"

Quartiles = dict[str, float]
Progress = Callable[[str, int, int], None]  # what is going on, how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Variant:
    """How an attack runs. frozen: whether the model's parameters require no gradients."""

    precision: str
    channels_last: bool = True
    frozen: bool = False

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return ", ".join((self.precision, layout, *(["frozen parameters"] if self.frozen else [])))


@dataclasses.dataclass(frozen=True)
class Robust:
    """Robust accuracy between 0 and 1, with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float
    images: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contender in one column.

    column: a precision that all contenders have in common, or "best".
    variant: how it ran, or None if it did not.
    ms_per_image: milliseconds per image: median, q1 and q3 over rounds.
    ratio: its time as a multiple of ours in the same column, from the ratios within rounds. None if it would
        compare attacks that do not reach the same robust accuracy.
    peak_bytes: the peak of memory on top of model and images, in the first calls of a new attack.
    notes: what went wrong, and why there is no ratio.
    """

    column: str
    contender: str
    variant: str | None
    ms_per_image: Quartiles | None
    ratio: Quartiles | None
    robust: Robust | None
    peak_bytes: int | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All results for one model and one attack, ready for JSON.

    overhead: per precision, the share of our attack's time that is not the model's forward and backward:
        median, q1 and q3 over rounds.
    other_cores: how many cores other processes kept busy meanwhile, or None if that is not known.
    """

    settings: Settings
    shape: tuple[int, ...]
    device: str
    rounds: int
    entries: tuple[Entry, ...]
    overhead: dict[str, Quartiles]
    other_cores: float | None


def compare(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    precisions: Sequence[str] = ("fp32", "bf16"),
    peers: Mapping[str, Build],
    rounds: int = 7,
    progress: Progress = lambda what, done, of: None,
) -> Comparison:
    """Measures our PGD and the peers' in turns, in an order drawn anew for each round.

    model: in eval mode, on the batches' device; maps images (N, C, H, W) in [0, 1] to logits. It is left as
        it is.
    batches: at least one, all of one shape and with N of at least 2; rounds take them in turn.
    precisions: one column each, and the precisions from which "best" is chosen.
    peers: by name, see :func:`roli_fast.speed.peers.find`. An error that one of them raises is noted.
    rounds: at least 2.
    """
    bench = _Bench(model, batches, settings, peers)
    trials: dict[tuple[str, Variant], _Trial] = {}
    variants = bench.variants(precisions)
    for done, who in enumerate(variants):
        progress("trying", done, len(variants))
        trials[who] = bench.try_out(*who)
    picks = {(precision, name): Variant(precision) for precision in precisions for name in bench.names}
    picks |= _fastest({who: trial.seconds for who, trial in trials.items()}, trials)
    contenders = {_key(*who): bench.calls(*who) for who in _that_run(picks, trials)}
    for precision in precisions:
        if _key(OURS, Variant(precision)) in contenders:
            contenders[_key(BARE, Variant(precision))] = bench.model_alone(precision)
    measured = _measure(contenders, rounds, progress)
    # In a few calls, another one may have seemed the fastest.
    ran = _that_run(picks, trials)
    picks |= _fastest({who: measured.seconds_of(_key(*who))["median"] for who in ran}, trials)
    peaks = {who: bench.peak(*who) for who in _that_run(picks, trials)}
    findings = _Findings(picks, trials, measured, peaks, len(batches[0][0]))
    return Comparison(
        settings=settings,
        shape=tuple(batches[0][0].shape),
        device=str(batches[0][0].device),
        rounds=rounds,
        entries=tuple(findings.entry(*place) for place in picks),
        overhead={p: share for p in precisions if (share := findings.overhead(p)) is not None},
        other_cores=measured.other_cores,
    )


def _measure(
    contenders: Mapping[str, Sequence[Callable[[], Any]]], rounds: int, progress: Progress
) -> Measurement:
    counter, total = itertools.count(1), rounds * len(contenders)

    def stopwatch(call: Callable[[], object], repeats: int) -> float:
        seconds = until_done(call, repeats)
        progress("measuring", next(counter), total)
        return seconds

    return interleaved(contenders, rounds, 1, stopwatch, warm_ups=1)


def _key(name: str, variant: Variant) -> str:
    return f"{name}: {variant}"


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What a variant did when it was tried.

    seconds: the time of its fastest call.
    robust: None if it raised the error.
    stays: whether it stayed in the ball and the box.
    """

    seconds: float = math.inf
    robust: Accuracy | None = None
    stays: bool = False
    error: str | None = None


class _Ours:
    def __init__(self, model: nn.Module, settings: Settings, precision: str):
        self._model, self._attack = model, PGD(**dataclasses.asdict(settings), precision=precision)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._attack(self._model, images, labels)

    def view(self) -> AttackView:
        return self._attack.view(self._model)


class _Bench:
    """Builds the attacks that are measured."""

    def __init__(self, model: nn.Module, batches: Batches, settings: Settings, peers: Mapping[str, Build]):
        self._model, self._batches, self._settings, self._peers = model, batches, settings, peers
        self._copies: dict[tuple[bool, bool], nn.Module] = {}
        self._attacks: dict[tuple[str, Variant], Attack] = {}
        self.device = batches[0][0].device
        self.names = (OURS, *peers)

    def variants(self, precisions: Sequence[str]) -> list[tuple[str, Variant]]:
        ours = [(OURS, Variant(precision)) for precision in precisions]
        every = itertools.product(precisions, (True, False), (False, True))
        ways = [Variant(*choice) for choice in every]
        return ours + [(name, variant) for name in self._peers for variant in ways]

    def try_out(self, name: str, variant: Variant) -> _Trial:
        """Runs the variant until it is at full speed, on every batch at least once, and checks its
        results."""
        try:
            calls = self.calls(name, variant)
            done = [_timed(calls[i % len(calls)]) for i in range(max(CALLS_TO_SPEED, len(calls)))]
            checks = [self._verify(returned, i) for i, (_, returned) in enumerate(done[: len(calls)])]
        except Exception as error:  # whatever others' code does here
            return _Trial(error=brief(error))
        robust = Accuracy(torch.cat([right for right, _ in checks]))
        return _Trial(min(seconds for seconds, _ in done), robust, all(inside for _, inside in checks))

    def calls(self, name: str, variant: Variant) -> list[Callable[[], Any]]:
        """One call of the attack for each of the batches."""
        if (name, variant) not in self._attacks:
            self._attacks[name, variant] = self._attack(name, variant)
        attack = self._attacks[name, variant]
        inputs = [(self._laid_out(images, variant), labels) for images, labels in self._batches]
        return [partial(attack, *of_a_batch) for of_a_batch in inputs]

    def model_alone(self, precision: str) -> list[Callable[[], Any]]:
        """The model's passes, on the copy that the attack computes with: where weights lie in memory changes
        times by several percent."""
        own = self._attacks[OURS, Variant(precision)]
        assert isinstance(own, _Ours)
        return model_alone(own.view(), self._batches, self._settings.steps, precision)

    def peak(self, name: str, variant: Variant) -> int:
        images, labels = self._batches[0]
        images = self._laid_out(images, variant)
        model = self._copy(variant)
        model.zero_grad(set_to_none=True)  # what a peer has left there

        def first_calls() -> None:
            attack = self._attack(name, variant)
            for _ in range(CALLS_TO_SPEED if self.device.type == "cuda" else 1):
                attack(images, labels)

        return peak_bytes(first_calls, self.device)

    def _attack(self, name: str, variant: Variant) -> Attack:
        model, settings = self._copy(variant), self._settings
        if name == OURS:
            return _Ours(model, settings, variant.precision)
        with _arithmetic(variant.precision, self.device):
            theirs = self._peers[name](model, settings, self._laid_out(self._batches[0][0], variant))

        def run(images: Tensor, labels: Tensor) -> Tensor:
            with _arithmetic(variant.precision, self.device):
                return theirs(images, labels)

        return run

    def _copy(self, variant: Variant) -> nn.Module:
        kind = variant.channels_last, variant.frozen
        if kind not in self._copies:
            model = copy.deepcopy(self._model).requires_grad_(not variant.frozen)
            self._copies[kind] = model.to(memory_format=_layout(variant))
        return self._copies[kind]

    def _laid_out(self, images: Tensor, variant: Variant) -> Tensor:
        return images.contiguous(memory_format=_layout(variant))

    def _verify(self, adversarial: Tensor, batch: int) -> tuple[Tensor, bool]:
        """Returns which images the model still gets right, (N,) bool, and whether all are finite, in the box
        and in the ball."""
        images, labels = self._batches[batch]
        norm, eps = self._settings.norm, self._settings.eps
        checked = verify(self._model, images, adversarial.detach(), labels, norm, eps)
        inside = (checked.finite & checked.in_box & checked.in_ball).all()
        return (checked.prediction == labels).cpu(), bool(inside)


def _timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    returned: list[Tensor] = []
    return until_done(lambda: returned.append(call()), 1), returned[0]


def _layout(variant: Variant) -> torch.memory_format:
    return torch.channels_last if variant.channels_last else torch.contiguous_format


@contextlib.contextmanager
def _arithmetic(name: str, device: torch.device) -> Iterator[None]:
    """Gives a peer's call what ours does inside: exact or TF32 products, or autocast."""
    precision = PRECISIONS[name]
    autocast = torch.autocast(device.type, precision.dtype) if precision.is_half else contextlib.nullcontext()
    with precision.arithmetic(), autocast:
        yield


def _fastest(
    seconds: Mapping[tuple[str, Variant], float], trials: Mapping[tuple[str, Variant], _Trial]
) -> dict[tuple[str, str], Variant]:
    """For the column "best", each contender's fastest variant of those with a time: of those that stay in the
    ball, if any does."""
    picks = {}
    for name in dict.fromkeys(name for name, _ in seconds):
        timed = [variant for who, variant in seconds if who == name]
        picks[BEST, name] = min(timed, key=lambda v: (not trials[name, v].stays, seconds[name, v]))
    return picks


def _that_run(
    picks: Mapping[tuple[str, str], Variant], trials: Mapping[tuple[str, Variant], _Trial]
) -> list[tuple[str, Variant]]:
    """The variants that ran, each once: the best may also be in the column of its precision."""
    chosen = dict.fromkeys((name, variant) for (_, name), variant in picks.items())
    return [who for who in chosen if trials[who].robust is not None]


@dataclasses.dataclass(frozen=True)
class _Findings:
    """Everything that was measured, and the conclusions from it. images: how many a batch has."""

    picks: Mapping[tuple[str, str], Variant]
    trials: Mapping[tuple[str, Variant], _Trial]
    measured: Measurement
    peaks: Mapping[tuple[str, Variant], int]
    images: int

    def entry(self, column: str, name: str) -> Entry:
        variant = self.picks[column, name]
        key, trial = _key(name, variant), self.trials[name, variant]
        ran = trial.robust is not None
        reason = self._incomparable(column, name)
        ours = _key(OURS, self.picks[column, OURS])
        return Entry(
            column=column,
            contender=name,
            variant=str(variant) if ran else None,
            ms_per_image=_scaled(self.measured.seconds_of(key), 1e3 / self.images) if ran else None,
            ratio=None if reason or name == OURS else self.measured.ratio(key, ours),
            robust=_summary(trial.robust),
            peak_bytes=self.peaks.get((name, variant)),
            notes=(*([reason] if reason else []), *self._failures(column, name)),
        )

    def overhead(self, precision: str) -> Quartiles | None:
        alone, ours = (self.measured.seconds.get(_key(n, Variant(precision))) for n in (BARE, OURS))
        if alone is None or ours is None:
            return None
        return quartiles([1 - model / everything for model, everything in zip(alone, ours, strict=True)])

    def _incomparable(self, column: str, name: str) -> str | None:
        """The reason why the ratio of the times would mean nothing, or None."""
        trial, ours = (self.trials[n, self.picks[column, n]] for n in (name, OURS))
        if trial.robust is None:
            return trial.error
        if not trial.stays:
            return "leaves the ball or the box"
        if ours.robust is None or not ours.stays:
            return "nothing of ours to compare with"
        gap = difference(trial.robust, ours.robust)
        if gap.within_noise:
            return None
        ends = ", ".join(f"{100 * end:+.1f}" for end in (gap.low, gap.high))
        return f"robust accuracy differs from ours by {100 * gap.value:+.1f} points [{ends}]"

    def _failures(self, column: str, name: str) -> list[str]:
        """The errors of the variants among which the best was sought."""
        failed: dict[str, list[Variant]] = {}
        for (who, variant), trial in self.trials.items():
            if column == BEST and who == name and trial.error and variant != self.picks[column, name]:
                failed.setdefault(trial.error, []).append(variant)
        return [f"{error} ({'; '.join(map(str, variants))})" for error, variants in failed.items()]


def _summary(robust: Accuracy | None) -> Robust | None:
    return None if robust is None else Robust(robust.value, *robust.interval(), len(robust.right))


def _scaled(values: Quartiles, factor: float) -> Quartiles:
    return {name: factor * value for name, value in values.items()}
