"""The training step: optimiser, learning rate schedule, autocast, and the moving average of the weights."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..attacks.inputs import to_state
from ..checks import refuse
from ..distributed import world_size
from ..engine import GraphRunner
from ..engine.graphs import Function
from ..engine.modes import device_of
from ..engine.precision import get_precision
from ..engine.weakly import weakly
from ..models import find_classifier
from .recipe import AUTO, Recipe
from .step_graph import step_graph


class Learner:
    """Trains the parameters of a model that require a gradient, step by step.

    precision: of the attacks; the training step too computes float32 products in it.
    steps: number of steps in an epoch.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, precision: str, steps: int):
        self._model, self._recipe, self._arithmetic = model, recipe, get_precision(precision)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._net = model
        self._passes: Function = self._forward_and_backward
        self._graph: GraphRunner | None = None
        if world_size() > 1:
            self._net = DistributedDataParallel(model)
        else:
            self._passes = self._graph = step_graph(model, weakly(self._forward_and_backward))
        self._optimizer = make_optimizer(model, recipe)
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=max(2, (recipe.epochs - recipe.warmup_epochs) * steps),  # timm warns of a single step
            lr_min=recipe.lr if recipe.sched == "none" else recipe.min_lr,
            warmup_t=recipe.warmup_epochs * steps,
            warmup_lr_init=recipe.lr / (recipe.warmup_epochs * steps + 1),  # at 0 the first steps were wasted
            warmup_prefix=True,
            t_in_epochs=False,
        )
        half = "bfloat16" if self._arithmetic.is_half else "float32"
        self.amp_dtype = getattr(torch, half if recipe.amp_dtype == AUTO else recipe.amp_dtype)
        self._device = device_of(model).type
        self._scaler = torch.amp.GradScaler(self._device, enabled=self.amp_dtype == torch.float16)
        self._ema = None
        if recipe.ema_decay is not None:
            self._ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
        self.moves_backbone = _moves_backbone(model)

    @property
    def result(self) -> nn.Module:
        """The model that is validated and kept: with averaged weights, if the recipe has ema_decay."""
        return self._model if self._ema is None else self._ema.module

    @property
    def lr(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def train(self) -> None:
        """Puts the model into train mode, after an epoch or whatever else it was used for."""
        self._net.train()
        if self._graph is not None:
            self._graph.forget_changed()

    def step(self, number: int, images: Tensor, adversarial: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser. Returns the loss (), and (N,) bool, which adversarial images were
        classified right.

        number: the step's, counted from the beginning of training.
        """
        self._schedule.step_update(number)
        clean = images if self._recipe.loss == "trades" else None
        with self._arithmetic.arithmetic():
            loss, right, *gradients = self._passes(clean, adversarial, labels)
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                parameter.grad = gradient if gradient.shape == parameter.shape else None
            if self._recipe.clip_grad is not None:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_grad)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if self._ema is not None:
            self._ema.update(self._model, step=number)
        return loss.clone(), right.clone()

    def _forward_and_backward(
        self, clean: Tensor | None, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        """The loss (), which adversarial images were classified right (N,), and the gradients of the scaled
        loss for the parameters that are trained: an empty one where a parameter took no part.

        clean: the images themselves, for TRADES.
        """
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            loss, logits = self._objective(clean, adversarial, labels)
        self._scaler.scale(loss).backward()
        gradients = (loss.new_empty(0) if p.grad is None else p.grad for p in self._trained)
        return loss.detach(), logits.detach().argmax(dim=1) == labels, *gradients

    def _objective(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits for the adversarial images.

        Cross-entropy on adversarial images (Madry et al. 2018), or TRADES (Zhang et al. 2019, eq. 5):
        CE(f(x), y) + beta KL(f(x) || f(x')).
        """
        logits = self._net(to_state(adversarial))
        if clean is None:
            return F.cross_entropy(logits, labels), logits
        clean_logits = self._net(to_state(clean)).float()
        # From log probabilities: where a probability underflows, its gradient would be NaN.
        log_clean, log_adversarial = (F.log_softmax(x.float(), dim=1) for x in (clean_logits, logits))
        divergence = F.kl_div(log_adversarial, log_clean, reduction="batchmean", log_target=True)
        return F.cross_entropy(clean_logits, labels) + self._recipe.trades_beta * divergence, logits

    @property
    def forwards(self) -> int:
        """How many forward passes a step makes for each image."""
        return 2 if self._recipe.loss == "trades" else 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "ema": None if self._ema is None else self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser. Raises ValueError if a package or device that it needs is missing, and
    for settings that do not fit it."""
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=_undecayed(model))
    # fused: one pass over weights and moments, where torch's default makes one for each operation.
    fused: dict[str, Any] = {"fused": True} if recipe.opt.lower() in ("adam", "adamw") else {}
    try:
        return create_optimizer_v2(groups, opt=recipe.opt, lr=recipe.lr, momentum=recipe.momentum, **fused)
    except (AssertionError, ImportError, TypeError) as error:  # a package or a device that it needs
        refuse("opt", f"{recipe.opt!r}, which cannot be made here ({error})", "another one")
    except ValueError as error:  # as of SGD for Nesterov's momentum of 0
        given = ", ".join(f"{name}={getattr(recipe, name)}" for name in ("lr", "momentum", "weight_decay"))
        accepted = "settings that it takes, or another one: 'momentum' is SGD without Nesterov's"
        refuse("opt", f"{recipe.opt!r} with {given} ({error})", accepted)


def _moves_backbone(model: nn.Module) -> bool:
    """Whether a backward pass goes through more than the head."""
    try:
        inside: nn.Module = find_classifier(model).backbone
    except TypeError:
        inside = model
    return any(p.requires_grad for p in inside.parameters())


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that the networks inside exempt from weight decay, such as position embeddings.
    Biases and normalisation layers are exempt anyway."""
    names = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            own: Any = module.no_weight_decay
            names |= {f"{prefix}.{name}" if prefix else name for name in own()}
    return names
