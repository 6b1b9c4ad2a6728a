"""The official AutoAttack's class, computed by this package's attacks: ``from roli_fast.compat.autoattack
import AutoAttack``."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import attacks as ours
from ..attacks.inputs import draw_key
from ..attacks.norms import distance
from ..attacks.reliability import square_finds_more
from ..attacks.verify import predict
from ..checks import check_choice, check_count, refuse
from ..engine.identity import FEW, answers_as_before, digest_of, fingerprint, noisy, surroundings
from ..engine.modes import Model, few_or_all
from ..files import write
from .core import (
    as_classes,
    as_pixels,
    check_images,
    check_methods,
    chosen,
    inside,
    no_such,
    read,
    share_copies,
    warn_of_surroundings,
)

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_VERSIONS = ("standard", "plus", "rand")
_WAY_OUT = (
    "If they are normalised: images in [0, 1] and AutoAttack(roli_fast.models.Normalized(model, mean, std))"
)


class AutoAttack:
    """AutoAttack (Croce and Hein, ICML 2020), as :class:`roli_fast.attacks.AutoAttack`, with the official
    class' interface.

    model: maps images (N, C, H, W) in [0, 1] to logits (N, classes).
    norm: "Linf", "L2" or "L1".
    eps: the ball's radius, for pixels in [0, 1].
    seed: of all random numbers; None for torch's own generator.
    verbose: whether to print results, and after each batch how far the evaluation is.
    attacks_to_run: for version "custom", of "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t" and "fab-t".
    version: "standard", "plus", "rand" or "custom".
    device: the device on which batches are attacked.
    log_path: a file to which the same lines are appended, whether or not they are printed.

    Raises ValueError for settings that are not accepted.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = [],
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device = "cuda",
        log_path: str | None = None,
    ):
        check_choice("norm", norm, tuple(_NORMS))
        check_choice("version", version, (*_VERSIONS, "custom"))
        if version != "custom" and len(attacks_to_run) > 0:
            refuse("attacks_to_run", repr(attacks_to_run), f"none, which version={version!r} has itself")
        self.model, self.norm, self.epsilon, self.seed, self.verbose = model, norm, eps, seed, verbose
        _check_names(attacks_to_run)
        if is_tf_model:
            refuse("is_tf_model", True, "False: models are torch's")
        self.version, self.is_tf_model, self.device = version, is_tf_model, device
        self.log_path = log_path
        names = attacks_to_run if version == "custom" else ours.autoattack.VERSIONS[version]
        self.attacks_to_run = list(names)
        self._set: str | None = None

    def __getattr__(self, name: str) -> NoReturn:
        hint = ""
        if name in ("apgd", "apgd_targeted", "fab", "square"):
            hint = ": for settings of single attacks, use roli_fast.attacks, such as APGD(restarts=2)"
        raise AttributeError(f"AutoAttack has no attribute {name!r}{hint}")

    def set_version(self, version: str = "standard") -> None:
        """Selects the attacks and settings of a version: "standard", "plus" or "rand"."""
        check_choice("version", version, _VERSIONS)
        self._set, self.attacks_to_run = version, list(ours.autoattack.VERSIONS[version])
        if self.verbose:
            print(f"settings are those of the version {version}")

    def get_logits(self, x: Tensor) -> Tensor:
        return self.model(x)

    def get_seed(self) -> float:
        return time.time() if self.seed is None else self.seed

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attacks all images. Returns adversarial images (N, C, H, W), or the image itself where none was
        found; with return_labels, also the model's classes for them (N,).

        x_orig, y_orig: images (N, C, H, W) in [0, 1] and labels (N,).
        bs: images in a batch; it has no influence on the result.
        state_path: a file that records which batches are done. An evaluation that was interrupted goes on
            from there, with the random numbers that it began with, and returns adversarial images only of
            the batches that it attacks itself.

        Raises ValueError for images outside of [0, 1], and for the state of another evaluation: of other
        images, another attack, or a model that answers otherwise to the first images.
        """
        return self._evaluated(self.attacks_to_run, x_orig, y_orig, bs, return_labels, state_path)

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Runs each attack alone on all images that are classified right. Returns a dict: for each attack's
        name, what :meth:`run_standard_evaluation` returns."""
        return {
            name: self._evaluated([name], x_orig, y_orig, bs, return_labels, None)
            for name in self.attacks_to_run
        }

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of images that are classified right, between 0 and 1."""
        right = [
            (predict(self.model, as_pixels(x.to(self.device))).argmax(dim=1) == y.to(self.device)).cpu()
            for x, y in zip(x_orig.split(int(bs)), y_orig.split(int(bs)), strict=True)
        ]
        accuracy = torch.cat(right).double().mean().item()
        self._log(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def _evaluated(
        self,
        names: Sequence[str],
        images: Tensor,
        labels: Tensor,
        bs: int,
        return_labels: bool,
        state_path: str | Path | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        check_count("bs", bs)
        bs = int(bs)  # torch cannot split by numpy's integers
        warn_of_surroundings(self.model, torch.device(self.device))
        images, labels = as_pixels(images.detach()), as_classes(labels)
        for part in images.split(bs):  # all of them, before hours are spent on attacks
            check_images(inside(part, (0, 1)), (0, 1), _WAY_OUT)
        attack = self._made(names)
        state = _State.found(state_path, attack, self._key(), self.model, images, labels)
        if state_path is not None and len(images) > 0:
            state.bind(lambda: self._answers(images), surroundings(torch.device(self.device)))
        if return_labels and state.broken_by:
            refuse("return_labels", "True for images of which a state is there", "False: it has no classes")
        key = torch.tensor([state.key], device=self.device)
        adversarial, classes = images.clone(), labels.clone()
        said: set[str] = set()
        largest, begin = 0.0, time.perf_counter()
        for start in range(len(state.broken_by), len(images), bs):
            rows = torch.arange(start, min(start + bs, len(images)))
            batch = inside(images[rows], (0, 1)).to(self.device), labels[rows].to(self.device)
            result = attack.run(self.model, *batch, index=rows.to(self.device), key=key, strict=False)
            adversarial[rows] = result.adversarial.to(images)
            if return_labels:
                classes[rows] = predict(self.model, result.adversarial).argmax(dim=1).to(labels)
            largest = max(largest, distance(attack.norm, result.adversarial - batch[0]).max().item())
            state.add(result.broken_by)
            for note in dict.fromkeys(result.notes):
                if note not in said:
                    self._log(note)
            said.update(result.notes)
            self._log(state.progress(len(images)))
        self._report(attack.stages, torch.tensor(state.broken_by), adversarial, largest)
        self._log(f"total time: {time.perf_counter() - begin:.1f} s")
        return (adversarial, classes) if return_labels else adversarial

    def _answers(self, images: Tensor) -> Tensor:
        """The logits for the first images, as they are and with noise, or for all where the model answers to
        no fewer."""

        def ask(asked: Tensor) -> Tensor:
            both = (inside(x, (0, 1)).to(self.device) for x in (asked, noisy(asked)))
            return torch.cat([predict(self.model, x) for x in both])

        return few_or_all(images, FEW, ask)[1].cpu()

    def _made(self, names: Sequence[str]) -> ours.AutoAttack:
        _check_names(names)
        if not names:
            refuse("attacks_to_run", "none", f"at least one of {', '.join(ours.autoattack.NAMES)}")
        # A custom selection has five restarts, as in version "plus".
        version = self._set or ("plus" if self.version == "custom" else self.version)
        attack = ours.AutoAttack(_NORMS[self.norm], self.epsilon, version, attacks=names, **chosen())
        share_copies(attack)
        return attack

    def _key(self) -> int:
        if self.seed is not None:
            return int(self.seed)
        return int(draw_key(None, torch.device("cpu")).item())

    def _report(self, stages: Sequence[str], broken_by: Tensor, adversarial: Tensor, largest: float) -> None:
        """Logs the accuracy after each attack, and what the images are like. largest: the largest
        perturbation."""
        for note in square_finds_more(stages, broken_by):
            self._log(note)
        for stage, name in enumerate(stages):
            left = ((broken_by < 0) | (broken_by > stage)).double().mean().item()
            what = "initial accuracy" if stage == 0 else f"robust accuracy after {name.upper()}"
            self._log(f"{what}: {left:.2%}")
        if adversarial.numel() > 0:
            lo, hi = adversarial.aminmax()
            nan = adversarial.isnan().sum()
            self._log(
                f"max {self.norm} perturbation: {largest:.5f}, nan in tensor: {nan}, max: {hi:.5f}, "
                f"min: {lo:.5f}"
            )
        self._log(f"robust accuracy: {left:.2%}")

    def _log(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a") as file:
                file.write(f"{line}\n")


class _State:
    """Which samples of an evaluation are done, saved in a file.

    path: the file; None to save nothing.
    about: what is evaluated, to which the file is bound.
    key: the random key of the evaluation.
    broken_by: of the samples that are done, as in :class:`roli_fast.attacks.AutoAttackResult`.
    answers: the model's logits for the first images; None before they are known.
    surroundings: what their rounding depends on.
    """

    def __init__(
        self,
        path: Path | None,
        about: str,
        key: int,
        broken_by: list[int],
        answers: list[list[float]] | None = None,
        surroundings: str = "",
    ):
        self.path, self.about, self.key, self.broken_by = path, about, key, broken_by
        self.answers, self.surroundings = answers, surroundings

    @classmethod
    def found(
        cls,
        path: str | Path | None,
        attack: ours.AutoAttack,
        key: int,
        model: Model,
        images: Tensor,
        labels: Tensor,
    ) -> "_State":
        """The state in the file, or a new one if there is no file. Raises ValueError for a file of another
        evaluation."""
        if path is None:
            return cls(None, "", key, [])
        data = digest_of(images, labels)[:16]
        about = f"{attack.label} on {len(images)} images {data} against {fingerprint(model)}"
        file = Path(path)
        if not file.exists():
            return cls(file, about, key, [])
        try:
            saved = json.loads(file.read_text())
        except ValueError as error:
            refuse(
                "state_path",
                f"{file}, which cannot be read ({error})",
                "a state, or a file that is not there",
            )
        if not isinstance(saved, dict) or saved.get("about") != about:
            got = saved.get("about") if isinstance(saved, dict) else saved
            refuse("state_path", f"the state of {got}", f"one of {about}")
        # An older version's answers are to other images.
        known = (saved["answers"], saved["surroundings"]) if "surroundings" in saved else ()
        return cls(file, about, saved["key"], saved["broken_by"], *known)

    def bind(self, ask: Callable[[], Tensor], surroundings: str) -> None:
        """Binds the state to the model's answers. Raises ValueError if it is bound to others: not all that a
        model computes with shows in its fingerprint."""
        if self.answers is None:
            self.answers, self.surroundings = ask().tolist(), surroundings
        elif not answers_as_before(torch.tensor(self.answers), ask, surroundings == self.surroundings):
            got = f"{self.path}, in which the model answered otherwise to the same images"
            refuse("state_path", got, "the state of the same model, or another file")

    def add(self, broken_by: Tensor) -> None:
        self.broken_by += broken_by.tolist()
        if self.path is not None:
            names = ("about", "key", "broken_by", "answers", "surroundings")
            saved = {name: getattr(self, name) for name in names}
            write(self.path, json.dumps(saved).encode())

    def progress(self, images: int) -> str:
        done, left = len(self.broken_by), self.broken_by.count(-1)
        return f"{done}/{images} images, robust accuracy so far {left / done:.2%}"


__all__ = ["AutoAttack"]


def __getattr__(name: str) -> NoReturn:
    no_such("autoattack", name, __all__)


# What the official attacks call their settings, and what these are called here. In _PARTS, for each attack:
# where the official object holds it, where that holds the model, and these names.
_SEARCH = {"n_iter": "steps", "eps": "eps"}
_APGD = {**_SEARCH, "n_restarts": "restarts", "eot_iter": "eot", "thr_decr": "rho"}
_FAB = {**_SEARCH, "alpha_max": "alpha_max", "eta": "eta", "beta": "beta"}
_SQUARE = {
    "eps": "eps",
    "n_queries": "queries",
    "n_restarts": "restarts",
    "p_init": "p_init",
    "rescale_schedule": "rescale_schedule",
    "loss": "loss",
}
_PARTS = {
    "apgd-ce": ("apgd", "model", _APGD),
    "apgd-dlr": ("apgd", "model", _APGD),
    "apgd-t": ("apgd_targeted", "model", {**_APGD, "n_target_classes": "targets"}),
    "fab": ("fab", "predict", {**_FAB, "n_restarts": "restarts"}),
    "fab-t": ("fab", "predict", {**_FAB, "n_target_classes": "targets"}),  # always one restart
    "square": ("square", "predict", _SQUARE),
}


def accelerated(original: Any) -> AutoAttack:
    """The official object as an :class:`AutoAttack` of this module, with the attacks that it would run."""
    if original.is_tf_model:
        refuse("attack.is_tf_model", True, "False: models are torch's")
    log_path = getattr(original.logger, "log_path", None)
    face: AutoAttack = read(original, __name__, __all__, original.model, log_path=log_path)
    face.attacks_to_run = list(original.attacks_to_run)
    for name, attack in face._made(face.attacks_to_run).parts.items():
        _check_part(original, name, attack)
    return face


def _check_part(original: Any, name: str, attack: ours.Attack) -> None:
    """Raises ValueError if the official object would run this attack with other settings."""
    place, model, settings = _PARTS[name]
    part = vars(original).get(place)
    if part is None:
        refuse(f"attack.{place}", "nothing", f"what runs {name}")
    check_methods(part)
    expected = {theirs: getattr(attack, mine) for theirs, mine in settings.items()}
    expected["norm"] = original.norm
    if model == "model":  # APGD
        expected |= {"topk": None, "use_largereps": original.norm == "L1"}
    if vars(part).get(model) is not original.model:
        refuse(f"attack.{place}.{model}", "another model", "that of the object")
    for setting, accepted in expected.items():
        got = vars(part).get(setting, "nothing")
        if got != accepted:
            refuse(f"attack.{place}.{setting}", got, f"{accepted}; for others, use roli_fast.attacks")


def _check_names(attacks: Sequence[str]) -> None:
    for name in attacks:
        check_choice("attacks_to_run", name, ours.autoattack.NAMES)
