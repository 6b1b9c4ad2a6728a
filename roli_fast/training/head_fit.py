"""A convex fit of a linear head to adversarial features."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import refuse
from .processes import summed

_ITERATIONS = 100  # of L-BFGS, which mostly needs a tenth of that
_ENOUGH = 1e-5  # a fit ends where an iteration lowers the loss by less
_CHUNK = 1 << 16  # feature vectors at once
_ALIKE = 1e-10  # features with less variance, as a share of their mean square, differ by their rounding


class HeadFit:
    """Fits a head to the mean over images of the worst loss among an image's features in a pool.

    features: the clean features of this process' images, in batches (b, F); their mean and spread scale all
        others. labels: (n,) int64, of all batches.

    pool: the features that were added, a tensor (n, F) each, with an image in the same row of all.
    loss: the loss that the last fit has reached.

    Raises ValueError for features without a spread: they give no scale, and leave nothing to fit.
    """

    def __init__(self, head: nn.Linear, features: Sequence[Tensor], labels: Tensor):
        self._head, self._labels = head, labels
        sums = torch.zeros(1 + 2 * head.in_features, dtype=torch.float64, device=labels.device)
        for batch in features:
            wide = batch.double()
            sums += torch.cat([sums.new_tensor([len(batch)]), wide.sum(0), wide.square().sum(0)])
        self._images = summed(sums)[0].item()  # of all processes
        mean, square = sums[1:].div(self._images).chunk(2)
        self._mean = mean.to(head.weight.dtype)
        # Over images, averaged over features.
        variance = (square - mean.square()).mean()
        if variance <= _ALIKE * square.mean():
            got = f"{self._images:.0f} images whose features are all alike"
            refuse("splits.train", got, "images that the backbone tells apart")
        self._spread = variance.sqrt().item()
        self.pool: list[Tensor] = []
        self.loss = math.inf

    def compact(self, features: Tensor) -> Tensor:
        """Features (b, F) as the pool holds them: centred and scaled, so that half precision keeps what tells
        images apart."""
        return ((features - self._mean) / self._spread).half()

    def add(self, compact: Sequence[Tensor]) -> None:
        """Adds all images' features to the pool, in batches that :meth:`compact` has made."""
        self.pool.append(torch.cat(list(compact)))

    def fit(self, weight_decay: float) -> None:
        # In these units the loss bends about as much along a weight as along a bias, and L-BFGS takes half
        # the passes over the pool: along a logit it bends by p (1 - p), about 1 / classes on average, and
        # features have variance 1.
        bend = 1 / self._head.out_features
        of_weight, of_bias = (bend + weight_decay) ** -0.5, bend**-0.5
        weight, bias = self._scaled_head()
        weight, bias = weight.div(of_weight).requires_grad_(), bias.div(of_bias).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_ITERATIONS,
            tolerance_change=_ENOUGH,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            scaled = weight.detach() * of_weight
            loss, for_weight, for_bias = self._worst(scaled, bias.detach() * of_bias)
            weight.grad = (for_weight + weight_decay * scaled) * of_weight
            bias.grad = for_bias * of_bias
            return loss + 0.5 * weight_decay * scaled.square().sum().item()

        optimizer.step(closure)
        with torch.no_grad():
            weight, bias = weight * of_weight, bias * of_bias
            self._head.weight.copy_(weight / self._spread)
            self._head.bias.copy_(bias - self._head.weight @ self._mean)
        self.loss, _, _ = self._worst(weight, bias)

    @torch.no_grad()
    def on_the_last(self) -> tuple[float, float]:
        """The head's mean loss and accuracy on the features that were added last, over all processes."""
        logits = F.linear(self.pool[-1].float(), *self._scaled_head())
        loss = F.cross_entropy(logits, self._labels, reduction="sum").double()
        hits = (logits.argmax(1) == self._labels).sum().double()
        loss_sum, hit_sum = summed(torch.stack([loss, hits])).tolist()
        return loss_sum / self._images, hit_sum / self._images

    def _scaled_head(self) -> tuple[Tensor, Tensor]:
        """The head's weight and bias as they act on centred and scaled features."""
        weight, bias = self._head.weight.detach(), self._head.bias.detach()
        return weight * self._spread, bias + weight @ self._mean

    def _worst(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean over the images of all processes of the worst loss in the pool, and its gradients with
        respect to weight and bias."""
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        sums = torch.zeros(1 + weight.numel() + bias.numel(), dtype=torch.float64, device=weight.device)
        rows = max(1, _CHUNK // len(self.pool))
        for labels, *features in zip(*(t.split(rows) for t in (self._labels, *self.pool)), strict=True):
            with torch.enable_grad():
                logits = F.linear(torch.cat(features).float(), weight, bias)
                losses = F.cross_entropy(logits, labels.repeat(len(features)), reduction="none")
                loss = losses.view(len(features), -1).amax(0).sum()
                gradients = torch.autograd.grad(loss, (weight, bias))
            sums += torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])
        means = summed(sums) / self._images
        for_weight, for_bias = means[1:].to(weight.dtype).split([weight.numel(), bias.numel()])
        return means[0].item(), for_weight.view_as(weight), for_bias
