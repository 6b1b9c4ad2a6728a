"""A classifier in two parts: a backbone, which computes features, and a linear head."""

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from ..checks import refuse
from .architecture import Architecture
from .normalized import Normalized

# The prior of RetinaNet (Lin et al. 2017): every class has a probability of 0.01 at first.
_HEAD_BIAS = -math.log(0.99 / 0.01)


class Classifier(nn.Module):
    """``head(backbone(images))``.

    backbone: maps images (N, C, ...) to features (N, F).
    head: a linear layer; :meth:`reset_head` replaces it.
    head_name: the head's name in the model from which it was taken, and in that model's checkpoints.
    method, options: the finetuning method that :func:`finetune` has prepared, and its options. With any
        method but "full", the backbone stays in eval mode during training, except for modules that the method
        has inserted: BatchNorm statistics, dropout and stochastic depth are those of the network whose
        robustness is to be kept.
    architecture: how to build the model anew, if :func:`create_model` built it; otherwise None.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, head_name: str):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.head_name = head_name
        self.method = "full"
        self.options: dict[str, Any] = {}
        self.architecture: Architecture | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    @property
    def inserted(self) -> bool:
        """Whether a finetuning method has inserted modules into the backbone."""
        return any(isinstance(module, Inserted) for module in self.backbone.modules())

    def reset_head(self, num_classes: int) -> None:
        """Replaces the head by a new one, initialised as in RoLI: weights from Kaiming's normal distribution
        (fan out), and biases that give every class a probability of 0.01 under a sigmoid."""
        weight = self.head.weight
        self.head = nn.Linear(weight.shape[1], num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.kaiming_normal_(self.head.weight, mode="fan_out")
        nn.init.constant_(self.head.bias, _HEAD_BIAS)
        if self.architecture is not None:
            self.architecture = dataclasses.replace(self.architecture, num_classes=num_classes)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if mode and self.method != "full":
            self.backbone.eval()
            for module in self.backbone.modules():
                if isinstance(module, Inserted):
                    module.training = True  # train() would include what it encloses
        return self


class Inserted(nn.Module):
    """A module that a finetuning method inserts into a backbone. In training it is in train mode, even if the
    backbone stays in eval mode."""


def separate(model: nn.Module, head_name: str | None = None) -> Classifier:
    """Takes the last linear layer out of a model, which separates head and backbone.

    The model itself becomes the backbone, with an identity in place of its last layer.

    model: a timm model, or any module in which ``head_name`` is an ``nn.Linear`` that is applied last.
    head_name: the layer's name in the model; by default, the one that timm gives.

    Raises ValueError if there is no such layer, or if the model has a second head.
    """
    timms: Any = model
    if getattr(model, "aux_head", None) is not None:  # as in VOLO; reset_classifier() would drop it
        accepted = "one whose logits are its last linear layer's (use_aux_head=False)"
        refuse("model", f"a {type(model).__name__}, which has two heads", accepted)
    if head_name is not None:
        name, head = head_name, dict(model.named_modules()).get(head_name)
    elif hasattr(model, "reset_classifier"):
        head = timms.get_classifier()
        name = next((name for name, module in model.named_modules() if module is head), "")
    else:
        got = f"None for a {type(model).__name__}, which is not timm's"
        refuse("head_name", got, "the name of its last linear layer")
    if not isinstance(head, nn.Linear) or not name:
        got = f"a {type(model).__name__}, whose {name or 'classifier'!r} is a {type(head).__name__}"
        refuse("model", got, "one whose last layer is an nn.Linear")
    if head_name is None:
        timms.reset_classifier(0)
    else:
        model.set_submodule(name, nn.Identity())
    return Classifier(model, head, name)


def find_classifier(model: nn.Module) -> Classifier:
    """The :class:`Classifier` inside a :class:`Normalized` model, or the model itself if it is one.

    Raises TypeError if there is none.
    """
    inner = model.model if isinstance(model, Normalized) else model
    if not isinstance(inner, Classifier):
        accepted = "what create_model or separate returns, bare or in Normalized"
        refuse("model", f"a {type(inner).__name__}", accepted, TypeError)
    return inner


def split(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Splits a model into two, features and head: ``head(features(images))`` is ``model(images)``. Both share
    the model's weights.

    model: a :class:`Classifier`, or :class:`Normalized` around one, already on the device where it will stay.

    Raises TypeError for other models.
    """
    classifier = find_classifier(model)
    if isinstance(model, Normalized):
        features = Normalized(classifier.backbone, model.mean.tolist(), model.std.tolist())
        features.mean, features.std = model.mean, model.std  # the model's own, with their dtype and device
        return features, classifier.head
    return classifier.backbone, classifier.head
