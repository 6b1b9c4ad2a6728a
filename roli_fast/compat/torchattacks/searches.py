"""torchattacks' searches, which return an adversarial image or, if they find none, the image itself."""

from typing import Any

import torch
from torch import Tensor

from ... import attacks as ours
from ...checks import check_choice
from ...engine.modes import Model
from ...ops.reference.shared import over_batch
from ..core import run
from .attack import Single

_NORMS = {"Linf": "linf", "L2": "l2"}


class _Search(Single):
    """Returns an adversarial image where it finds one, and otherwise the image itself.

    norm: "Linf" or "L2".
    seed: of the random numbers, which are then the same at every call; None for torch's own generator.
    """

    _never_called = (*Single._never_called, "attack_single_run", "check_shape", "perturb")
    norm: str
    eps: float
    seed: float | None
    n_restarts: int

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        images, labels = self._placed(images, labels)
        key = None if self.seed is None else torch.tensor([int(self.seed)], device=images.device)
        result = run(self._made(), self._attacked, images, labels, self._way_out, key)
        assert result.success is not None
        return torch.where(over_batch(result.success, images), result.adversarial, images)

    def _ball(self) -> dict[str, Any]:
        check_choice("norm", self.norm, tuple(_NORMS))
        return {"norm": _NORMS[self.norm], "eps": self.eps, "restarts": self.n_restarts}


class APGD(_Search):
    _never_called = (*_Search._never_called, "check_oscillation", "dlr_loss")

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: float | None = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ):
        super().__init__("APGD", model)
        self.norm, self.eps, self.steps, self.n_restarts = norm, eps, steps, n_restarts
        self.seed, self.loss, self.eot_iter, self.thr_decr, self.verbose = seed, loss, eot_iter, rho, verbose

    def _made(self) -> ours.Attack:
        settings = {"steps": self.steps, "loss": self.loss, "eot": self.eot_iter, "rho": self.thr_decr}
        return self._make(ours.APGD, **self._ball(), **settings, early_stop=True)


class APGDT(_Search):
    """n_classes: number of classes, one more than the number of targets."""

    _never_called = (*_Search._never_called, "check_oscillation", "dlr_loss_targeted")

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: float | None = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
    ):
        super().__init__("APGDT", model)
        self.norm, self.eps, self.steps, self.n_restarts, self.seed = norm, eps, steps, n_restarts, seed
        self.eot_iter, self.thr_decr, self.verbose = eot_iter, rho, verbose
        self.n_target_classes = n_classes - 1

    def _made(self) -> ours.Attack:
        settings = {"steps": self.steps, "eot": self.eot_iter, "rho": self.thr_decr}
        targets = self.n_target_classes
        return self._make(ours.APGDT, **self._ball(), **settings, targets=targets, early_stop=True)


class FAB(_Search):
    """eps: None for 0.3 in Linf and 1 in L2.
    multi_targeted: whether to go towards n_classes - 1 targets in turn.

    FAB towards a single target is not covered: the library compares the targets of some images with those of
    others.
    """

    _never_called = (
        *_Search._never_called,
        "attack_single_run_targeted",
        "get_diff_logits_grads_batch",
        "get_diff_logits_grads_batch_targeted",
    )

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float | None = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        verbose: bool = False,
        seed: float | None = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
    ):
        super().__init__("FAB", model)
        self.norm, self.steps, self.n_restarts, self.seed = norm, steps, n_restarts, seed
        self.eps = eps if eps is not None else {"Linf": 0.3, "L2": 1.0}.get(norm, 5.0)
        self.alpha_max, self.eta, self.beta, self.verbose = alpha_max, eta, beta, verbose
        self.multi_targeted, self.n_target_classes = multi_targeted, n_classes - 1

    def _made(self) -> ours.Attack:
        kind, targets = (
            (ours.FABT, {"targets": self.n_target_classes}) if self.multi_targeted else (ours.FAB, {})
        )
        settings = {"steps": self.steps, "alpha_max": self.alpha_max, "eta": self.eta, "beta": self.beta}
        return self._make(kind, **self._ball(), **settings, **targets, early_stop=True)


class Square(_Search):
    """resc_schedule: whether the squares shrink as often in n_queries as in the authors' 10,000 queries."""

    _modes = ("default", "targeted")
    _never_called = (
        *_Search._never_called,
        "eta",
        "eta_rectangles",
        "init_hyperparam",
        "lp_norm",
        "margin_and_loss",
        "normalize_delta",
        "p_selection",
        "random_choice",
        "random_int",
    )

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: float | None = 0,
        verbose: bool = False,
    ):
        super().__init__("Square", model)
        self.norm, self.eps, self.n_queries, self.n_restarts = norm, eps, n_queries, n_restarts
        self.p_init, self.loss, self.rescale_schedule = p_init, loss, resc_schedule
        self.seed, self.verbose = seed, verbose

    def _made(self) -> ours.Attack:
        schedule = {"p_init": self.p_init, "rescale_schedule": bool(self.rescale_schedule)}
        search = {"queries": self.n_queries, "loss": self.loss, "targeted": self.targeted}
        return self._make(ours.Square, **self._ball(), **schedule, **search)
