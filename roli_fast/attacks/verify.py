"""What an attack reached, decided by the model itself and plain torch."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_choice, check_count, refuse
from ..engine import Output, class_logits
from ..engine.modes import Model
from ..ops.reference.shared import over_batch, pixels
from .inputs import check_bounds, check_inputs, check_labels, check_size
from .norms import NORMS, distance


@dataclasses.dataclass(frozen=True)
class Place:
    """Where adversarial images lie. All fields are (N,), one value for each sample.

    finite: bool, whether the image is without NaN and infinity.
    in_box: bool, whether all its pixels are within the bounds.
    in_ball: bool, whether it is within eps of the clean image, up to rounding: one unit in the last place of
        either image, and in L2 and L1 one of eps.
    distance: float64, to the clean image, in the norm.
    """

    finite: Tensor
    in_box: Tensor
    in_ball: Tensor
    distance: Tensor

    @property
    def allowed(self) -> Tensor:
        """(N,) bool: finite, in_box and in_ball."""
        return self.finite & self.in_box & self.in_ball


@dataclasses.dataclass(frozen=True)
class Verification(Place):
    """As :class:`Place`, and what the model says of the images; all (N,).

    prediction: int64, the model's class.
    success: bool, whether the image is finite, in the box and in the ball, and fools the model.
    """

    prediction: Tensor
    success: Tensor


def predict(model: Model, images: Tensor, output: Output = None) -> Tensor:
    """The model's logits (N, classes) for images (N, ...), in eval mode. The model is left unchanged.

    output: where the logits are in what the model returns; see :func:`roli_fast.engine.select`.

    Raises ValueError where the output is not (N, classes), and where a logit is NaN, since there is then no
    prediction.
    """
    logits = class_logits(model, images, output)
    broken = logits.isnan().any(dim=1)
    if broken.any():
        raise ValueError(f"model: its logits are NaN for samples {broken.nonzero().flatten().tolist()[:8]}")
    return logits


def mean_of(eot: int, call: Callable[[], Tensor]) -> Tensor:
    """The mean over ``eot`` calls: a random model's single answer may be wrong by chance."""
    return call() if eot == 1 else torch.stack([call() for _ in range(eot)]).mean(dim=0)


def is_fooled(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """(N,) bool: another class than the label, or, targeted, the target."""
    return (logits.argmax(dim=1) == labels) == targeted


@torch.no_grad()
def verify(
    model: Model,
    clean: Tensor,
    adv: Tensor,
    labels: Tensor,
    norm: str,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    targeted: bool = False,
    output: Output = None,
    eot: int = 1,
) -> Verification:
    """Checks adversarial images, whoever made them: whether they are valid, and whether they fool the model.
    Uses plain torch and the model itself, never an attack's copy of it.

    model: maps images (N, ...) to logits (N, classes); called in eval mode and left unchanged.
    clean: the clean images (N, ...), in any float dtype; uint8 images stand for their values / 255.
    adv: the adversarial images (N, ...), in any float dtype, as the model is given them.
    labels: (N,) int64, the true classes; with ``targeted``, the classes to reach.
    norm: "linf", "l2" or "l1".
    eps: the ball's radius in pixel units, measured in the norm: a number, or a tensor (N,).
    bounds: the lowest and the highest value that a pixel may have.
    output: where the logits are in what the model returns; see :func:`roli_fast.engine.select`.
    eot: number of calls of the model that are averaged, for a model whose output is random.

    Raises ValueError or TypeError for arguments that do not fit together, and ValueError for labels outside
    of the model's classes.
    """
    check_count("eot", eot)
    if labels is None:
        refuse("labels", "None", "int64 (N,)", TypeError)
    check_inputs(clean, labels, None, eps=eps)
    place = locate(clean, adv, norm, eps, bounds)
    # A model need not survive NaN: it is asked about the clean image instead, and that is no success.
    asked = torch.where(over_batch(place.finite, adv), adv, pixels(clean, adv.dtype))
    logits = mean_of(eot, lambda: predict(model, asked, output))
    check_labels(labels, logits.shape[1])
    success = place.allowed & is_fooled(logits, labels, targeted)
    return Verification(**vars(place), prediction=logits.argmax(dim=1), success=success)


def locate(
    clean: Tensor, adv: Tensor, norm: str, eps: float | Tensor, bounds: tuple[float, float] = (0.0, 1.0)
) -> Place:
    """Where adversarial images lie, without asking a model. Arguments as in :func:`verify`."""
    check_choice("norm", norm, tuple(NORMS))
    check_size("eps", eps)
    check_bounds(bounds)
    check_inputs(clean, None, None, eps=eps)
    if not isinstance(adv, Tensor):
        refuse("adv", f"a {type(adv).__name__}", "a tensor", TypeError)
    if adv.shape != clean.shape or not adv.is_floating_point():
        got = f"{adv.dtype} of shape {tuple(adv.shape)}"
        refuse("adv", got, f"a float tensor of clean's shape {tuple(clean.shape)}")
    state = torch.float64 if torch.float64 in (adv.dtype, clean.dtype) else torch.float32
    image = pixels(clean, state)
    if clean[:1].numel() == 0 and len(clean) > 0:
        refuse("clean", f"shape {tuple(clean.shape)}", "images with elements")
    flat, flat_image = (x.flatten(1) if x.dim() > 1 else x[:, None] for x in (adv.to(state), image))
    change = flat.double() - flat_image.double()
    far = distance(norm, change)
    magnitude = torch.maximum(flat.abs(), flat_image.abs())
    ulp = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)).double() - magnitude.double()
    eps = torch.as_tensor(eps, dtype=torch.float64, device=adv.device)
    lo, hi = torch.tensor(bounds, dtype=state).tolist()  # as a kernel sees them

    finite = flat.isfinite().all(dim=1)
    in_box = ((flat >= lo) & (flat <= hi)).all(dim=1)
    if norm == "linf":  # each element may be as far off as its own rounding; NaN is in no ball
        in_ball = (change.abs() <= eps.reshape(-1, 1) + ulp).all(dim=1)
    else:
        # Beside black pixels, whose own rounding is next to nothing, that of eps and of steps counts, too.
        in_ball = far <= eps * (1 + torch.finfo(state).eps) + distance(norm, ulp)
    return Place(finite, in_box, in_ball, far)
