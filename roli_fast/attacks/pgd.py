"""Projected gradient descent (Madry et al., Towards Deep Learning Models Resistant to Adversarial
Attacks, ICLR 2018), and its relatives."""

import dataclasses

import torch
from torch import Tensor
from typing_extensions import Unpack

from .. import ops
from ..checks import check_choice, check_flag, check_number, refuse
from ..engine import Output, widened
from .ascent import Ascent, Batch, GradientAttack, State
from .inputs import ITERATES, check_share, check_size, to_state
from .losses import Loss, feature_distance, kl_divergence
from .norms import NORMS, movable, normal_draws
from .options import AttackOptions, PGDOptions, check_options
from .samples import Best
from .trial import Trial


@dataclasses.dataclass
class MomentumState(State):
    momentum: Tensor | None


class PGD(GradientAttack):
    """Projected gradient descent with a random start.

    norm: "linf", "l2" or "l1": of the ball and of the steps, which go in the direction of steepest ascent.
    eps, step_size: in pixel units, measured in the norm: numbers, or tensors () or (N,).
    steps: gradient steps, at least 1.
    random_start: uniform in the ball; otherwise the clean image.
    restarts: runs from different starts; per sample the best is kept: fooled first, then the highest loss.
    loss: "ce", "margin", "dlr" (Croce and Hein 2020), or a callable of float logits (N, classes) and labels
        (N,) that returns (N,). What else it reads, such as a batch's soft labels, is on a GPU best one tensor
        into which each batch's are copied: the graph then serves again.
    targeted: labels are targets, and the loss is decreased.
    bounds: the box that pixels lie in.
    iterate: "last"; or "best": misclassified first, then the highest loss, per sample, the last included.
    early_stop: a fooled sample leaves the batch (evaluation; needs iterate="best"). Success stays the
        same; images and losses of fooled samples may differ.
    precision: of the copy that the attack computes with, "fp32", "tf32", "bf16" or "fp16"; success is decided
        by the model itself, at its own.
    generator: source of the random key; default torch's own, so that ``torch.manual_seed`` repeats a run.
    eot: calls that are averaged wherever the copy or the model is asked, for a model whose output is random.
    sparsity: share of a sample's elements that an L1 step moves, above 0 and up to 1.
    fold: whether the copy has its BatchNorms folded where that is exact up to rounding.
    output: where in what the model returns the logits are; default, that is the logits. See
        :func:`roli_fast.engine.select`.

    ``attack(model, images, labels)`` returns adversarial images, ``attack.run(...)`` an
    :class:`AttackResult`. Every draw is a function of key, sample index, restart and pixel: with key and
    index given to ``run``, a result does not depend on batch size or order where the model's own gradients do
    not (by default the index is the place in the batch, and a key is drawn for each call). Settings are
    fixed; a size that changes from call to call is a tensor whose value changes. On a GPU the whole run is a
    CUDA graph from the second batch of a shape on.
    """

    # What relatives do otherwise.
    decay: float | None = None

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        restarts: int = 1,
        loss: str | Loss = "ce",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        iterate: str = "last",
        early_stop: bool = False,
        precision: str = "fp32",
        generator: torch.Generator | None = None,
        *,
        eot: int = 1,
        sparsity: float | Tensor = 0.05,
        fold: bool = True,
        output: Output = None,
    ):
        check_choice("iterate", iterate, ITERATES)
        check_flag("random_start", random_start)
        check_size("step_size", step_size)
        check_share("sparsity", sparsity)
        if isinstance(restarts, int) and restarts > 1 and not random_start:
            refuse("restarts", f"{restarts} without a random start, which would all be the same", "1")
        if early_stop and iterate != "best":
            refuse(
                "early_stop",
                f"{early_stop!r} with iterate={iterate!r}",
                "iterate='best', whose success it keeps",
            )
        self.step_size, self.sparsity = step_size, sparsity
        self.random_start, self.iterate = random_start, iterate
        super().__init__(
            norm,
            eps,
            steps,
            loss,
            restarts=restarts,
            targeted=targeted,
            bounds=bounds,
            early_stop=early_stop,
            precision=precision,
            generator=generator,
            eot=eot,
            fold=fold,
            output=output,
        )

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.random_start

    @property
    def keeps_best(self) -> bool:  # type: ignore[override]
        return self.iterate == "best"

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        """Random starting points (N, ...), in float32 or float64; seed: (2,) int64, index: (N,) int64."""
        return NORMS[self.norm].start(clean, eps, seed, *self.bounds, index=index)

    def begin(self, ascent: Ascent, batch: Batch) -> MomentumState:
        clean = ascent.laid_out(batch.clean)
        if batch.seed is None:
            adv = to_state(clean)
        else:
            adv = self.start(clean, batch.eps, batch.seed, batch.sample_index)
        return MomentumState(
            target=batch.target,
            labels=batch.labels,
            clean=clean,
            adv=adv,
            x=ascent.view.prepare(adv),
            gradient=None,
            eps=batch.eps,
            step_size=batch.step_size,
            sparsity=batch.sparsity,
            best=Best.none_yet(adv) if self.keeps_best else None,
            momentum=None if self.decay is None else torch.zeros_like(adv),
        )

    def look(self, state: State, step: int, loss: Tensor, output: Tensor) -> Tensor:
        fooled = self.fooled(output, state.labels)
        if state.best is not None:
            state.best.offer(state.adv, fooled, loss)
        return fooled

    def move(self, ascent: Ascent, state: State, step: int) -> None:
        assert isinstance(state, MomentumState)
        assert state.gradient is not None
        mean, std = ascent.view.normalization(state.adv)
        if state.momentum is None or self.decay is None:
            self._step(state, state.gradient, out=state.x, mean=mean, std=std)
            return
        gradient = state.gradient
        if std is not None:  # the mean of the gradient with respect to pixels counts
            gradient = ascent.in_pixels(gradient)
        ops.momentum_(state.momentum, gradient, self.decay)
        self._step(state, state.momentum)
        state.x = ascent.view.prepare(state.adv)

    def _step(self, state: State, gradient: Tensor, **following: Tensor | None) -> None:
        """following: where the next input goes, and how it is normalised."""
        share = {}
        if self.norm == "l1":
            share["sparsity"] = state.sparsity
            gradient = movable(gradient, state.adv, *self.bounds)
        sizes = state.step_size, state.eps, *self.bounds
        NORMS[self.norm].step_(state.adv, gradient, state.clean, *sizes, **share, **following)


class FGSM(PGD):
    """The fast gradient sign method (Goodfellow et al. 2015): one step to the edge of the ball, from the
    clean image. In L2 and L1 it goes in their direction of steepest ascent. Arguments as in :class:`PGD`,
    without step_size, steps and random_start."""

    def __init__(self, norm: str = "linf", eps: float | Tensor = 8 / 255, **options: Unpack[PGDOptions]):
        check_options(self, options, PGDOptions)
        super().__init__(norm, eps, step_size=eps, steps=1, random_start=False, **options)


class NFGSM(PGD):
    """FGSM from noise, for training (de Jorge et al. 2022): one step of eps from a uniform point of a larger
    ball, which nothing pulls back into the ball of eps. So ``attack.eps`` is (noise + 1) eps, the radius of
    the ball in which its images are; of a tensor, a new one. Arguments as in :class:`PGD`, without step_size,
    steps and random_start.

    noise: the radius of the start, in multiples of eps; above 0.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        noise: float = 2.0,
        **options: Unpack[PGDOptions],
    ):
        check_options(self, options, PGDOptions)
        check_number("noise", noise, above=0)
        self.noise = noise
        super().__init__(norm, (noise + 1) * eps, step_size=eps, steps=1, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        return super().start(clean, eps * (self.noise / (self.noise + 1)), seed, index)


class MIFGSM(PGD):
    """The momentum iterative fast gradient sign method (Dong et al. 2018): steps in the direction of
    m <- decay m + g / mean|g|, from the clean image. Arguments as in :class:`PGD`.

    decay: how much of the last direction is kept, at least 0.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        *,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ):
        check_options(self, options, PGDOptions)
        check_number("decay", decay, 0)
        self.decay = decay
        super().__init__(norm, eps, step_size, steps, random_start, **options)


class _AwayFromClean(PGD):
    """Increases the distance of the output from that for the clean image: without a gradient there, and
    without labels."""

    compares_with_clean = True
    distance: Loss

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        *,
        restarts: int = 1,
        iterate: str = "last",
        sparsity: float | Tensor = 0.05,
        **options: Unpack[AttackOptions],
    ):
        check_options(self, options)
        if self.label_free and options.get("early_stop", False):
            refuse(
                "early_stop",
                repr(options["early_stop"]),
                "False: features have no class that could be fooled",
            )
        super().__init__(
            norm,
            eps,
            step_size,
            steps,
            restarts=restarts,
            loss=self.distance,
            iterate=iterate,
            sparsity=sparsity,
            **options,
        )

    def target(self, clean_output: Tensor) -> Tensor:
        """What the distance is measured from."""
        return clean_output

    def prepare(self, trial: Trial) -> None:
        self._name_classes(trial, trial.clean_output)

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        self._name_classes(trial, trial.clean_view_output)
        return self.target(trial.clean_view_output)

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        return self.objective(widened(output), self.target(trial.clean_output[rows]))

    def _name_classes(self, trial: Trial, clean_output: Tensor) -> None:
        """Where no labels do."""
        if trial.labels is None and not self.label_free:
            trial.labels = clean_output.argmax(dim=1)


class TPGD(_AwayFromClean):
    """The attack of TRADES (Zhang et al. 2019, section 4): increases the divergence of the model's
    probabilities from those for the clean image, from Gaussian noise of a thousandth of the pixels' range.

    At the clean image that divergence has no gradient: a random start is needed. Labels are not; without
    them, success is another class than the clean image's. Arguments as in :class:`PGD`, without random_start,
    loss and targeted.
    """

    distance = staticmethod(kl_divergence)

    def target(self, clean_output: Tensor) -> Tensor:
        return widened(clean_output).softmax(dim=1)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        lo, hi = self.bounds
        adv = to_state(clean).add_(normal_draws(clean, seed, index), alpha=1e-3 * (hi - lo))
        NORMS[self.norm].project_(adv, clean, eps, lo, hi)
        return adv


class FeaturePGD(_AwayFromClean):
    """Moves what the model returns for an image as far as it can, without labels: increases the squared
    Euclidean distance of features (N, ...) from those for the clean image. The model returns features, or
    ``output`` finds them.

    At the clean image that distance has no gradient: a random start is needed. A result has no success.
    Arguments as in :class:`PGD`, without random_start, loss and targeted.
    """

    distance = staticmethod(feature_distance)
    label_free = True
