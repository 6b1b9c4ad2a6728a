"""The official AutoAttack's class on this package's attacks: ``from roli_fast.compat.autoattack import
AutoAttack``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import attacks as ours
from ..attacks.checks import square_finds_more
from ..attacks.inputs import check_count, draw_key, refuse
from ..attacks.verify import predict
from ..engine.modes import Model
from .core import chosen, no_such, read

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_VERSIONS = ("standard", "plus", "rand")


class AutoAttack:
    """model: maps images in [0, 1] to logits. norm: "Linf", "L2" or "L1".

    seed: of all draws; None for torch's own generator. version: "standard", "plus", "rand", or "custom" for
    attacks_to_run, of "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t" and "fab-t".
    device: where batches are attacked. log_path: a file that gets what is printed.
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
        device: str | torch.device = "cuda",
        log_path: str | None = None,
    ):
        if norm not in _NORMS:
            refuse("norm", repr(norm), ", ".join(_NORMS))
        if version not in (*_VERSIONS, "custom"):
            refuse("version", repr(version), ", ".join((*_VERSIONS, "custom")))
        if version != "custom" and len(attacks_to_run) > 0:
            refuse("attacks_to_run", repr(attacks_to_run), f"none, which version={version!r} has itself")
        self.model, self.norm, self.epsilon, self.seed, self.verbose = model, norm, eps, seed, verbose
        self.version, self.device, self.log_path = version, device, log_path
        names = attacks_to_run if version == "custom" else ours.autoattack.VERSIONS[version]
        self.attacks_to_run = list(names)

    def __getattr__(self, name: str) -> NoReturn:
        hint = ""
        if name in ("apgd", "apgd_targeted", "fab", "square"):
            hint = ": for settings of single attacks, use roli_fast.attacks"
        raise AttributeError(f"AutoAttack has no attribute {name!r}{hint}")

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Adversarial images (N, C, H, W), the image itself where none was found; with return_labels, and the
        model's classes for them.

        bs: images in a batch; of no influence on the result.
        state_path: a file that notes which batches are done. An evaluation that was interrupted goes on from
            there, and returns images of its own batches alone.
        """
        return self._evaluated(self.attacks_to_run, x_orig, y_orig, bs, return_labels, state_path)

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Each attack alone against all images that are right: by its name, what
        :meth:`run_standard_evaluation` returns."""
        return {
            name: self._evaluated([name], x_orig, y_orig, bs, return_labels, None)
            for name in self.attacks_to_run
        }

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Between 0 and 1."""
        right = [
            (predict(self.model, x.to(self.device)).argmax(dim=1) == y.to(self.device)).cpu()
            for x, y in zip(x_orig.split(bs), y_orig.split(bs), strict=True)
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
        attack = self._made(names)
        state = _State.found(state_path, attack, self._key(), len(images))
        key = torch.tensor([state.key], device=self.device)
        adversarial, classes = images.detach().clone(), labels.clone()
        notes: set[str] = set()
        begin = time.perf_counter()
        for start in range(len(state.broken_by), len(images), bs):
            rows = torch.arange(start, min(start + bs, len(images)))
            batch = adversarial[rows].to(self.device), classes[rows].to(self.device)
            result = attack.run(self.model, *batch, index=rows.to(self.device), key=key)
            adversarial[rows] = result.adversarial.to(images)
            if return_labels:
                classes[rows] = predict(self.model, result.adversarial).argmax(dim=1).to(labels)
            state.add(result.broken_by)
            for note in dict.fromkeys(result.notes):
                if note not in notes:
                    self._log(note)
            notes.update(result.notes)
        broken_by = torch.tensor(state.broken_by)
        for note in square_finds_more(attack.stages, broken_by):
            self._log(note)
        self._report(attack.stages, broken_by, time.perf_counter() - begin)
        return (adversarial, classes) if return_labels else adversarial

    def _made(self, names: Sequence[str]) -> ours.AutoAttack:
        # A custom selection has five restarts, as the version "plus".
        version = "plus" if self.version == "custom" else self.version
        return ours.AutoAttack(_NORMS[self.norm], self.epsilon, version, attacks=names, **chosen())

    def _key(self) -> int:
        if self.seed is not None:
            return int(self.seed)
        return int(draw_key(None, torch.device("cpu")).item())

    def _report(self, stages: Sequence[str], broken_by: Tensor, seconds: float) -> None:
        """How much was left after each attack."""
        for stage, name in enumerate(stages):
            left = ((broken_by < 0) | (broken_by > stage)).double().mean().item()
            what = "initial accuracy" if stage == 0 else f"robust accuracy after {name.upper()}"
            self._log(f"{what}: {left:.2%}")
        self._log(f"robust accuracy: {left:.2%} (total time {seconds:.1f} s)")

    def _log(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a") as file:
                file.write(f"{line}\n")


class _State:
    """Which samples of an evaluation are done, in a file.

    broken_by: of the samples that are done, as :class:`roli_fast.attacks.AutoAttackResult` has it.
    """

    def __init__(self, path: Path | None, about: str, key: int, broken_by: list[int]):
        self.path, self.about, self.key, self.broken_by = path, about, key, broken_by

    @classmethod
    def found(cls, path: str | Path | None, attack: ours.AutoAttack, key: int, samples: int) -> "_State":
        """What the file says, or the beginning; ValueError for a file of another evaluation."""
        about = f"{attack.label} on {samples} images"
        file = None if path is None else Path(path)
        if file is None or not file.exists():
            return cls(file, about, key, [])
        saved = json.loads(file.read_text())
        if saved.get("about") != about:
            refuse("state_path", f"the state of {saved.get('about')}", f"one of {about}")
        return cls(file, about, saved["key"], saved["broken_by"])

    def add(self, broken_by: Tensor) -> None:
        self.broken_by += broken_by.tolist()
        if self.path is not None:
            saved = {"about": self.about, "key": self.key, "broken_by": self.broken_by}
            partial = self.path.with_name(f"{self.path.name}.partial")
            partial.write_text(json.dumps(saved))
            partial.replace(self.path)


__all__ = ["AutoAttack"]


def __getattr__(name: str) -> NoReturn:
    no_such("autoattack", name, __all__)


# Where the official object has the settings of its attacks, and what they are called here.
_STEPS = {"n_iter": "steps"}
_PARTS = {
    "apgd-ce": ("apgd", {**_STEPS, "n_restarts": "restarts", "eot_iter": "eot"}),
    "apgd-dlr": ("apgd", {**_STEPS, "n_restarts": "restarts", "eot_iter": "eot"}),
    "apgd-t": ("apgd_targeted", {**_STEPS, "n_restarts": "restarts", "n_target_classes": "targets"}),
    "fab": ("fab", {**_STEPS, "n_restarts": "restarts"}),
    "fab-t": ("fab", {**_STEPS, "n_target_classes": "targets"}),
    "square": ("square", {"n_queries": "queries", "n_restarts": "restarts"}),
}


def accelerated(original: Any) -> AutoAttack:
    """The official object as this one."""
    elsewhere = {
        "eps": lambda attack: attack.epsilon,
        "attacks_to_run": lambda attack: attack.attacks_to_run if attack.version == "custom" else [],
        "log_path": lambda attack: getattr(attack.logger, "log_path", None),
    }
    face: AutoAttack = read(original, __name__, __all__, elsewhere=elsewhere)
    stages = face._made(face.attacks_to_run)._stages
    for name, (part, settings) in _PARTS.items():
        for theirs, mine in settings.items():
            if name in stages and hasattr(original, part):
                got, accepted = getattr(getattr(original, part), theirs), getattr(stages[name], mine)
                if got != accepted:
                    refuse(f"attack.{part}.{theirs}", got, f"{accepted}; for others, use roli_fast.attacks")
    return face
