"""Projected gradient descent (Madry et al., Towards Deep Learning Models Resistant to Adversarial
Attacks, ICLR 2018), and its relatives."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..engine import PRECISIONS, AttackView, Output, widened
from ..engine.modes import Model
from ..engine.outputs import check_output
from .descent import Ascent, AttackResult, Descent
from .inputs import (
    ITERATES,
    check_bounds,
    check_choice,
    check_count,
    check_decay,
    check_generator,
    check_inputs,
    check_share,
    check_size,
    check_values,
    refuse,
    to_state,
)
from .losses import Loss, feature_distance, get_loss, kl_divergence
from .norms import NORMS
from .verify import is_fooled


class PGD:
    """Projected gradient descent with a random start.

    norm: "linf", "l2" or "l1": of the ball and of the steps, which go in the direction of steepest ascent.
    eps, step_size: in pixel units, measured in the norm: numbers, or tensors () or (N,).
    steps: gradient steps, at least 1.
    random_start: uniform in the ball; otherwise the clean image.
    restarts: runs from different starts; per sample the best is kept: fooled first, then the highest loss.
    loss: "ce", "margin", "dlr" (Croce and Hein 2020), or a callable of float logits (N, classes) and labels
        (N,) that returns (N,).
    targeted: labels are targets, and the loss is decreased.
    bounds: the box that pixels lie in.
    iterate: "last"; or "best": misclassified first, then the highest loss, per sample, the last included.
    early_stop: a fooled sample leaves the batch (evaluation; needs iterate="best"). Success stays the
        same; images and losses of fooled samples may differ.
    precision: of the copy that gives gradients, "fp32", "tf32", "bf16" or "fp16"; success is decided by the
        model itself, at its own.
    generator: source of the random key; default torch's own, so that ``torch.manual_seed`` repeats a run.
    eot: gradients that are averaged in each step, for a model whose output is random.
    sparsity: share of a sample's elements that an L1 step moves, above 0 and up to 1.
    fold: whether the copy has its BatchNorms folded where that is exact up to rounding.
    output: where in what the model returns the logits are; default, that is the logits. See
        :func:`roli_fast.engine.select`.

    ``attack(model, images, labels)`` returns adversarial images, ``attack.run(...)`` an
    :class:`AttackResult`. Every draw is a function of key, sample index, restart and pixel, so that a
    result does not depend on batch size or order where the model's own gradients do not. Settings are fixed;
    a size that changes from call to call is a tensor whose value changes. On a GPU the whole run is a CUDA
    graph from the second batch of a shape on.
    """

    # What relatives do otherwise.
    decay: float | None = None
    compares_with_clean = False  # the loss compares with the output for the clean images, not with labels
    label_free = False  # the output has no classes

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
        check_choice("norm", norm, tuple(NORMS))
        check_choice("iterate", iterate, ITERATES)
        check_choice("precision", precision, tuple(PRECISIONS))
        check_size("eps", eps)
        check_size("step_size", step_size)
        check_count("steps", steps)
        check_count("restarts", restarts)
        check_count("eot", eot)
        check_share("sparsity", sparsity)
        check_bounds(bounds)
        check_output(output)
        if restarts > 1 and not random_start:
            refuse("restarts", f"{restarts} without a random start, which would all be the same", "1")
        if early_stop and iterate != "best":
            refuse("early_stop", f"True with iterate={iterate!r}", "iterate='best', whose success it keeps")
        self.norm, self.eps, self.step_size, self.steps = norm, eps, step_size, steps
        self.random_start, self.restarts, self.loss, self.targeted = random_start, restarts, loss, targeted
        self.bounds, self.iterate, self.early_stop = bounds, iterate, early_stop
        self.precision, self.generator = precision, generator
        self.eot, self.sparsity, self.fold, self.output = eot, sparsity, fold, output
        self._loss = get_loss(loss)
        self._ascents: weakref.WeakKeyDictionary[nn.Module, Ascent] = weakref.WeakKeyDictionary()

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """What is increased, (N,): the loss, or minus the loss for a target class."""
        loss = self._loss(output, target)
        return -loss if self.targeted else loss

    def target(self, clean_output: Tensor) -> Tensor:
        """What the loss compares with, by the output for clean images, where it compares with that."""
        return clean_output

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        """Random starting points (N, ...), in float32 or float64; seed: (2,) int64, index: (N,) int64."""
        return NORMS[self.norm].start(clean, eps, seed, *self.bounds, index=index)

    def fooled(self, output: Tensor, labels: Tensor | None) -> Tensor:
        """(N,) bool."""
        if labels is None:
            return torch.zeros(len(output), dtype=torch.bool, device=output.device)
        return is_fooled(output, labels, self.targeted)

    def __setattr__(self, name: str, value: object) -> None:
        if "_ascents" in vars(self):
            raise AttributeError(
                f"{name}: the settings of an attack are fixed. Make another one, or keep eps and step_size "
                "in tensors and change their values"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_ascents"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _ascents=weakref.WeakKeyDictionary())

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in vars(self).items() if name[0] != "_")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __call__(self, model: Model, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for a batch, in the images' dtype and layout (float32 for uint8 images).

        model: maps images (N, ...) to logits (N, classes); it is attacked in eval mode and left as it was.
        images: (N, ...) within bounds: any float dtype, or uint8 for v / 255.
        labels: (N,) int64 on images' device; TPGD and FeaturePGD need none.

        Raises ValueError or TypeError for inputs that do not fit, before anything is attacked.
        """
        with torch.inference_mode(False), torch.no_grad():
            descent = self._begin(model, images, labels, None)
            single = self.restarts == 1 and not self.early_stop
            return descent.unjudged() if single else descent.judged().adversarial

    def run(
        self, model: Model, images: Tensor, labels: Tensor | None = None, *, index: Tensor | None = None
    ) -> AttackResult:
        """As a call, with all that an evaluation needs.

        index: (N,) int64, which sample of the data set each one is: the same index draws the same
            random numbers in any batch. Default 0 .. N - 1.
        """
        with torch.inference_mode(False), torch.no_grad():
            return self._begin(model, images, labels, index).judged()

    def view(self, model: Model) -> AttackView:
        """The model as this attack computes gradients with it, with the model's current weights."""
        return self._ascent(model).view

    def _ascent(self, model: Model) -> Ascent:
        ascent = self._ascents.get(model) if isinstance(model, nn.Module) else None
        if ascent is not None:
            ascent.view.refresh()
            return ascent
        view = AttackView(model, precision=self.precision, fold=self.fold, output=self.output)
        ascent = Ascent(self, view)
        if isinstance(model, nn.Module):
            view.hold_weakly()
            self._ascents[model] = ascent
        return ascent

    def _begin(self, model: Model, images: Tensor, labels: Tensor | None, index: Tensor | None) -> Descent:
        """All checks, then a descent that is ready to go."""
        if labels is None and not self.compares_with_clean:
            refuse("labels", "None", "int64 (N,)", TypeError)
        if self.label_free:
            labels = None
        sizes = {"eps": self.eps, "step_size": self.step_size, "sparsity": self.sparsity}
        check_inputs(images, labels, index, **sizes)
        check_generator(self.generator, images.device)
        ascent = self._ascent(model)
        view = ascent.view
        check_values(images, labels, self.bounds, view.classes)
        if view.output_shape is None and len(images) > 0:
            view.confirm(to_state(images))
            check_values(images, labels, self.bounds, view.classes)
        if view.output_shape is not None and view.classes is None and not self.label_free:
            shape = ", ".join(map(str, ("N", *view.output_shape)))
            refuse("model", f"an output of shape ({shape})", "float logits (N, classes)")
        return Descent(self, model, ascent, images, labels, index)


class FGSM(PGD):
    """The fast gradient sign method (Goodfellow et al. 2015): one step to the edge of the ball, from the
    clean image. In L2 and L1 it goes in their direction of steepest ascent. Arguments as in :class:`PGD`."""

    def __init__(self, norm: str = "linf", eps: float | Tensor = 8 / 255, **options: Any):
        super().__init__(norm, eps, step_size=eps, steps=1, random_start=False, **options)


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
        **options: Any,
    ):
        check_decay("decay", decay)
        self.decay = decay
        super().__init__(norm, eps, step_size, steps, **{"random_start": False, **options})


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
        **options: Any,
    ):
        if not options.get("random_start", True):
            refuse("random_start", False, "True: at the clean image this attack's loss has no gradient")
        if options.get("targeted", False):
            refuse("targeted", True, "False: this attack's loss knows no labels")
        if self.label_free and options.get("early_stop", False):
            refuse("early_stop", True, "False: features have no class that could be fooled")
        super().__init__(norm, eps, step_size, steps, **options, loss=self.distance)


class TPGD(_AwayFromClean):
    """The attack of TRADES (Zhang et al. 2019, section 4): increases the divergence of the model's
    probabilities from those for the clean image, from Gaussian noise of a thousandth of the pixels' range.

    At the clean image that divergence has no gradient: a random start is needed. Labels are not; without
    them, success is another class than the clean image's. Arguments as in :class:`PGD`, without loss and
    targeted.
    """

    distance = staticmethod(kl_divergence)

    def target(self, clean_output: Tensor) -> Tensor:
        return widened(clean_output).softmax(dim=1)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        uniform = ops.linf_start(
            torch.zeros_like(clean, dtype=to_state(clean[:0]).dtype), 1.0, seed, -1, 1, index=index
        )
        lo, hi = self.bounds
        inside = 1 - torch.finfo(uniform.dtype).eps / 2  # the ends of a normal distribution are infinite
        normal = torch.erfinv(uniform.clamp_(-inside, inside)) * 2**0.5
        adv = to_state(clean).add_(normal, alpha=1e-3 * (hi - lo))
        NORMS[self.norm].project_(adv, clean, eps, lo, hi)
        return adv


class FeaturePGD(_AwayFromClean):
    """Moves what the model returns for an image as far as it can, without labels: increases the squared
    Euclidean distance of features (N, ...) from those for the clean image. The model returns features, or
    ``output`` finds them.

    At the clean image that distance has no gradient: a random start is needed. A result has no success.
    Arguments as in :class:`PGD`, without loss and targeted.
    """

    distance = staticmethod(feature_distance)
    label_free = True
