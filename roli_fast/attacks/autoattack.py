"""AutoAttack (Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks, ICML 2020; in L1 Mind the Box, ICML 2021)."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from ..checks import check_choice, check_count, refuse
from ..engine import Output, widened
from ..engine.modes import Model
from .apgd import APGD, APGDT
from .attack import Attack, ViewCache, undirected_notes
from .fab import FAB, FABT
from .inputs import as_floats, check_lengths
from .losses import margin
from .options import AttackOptions
from .reliability import doubts
from .square import Square
from .trial import AttackResult, Trial

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
NAMES = VERSIONS["plus"]

# For a model whose output is random: over how many calls gradients and answers are averaged.
_EOT = 20

# The fewest classes that an attack's loss is defined for.
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


@dataclasses.dataclass(frozen=True)
class AutoAttackResult(AttackResult):
    """As :class:`AttackResult`. Where a sample withstood all attacks, ``adversarial`` is its clean image.
    ``loss`` is the margin: the largest wrong logit minus the label's.

    label: what was run, with all settings and this package's version. ``notes`` say what was left out.
    stages: "clean", and the names of the attacks in their order.
    broken_by: (N,) int64, of each sample the number of the stage that broke it: 0 where the clean image is
        misclassified, -1 where it withstood all.
    """

    label: str = ""
    stages: tuple[str, ...] = ()
    broken_by: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class AutoAttack(Attack):
    """The ensemble by which robust models are usually compared: APGD on cross-entropy, APGD on the targeted
    DLR loss, targeted FAB, and Square. Each attacks the samples that have withstood the ones before. A sample
    leaves as soon as it fools the model, even in the middle of an attack.

    norm, eps, bounds, precision, generator, fold, output: as in :class:`PGD`.
    version: "standard"; "plus", which adds APGD on DLR, untargeted FAB and five restarts; or "rand", for a
        model whose output is random: it averages 20 calls for each gradient and each answer.
    attacks: names of the attacks to run, in order, instead of the version's own: "apgd-ce", "apgd-dlr",
        "apgd-t", "fab", "fab-t", "square".
    steps: number of gradient steps in each run of APGD and FAB; the official number is 100.
    queries: number of queries in each run of Square; the official number is 5,000.

    Targeted attacks aim at the 9 likeliest wrong classes (APGD in L1, unless in version "plus", at 5), or at
    all of them where there are fewer. An attack that does not apply to a model is left out, and the result's
    notes say so: DLR needs 3 classes, targeted DLR 4, and Square images (N, C, H, W).

    Raises ValueError or TypeError for settings that are not accepted, and ValueError from a call where no
    attack applies to the model.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        version: str = "standard",
        bounds: tuple[float, float] = (0.0, 1.0),
        precision: str = "fp32",
        generator: torch.Generator | None = None,
        *,
        attacks: Sequence[str] | None = None,
        steps: int = 100,
        queries: int = 5000,
        fold: bool = True,
        output: Output = None,
    ):
        check_choice("version", version, tuple(VERSIONS))
        names = tuple(VERSIONS[version] if attacks is None else attacks)
        for name in names:
            check_choice("attacks", name, NAMES)
        if not names or len(set(names)) < len(names):
            refuse("attacks", repr(names), "at least one, each once")
        check_count("steps", steps)
        check_count("queries", queries)
        if {"fab", "fab-t"} & set(names):
            check_lengths(precision)
        self.version, self.attacks, self.steps, self.queries = version, names, steps, queries
        shared: AttackOptions = {
            "bounds": bounds,
            "early_stop": True,
            "precision": precision,
            "eot": _EOT if version == "rand" else 1,
            "fold": fold,
            "output": output,
        }
        self._stages = {name: _stage(name, self, norm, eps, shared) for name in names}
        super().__init__(norm, eps, **shared | {"generator": generator})

    @property
    def stages(self) -> tuple[str, ...]:
        return ("clean", *self.attacks)

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks of the ensemble, by name."""
        return MappingProxyType(self._stages)

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        key: Tensor | None = None,
        strict: bool = True,
        rows: Tensor | None = None,
    ) -> AutoAttackResult:
        result = super().run(model, images, labels, index=index, key=key, strict=strict, rows=rows)
        return cast(AutoAttackResult, result)

    run.__doc__ = Attack.run.__doc__

    def _result(self, trial: Trial, rows: Tensor, strict: bool) -> AutoAttackResult:
        ensemble = _Ensemble(self, trial, rows)
        if len(rows) > 0:
            ensemble.run_all()
        result = ensemble.result()
        if strict:
            self.check_directed(result.directed, result.undirected_by_stage, len(rows))
        return result

    def share_views(self, views: ViewCache) -> None:
        super().share_views(views)
        for stage in self._stages.values():  # all compute in one copy of a model
            stage.share_views(views)


def _stage(name: str, ensemble: AutoAttack, norm: str, eps: float | Tensor, shared: AttackOptions) -> Attack:
    """The attack of this name, as the ensemble's version has it."""
    if name == "square":
        return Square(norm, eps, ensemble.queries, **shared)
    steps, many = ensemble.steps, ensemble.version == "plus"
    if name == "fab":
        return FAB(norm, eps, steps, restarts=5 if many else 1, **shared)
    if name == "fab-t":
        return FABT(norm, eps, steps, **shared)
    if name == "apgd-t":
        return APGDT(norm, eps, steps, targets=5 if norm == "l1" and not many else 9, **shared)
    restarts = 5 if many or (norm == "l1" and ensemble.version == "standard") else 1
    return APGD(norm, eps, steps, restarts, name.removeprefix("apgd-"), **shared)


class _Ensemble:
    """One call on one batch."""

    def __init__(self, attack: AutoAttack, trial: Trial, rows: Tensor):
        self._attack, self._trial, self._rows = attack, trial, rows
        self._adversarial = as_floats(trial.images)
        self._notes = list(trial.oracle.notes)
        self._broken_by = torch.full_like(trial.rows, -1)
        self._directed = 0
        self._undirected: dict[str, tuple[int, int]] = {}

    def run_all(self) -> None:
        trial, logits = self._trial, self._trial.clean_output
        self._broken_by[logits.argmax(dim=1) != trial.labels] = 0
        random = self._attack.version == "rand"
        self._notes += doubts(trial.ask, self._adversarial, logits, random=random)
        reasons = {name: self._left_out(name, logits.shape[1]) for name in self._attack._stages}
        self._notes += [f"{name} left out: {reason}" for name, reason in reasons.items() if reason]
        if all(reasons.values()):
            refuse("attacks", "; ".join(self._notes), "one that this model can be attacked with")
        for name, attack in self._attack._stages.items():
            if reasons[name]:
                continue
            rows = self._rows[self._broken_by[self._rows] < 0]
            if len(rows) > 0:
                self._run(name, attack, rows)

    def _left_out(self, name: str, classes: int) -> str | None:
        if classes < _LEAST_CLASSES.get(name, 2):
            return f"its loss needs {_LEAST_CLASSES[name]} classes, and the model has {classes}"
        if name == "square" and self._trial.images.dim() != 4:
            return f"images of shape {tuple(self._trial.images.shape)} have no squares"
        return None

    def _run(self, name: str, attack: Attack, rows: Tensor) -> None:
        trial = self._trial
        assert trial.key is not None
        key = trial.key + NAMES.index(name)
        own = attack._begin(trial.model, trial.images, trial.labels, trial.index, key)
        own.clean_output = trial.clean_output  # computed once for all stages
        try:
            result = attack._result(own, rows, strict=False)
        finally:
            own.oracle.forget_graphs()  # the next stage, or another try, needs their memory
        broken = rows[own.fooled[rows]]
        self._adversarial[broken] = result.adversarial[broken]
        self._broken_by[broken] = self._attack.stages.index(name)
        self._directed = max(self._directed, result.directed)
        self._undirected[name] = result.undirected_by_stage[""]
        trial.forwards += result.forwards
        trial.gradients += result.gradients
        known = (*trial.oracle.notes, *undirected_notes(result.undirected_by_stage))
        self._notes += [f"{name}: {note}" for note in result.notes if note not in known]

    def result(self) -> AutoAttackResult:
        trial = self._trial
        loss = trial.loss
        if len(trial.rows) > 0:
            assert trial.labels is not None
            loss = margin(widened(trial.ask(self._adversarial)), trial.labels)
        return AutoAttackResult(
            adversarial=self._adversarial,
            success=self._broken_by >= 0,
            loss=loss,
            forwards=trial.forwards,
            gradients=trial.gradients,
            notes=(*self._notes, *undirected_notes(self._undirected)),
            directed=self._directed,
            undirected_by_stage=self._undirected,
            label=self._attack.label,
            stages=self._attack.stages,
            broken_by=self._broken_by,
        )
