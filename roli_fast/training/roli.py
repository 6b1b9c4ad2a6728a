"""Robust linear initialisation (RoLI; Hua et al., CVPR 2024): probing, then finetuning from that head."""

import copy
import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checks import refuse
from ..data import Pictures, Splits
from ..distributed import rank
from ..engine.modes import gradients
from ..evaluation import Evaluation, evaluate
from ..files import write_json
from ..models import Normalized, finetune
from .attack import validation_attack
from .cost import Cost
from .processes import by_the_first
from .recipe import Recipe
from .records import check_folder
from .result import Trained
from .rounds import Rounds, probe
from .stage import train
from .stage_checks import bound_settings, check_place, check_splits, check_stage
from .surroundings import for_evaluation, own_randomness


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of :func:`roli`.

    stages: the stages' results by name: "probe", if there was one, and "finetune".
    test: accuracy of the final model on the test images, which are used for nothing else: clean and under
        PGD with the recipe's val_steps; clean alone where training had no attack.
    """

    stages: dict[str, Trained]
    test: Evaluation

    @property
    def cost(self) -> Cost:
        """Of all stages together, without the evaluation on test images."""
        return sum((stage.cost for stage in self.stages.values()), Cost())


@gradients()
def roli(
    model: Normalized,
    splits: Splits,
    finetuning: Recipe,
    *,
    probing: Recipe | Rounds | None = Rounds(),
    method: str = "full",
    method_options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    sync_bn: bool = False,
    progress: bool = False,
) -> Outcome:
    """Adversarial transfer learning with robust linear initialisation: trains a linear head on the frozen
    backbone adversarially, then finetunes the model from that head, and tests it.

    model: from :func:`roli_fast.models.create_model`, with a robust backbone
        (:func:`roli_fast.models.load_backbone`) and any head, on the device where it is to train. Trained in
        place: it ends with the best weights of the last stage.
    splits: training, validation and test images, from :func:`roli_fast.data.load`.
    finetuning: the settings of the second stage.
    probing: how the head is trained in the first stage: by :class:`Rounds` of attacks and convex fits
        (:func:`probe`), with finetuning's norm and eps; or by SGD with a :class:`Recipe` of its own, from the
        head as it is. None leaves the first stage out; with a random head, that is the paper's RanLI.
    method, method_options: which parameters finetuning trains; see :func:`roli_fast.models.finetune`. With
        "linear" there is one stage, linear probing: by ``probing`` if that is Rounds, else by SGD with
        ``finetuning``.
    folder: where results are saved: a folder for each stage, ``probe`` and ``finetune`` (see :func:`train`),
        and ``result.json``. None saves nothing.

    Other arguments as in :func:`train`.

    Raises ValueError for arguments that do not fit together, before any stage begins; in a stage, as
    :func:`train`.
    """
    if method == "linear" and isinstance(probing, Recipe):
        refuse("probing", "a recipe with method='linear'", "None: finetuning is linear probing there")
    check_place(folder, resume)
    check_splits(splits, *Splits._fields)
    _check_images(splits)
    options = dict(method_options or {})
    folder = None if folder is None else Path(folder)
    plan = _plan(finetuning, probing, method)
    finetuned = copy.deepcopy(model)  # to refuse now what finetuning would refuse after hours of probing
    finetune(finetuned, method, **options)
    if "probe" in plan:
        check_stage(finetuned, splits, finetuning, sync_bn)
    if folder is not None:
        by_the_first(partial(_check_folder, folder, plan, finetuned, splits, finetuning, resume))
    del finetuned
    stages = {}
    for name, settings in plan.items():
        trained, its_options = ("linear", {}) if name == "probe" else (method, options)
        seed = settings.seed if isinstance(settings, Recipe) else finetuning.seed
        with own_randomness(seed, model.mean.device):
            finetune(model, trained, **its_options)
        shared: dict[str, Any] = {"resume": resume, "workers": workers, "progress": progress, "title": name}
        shared["folder"] = None if folder is None else folder / name
        if isinstance(settings, Rounds):
            stages[name] = probe(model, splits, finetuning, settings, **shared)
        else:
            stages[name] = train(model, splits, settings, sync_bn=sync_bn, **shared)
    outcome = Outcome(stages, _tested(model, splits, finetuning, stages["finetune"].precision, workers))
    if folder is not None and rank() == 0:
        write_json(folder / "result.json", summary(outcome))
    return outcome


def _plan(finetuning: Recipe, probing: Recipe | Rounds | None, method: str) -> dict[str, Recipe | Rounds]:
    """The stages in their order, by name, with their settings."""
    if probing is None:
        return {"finetune": finetuning}
    if method == "linear":  # finetuning is the probing
        return {"finetune": probing}
    return {"probe": probing, "finetune": finetuning}


def _check_folder(
    folder: Path,
    plan: Mapping[str, object],
    finetuned: Normalized,
    splits: Splits,
    finetuning: Recipe,
    resume: bool,
) -> None:
    """Refuses now a folder that finetuning would refuse after hours of probing, and one of a run with other
    stages: weights finetuned from one head would go on as if from another."""
    for name in plan:
        check_place(folder / name, resume)
    if "probe" in plan:
        check_folder(folder / "finetune", bound_settings(finetuned, finetuning, splits), resume)
    there = [name for name in ("probe", "finetune") if (folder / name / "recipe.json").exists()]
    if resume and there and ("probe" in there) != ("probe" in plan):
        asked, began = ("a probe", "none") if "probe" in plan else ("no probe", "one")
        refuse("probing", f"{asked} for the run in {folder}, which has {began}", "as it began")


def _check_images(splits: Splits) -> None:
    """Refuses images that would fail only after hours of training: splits of different sizes, by the first
    image of each, and test images with broken headers."""
    if isinstance(splits.test, Pictures):
        splits.test.check_headers()
    shapes = {
        name: "x".join(map(str, next(iter(part))[0].shape))
        for name, part in zip(("train", "val", "test"), splits, strict=True)
    }
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} of {shape}" for name, shape in shapes.items())
        refuse("splits", got, "images of one size: input_size")


def _tested(
    model: Normalized, splits: Splits, recipe: Recipe, precision: str, workers: int | None
) -> Evaluation:
    loader = for_evaluation(splits.test, recipe, workers)
    attack = validation_attack(recipe, precision, torch.Generator().manual_seed(recipe.seed))
    return evaluate(model, loader, attack, strict=False)


def summary(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is saved in JSON."""
    test = outcome.test
    found = {"clean": test.clean, **({} if test.label == "clean" else {"robust": test})}
    return {
        "test": {
            "attack": test.label,
            **{name: accuracy.summary() for name, accuracy in found.items()},
        },
        "stages": {
            name: {
                "best": stage.history[stage.best],
                "cost": dataclasses.asdict(stage.cost),
                "warnings": stage.warnings,
                "precision": stage.precision,
            }
            for name, stage in outcome.stages.items()
        },
        "cost": dataclasses.asdict(outcome.cost),
    }
