"""The gradient of a loss with respect to the input, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .attack_view import AttackView
from .modes import gradients
from .precision import get_precision

Loss = Callable[[Tensor, Tensor], Tensor]

# Of the loss's slope at the output of a sample, in half precision: far from both ends of float16, with room
# for what the layers before it multiply or average.
_LARGEST_SLOPE = 128.0


class InputGradient:
    """Computes a loss for each sample, and its gradient with respect to the model's input; no gradient with
    respect to weights.

    Works inside the caller's no_grad, inference_mode and autocast, and leaves these settings as they are.
    Inside, float32 products are exact ("fp32"), in TF32 ("tf32"), or as torch is set ("torch").

    view: maps prepared inputs (N, ...) to an output (N, ...); usually an :class:`AttackView`.
    loss: maps the output, in float32 or float64, and the target to (N,).
    precision: the view's.
    eot: number of calls of the view whose gradients, losses and outputs are averaged, for an output that is
        random (expectation over transformation; Athalye et al. 2018, Synthesizing Robust Adversarial
        Examples).
    """

    def __init__(
        self, view: Callable[[Tensor], Tensor], loss: Loss, *, precision: str = "fp32", eot: int = 1
    ):
        self._view, self._loss, self._eot = view, loss, eot
        self._asked = view.asked if isinstance(view, AttackView) else contextlib.nullcontext
        self._precision = get_precision(precision)

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns gradient (N, ...) in x's dtype, loss (N,) and output (N, ...), all detached.

        x: prepared inputs (N, ...). target: what the loss takes.

        In fp16, each sample's gradient is scaled by a positive number to stay in float16's range: its
        direction is right, its length is not.

        Raises ValueError for a loss that is not (N,), and where output or loss has no gradient.
        """
        with self.repeated() as gradient:
            return gradient(x, target)

    @contextlib.contextmanager
    def repeated(self) -> Iterator[Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]]:
        """Around a loop of calls, gives a function to call instead of this. Entering torch's settings in each
        call takes as long as a pass through a small model. Autograd is off in what else the loop does."""
        with gradients(), torch.no_grad(), self._precision.arithmetic(), self._asked():
            yield self._with_settings

    @torch.enable_grad()
    def _with_settings(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, target = _usable(x).detach().requires_grad_(), _usable(target)
        calls = [self._once(x, target) for _ in range(self._eot)]
        every_gradient, losses, outputs = zip(*calls, strict=True)
        return _mean(every_gradient), _mean(losses), _mean(outputs)

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns loss (N,) and output (N, ...), without a gradient."""
        with gradients(), torch.no_grad(), self._precision.arithmetic():
            outputs = [widened(self._view(x)) for _ in range(self._eot)]
            losses = [self._per_sample(output, target) for output in outputs]
        return _mean(losses), _mean(outputs)

    def output(self, x: Tensor) -> Tensor:
        """Returns the output (N, ...) alone."""
        with gradients(), torch.no_grad(), self._precision.arithmetic():
            return _mean([widened(self._view(x)) for _ in range(self._eot)])

    def of_each_class(
        self, x: Tensor, labels: Tensor, visit: Callable[[int, Tensor, Tensor], None]
    ) -> Tensor:
        """Returns the output (N, classes). For each class in turn, calls ``visit`` with the class, its logit
        minus the label's (N,), and the gradient (N, ...) of that difference: all gradients at once would need
        too much memory."""
        with gradients(), self._precision.arithmetic(), self._asked():
            x = _usable(x).detach().requires_grad_()
            output = _mean([widened(self._view(x)) for _ in range(self._eot)])
            for c in range(output.shape[1]):
                difference = output[:, c] - output.gather(1, labels[:, None])[:, 0]
                gradient = _slope(difference, x, keep_graph=True)
                if gradient is None:
                    raise ValueError(_NO_GRADIENT)
                with torch.no_grad():
                    visit(c, difference.detach(), gradient)
        return output.detach()

    def _once(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        returned = self._view(x)
        output = widened(returned)
        in_fp16 = self._precision.scales_loss or returned.dtype == torch.float16  # the copy, or the model
        if in_fp16 and returned.requires_grad:
            # In two parts, between which the slope is brought into range.
            output = output.detach().requires_grad_()
            loss = self._per_sample(output, target)
            slope = _slope(loss, output)
            gradient = None if slope is None else _slope_in_range(slope, returned, x)
        else:
            loss = self._per_sample(output, target)
            gradient = _slope(loss, x)
        if gradient is None and returned.requires_grad and not loss.requires_grad:
            raise ValueError("loss: it has no gradient with respect to the model's output")
        if gradient is None:
            raise ValueError(_NO_GRADIENT)
        return gradient, loss.detach(), output.detach()

    def _per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self._loss(output, target)
        if loss.shape != output.shape[:1]:
            raise ValueError(
                f"loss: it returned shape {tuple(loss.shape)}, accepted: one number per sample, "
                f"{tuple(output.shape[:1])} (reduction='none')"
            )
        return loss


def _usable(tensor: Tensor) -> Tensor:
    """A copy of an inference tensor, which autograd can neither save nor differentiate by."""
    return tensor.clone() if tensor.is_inference() else tensor


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(dim=0)


def widened(output: Tensor) -> Tensor:
    """The output in float32 if it is in half precision, else as it is."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


_NO_GRADIENT = "model: its output has no gradient with respect to the input"


def _slope(
    of: Tensor, at: Tensor, weights: Tensor | None = None, *, keep_graph: bool = False
) -> Tensor | None:
    if not of.requires_grad:
        return None
    weights = torch.ones_like(of) if weights is None else weights
    (slope,) = torch.autograd.grad(of, at, weights, retain_graph=keep_graph or None, allow_unused=True)
    # A sum's is one number, expanded: an attack that keeps gradients writes into them.
    return slope.contiguous() if slope is not None and 0 in slope.stride() else slope


def _slope_in_range(slope: Tensor, output: Tensor, x: Tensor) -> Tensor | None:
    """The gradient at x for a slope at the output. On its way each sample's slope has its largest element at
    _LARGEST_SLOPE; a zero one stays zero."""
    largest = slope.reshape(len(slope), -1).abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0) / _LARGEST_SLOPE
    gradient = _slope(output, x, (slope / _beside(scale, slope)).to(output.dtype))
    if gradient is None or x.dtype == torch.float16:  # whose range has no room for its length
        return gradient
    return gradient * _beside(scale, x)


def _beside(per_sample: Tensor, tensor: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * (tensor.dim() - 1))
