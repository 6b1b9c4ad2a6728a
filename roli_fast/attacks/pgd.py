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
    """Projected gradient descent: steps along the gradient of a loss, each projected back onto the ball of
    radius eps around the clean image and onto the box of valid pixels.

    ``attack(model, images, labels)`` returns the adversarial images; ``attack.run(...)`` returns an
    :class:`AttackResult`, with success and loss of each sample. Neither changes the model.

    norm: "linf", "l2" or "l1". It measures the ball and the steps; each step takes the direction of steepest
        ascent in this norm.
    eps, step_size: the ball's radius and a step's length, in pixel units: numbers, or tensors () or (N,).
    steps: number of gradient steps, at least 1.
    random_start: whether to start at a uniformly random point of the ball rather than at the clean image.
    restarts: number of runs from different random starts. The best result of each sample is kept: one that
        fools the model rather than one that does not, and then the one with the higher loss.
    loss: the loss to increase: "ce" (cross-entropy), "margin", "dlr" (Croce and Hein 2020), or a callable
        that takes float logits (N, classes) and labels (N,) and returns (N,). With one that may read more
        than its arguments, such as soft labels in a closure or a global number, there is no CUDA graph,
        and a note says so.
    targeted: whether labels are the classes to reach; the loss is then decreased.
    bounds: the lowest and the highest value that a pixel may have.
    iterate: which point of a run is its result: the "last", or the "best" of all including the last, chosen
        sample by sample as with restarts.
    early_stop: whether a sample leaves the batch as soon as it fools the model, which makes evaluation faster
        and needs iterate="best". Which samples succeed stays the same, but in half precision, where more may:
        the model itself decides about each place that fools its copy. Images and losses may differ.
    precision: what gradients are computed in, on a copy of the model: "fp32", "tf32", "bf16" or "fp16"; or
        "torch", float32 whose products are computed as torch's own settings say (on a GPU, unless told
        otherwise, convolutions in TF32). Success is always decided by the model itself, at its own precision.
    generator: where random numbers come from; by default torch's global generator, so that
        ``torch.manual_seed`` makes a run repeatable.
    eot: number of calls of the model whose outputs or gradients are averaged (expectation over
        transformation), for a model whose output is random.
    sparsity: the share of a sample's elements that an L1 step moves, above 0 and up to 1.
    fold: whether the copy of the model may fold BatchNorm into the layers before it, which is exact up to
        rounding.
    output: where the logits are in what the model returns; by default, it returns them. See
        :func:`roli_fast.engine.select`.

    Settings are fixed once the attack is made. To vary eps or step_size between calls, pass a tensor and
    change its value.

    A sample's random numbers are a function of a key, its index, the restart and the pixel. So if ``run`` is
    given key and index, the result does not depend on batch size or order (as far as the model's own
    gradients do not). By default a new key is drawn for each call, and the index is the place in the batch.

    On a GPU, a whole run is captured as a CUDA graph when a batch of the same shape comes the second time.

    Raises ValueError or TypeError for settings that are not accepted or exclude each other.
    """

    decay: float | None = None  # of the momentum, in attacks that have one

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
        """Random starting points (N, ...), in float32 or float64. seed: (2,) int64. index: (N,) int64, each
        sample's place in the data set."""
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
        assert state.best is not None
        fooled = self.fooled(output, state.labels)
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
        if std is not None:  # momentum is scaled by the gradient with respect to pixels
            gradient = ascent.in_pixels(gradient)
        ops.momentum_(state.momentum, gradient, self.decay)
        self._step(state, state.momentum)
        state.x = ascent.view.prepare(state.adv)

    def _step(self, state: State, gradient: Tensor, **following: Tensor | None) -> None:
        """following: the op's arguments out, mean and std, by which it writes the model's next input too."""
        share = {}
        if self.norm == "l1":
            share["sparsity"] = state.sparsity
            gradient = movable(gradient, state.adv, *self.bounds)
        sizes = state.step_size, state.eps, *self.bounds
        NORMS[self.norm].step_(state.adv, gradient, state.clean, *sizes, **share, **following)


class FGSM(PGD):
    """The fast gradient sign method (Goodfellow et al. 2015): a single step of length eps from the clean
    image. In L2 and L1, the step takes the direction of steepest ascent in that norm.

    Arguments as in :class:`PGD`, without step_size, steps and random_start.
    """

    def __init__(self, norm: str = "linf", eps: float | Tensor = 8 / 255, **options: Unpack[PGDOptions]):
        check_options(self, options, PGDOptions)
        super().__init__(norm, eps, step_size=eps, steps=1, random_start=False, **options)


class NFGSM(PGD):
    """N-FGSM, for training (de Jorge et al. 2022): a single step of length eps from a random start in a
    larger ball, without a projection back into the ball of eps.

    Its images therefore lie in a ball of radius (noise + 1) eps, and that is what ``attack.eps`` says; for an
    eps that is a tensor, ``attack.eps`` is a new tensor.

    noise: the radius of the ball in which the start is uniformly random, in multiples of eps; above 0.

    Other arguments as in :class:`PGD`, without step_size, steps and random_start.
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
    """The momentum iterative fast gradient sign method (Dong et al. 2018): from the clean image, steps along
    the momentum m, which accumulates gradients g: m <- decay m + g / mean|g|.

    decay: the factor by which momentum is multiplied in each step, at least 0.

    Other arguments as in :class:`PGD`.
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
    """Moves the output away from the output for the clean image, which needs no labels. At the clean image
    the distance has no gradient, so that the start is always random."""

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
        """What the distance is measured from, given the output for the clean images."""
        return clean_output

    def prepare(self, trial: Trial) -> None:
        self._set_labels(trial, trial.clean_output)

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        self._set_labels(trial, trial.clean_view_output)
        return self.target(trial.clean_view_output)

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        return self.objective(widened(output), self.target(trial.clean_output[rows]))

    def _set_labels(self, trial: Trial, clean_output: Tensor) -> None:
        """If no labels were given, the classes that the model predicts for the clean images become these."""
        if trial.labels is None and not self.label_free:
            trial.labels = clean_output.argmax(dim=1)


class TPGD(_AwayFromClean):
    """The attack that TRADES trains with (Zhang et al. 2019, section 4): PGD that increases the KL divergence
    between the model's probabilities for the clean and for the adversarial image.

    It starts from Gaussian noise around the clean image, with a standard deviation of a thousandth of the
    pixels' range, since the divergence has no gradient at the clean image itself. Labels are optional:
    without them, an image succeeds if its class differs from the clean image's.

    Arguments as in :class:`PGD`, without random_start, loss and targeted.
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
    """PGD on features, without labels: increases the squared Euclidean distance between the features
    (N, ...) of the adversarial and of the clean image. The model returns features, or ``output`` says where
    they are in what it returns.

    The start is random, since the distance has no gradient at the clean image itself. A result's ``success``
    is None: features have no class that could be fooled.

    Arguments as in :class:`PGD`, without random_start, loss and targeted.
    """

    distance = staticmethod(feature_distance)
    label_free = True
