"""A classifier as two parts that can be told apart: a backbone, which makes features, and a linear head."""

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from .architecture import Architecture
from .normalized import Normalized

# RetinaNet's prior (Lin et al. 2017): every class begins at a probability of 0.01.
_HEAD_BIAS = -math.log(0.99 / 0.01)


class Classifier(nn.Module):
    """``head(backbone(images))``.

    backbone: maps images (N, C, ...) to features (N, F).
    head: one linear layer; :meth:`reset_head` makes a new one.
    head_name: what the head was called inside the backbone, and still is in the backbone's checkpoints.
    method, options: the finetuning method that :func:`finetune` has prepared, and its configuration. With any
        method but "full", the backbone that was given stays in eval mode in training: BatchNorm statistics,
        dropout and stochastic depth are those of the network whose robustness is to be kept.
    architecture: how to build the model anew, where :func:`create_model` built it.
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
        """Whether a finetuning method has put something into the backbone."""
        return any(isinstance(module, Inserted) for module in self.backbone.modules())

    def reset_head(self, num_classes: int) -> None:
        """A new head, initialised as in RoLI: Kaiming's normal weights by fan out, biases that give every
        class a probability of 0.01 under a sigmoid."""
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
                    module.training = True  # and not what it encloses, as train() would have it
        return self


class Inserted(nn.Module):
    """What a finetuning method puts into a backbone: in train mode where the backbone is not."""


def separate(model: nn.Module, head_name: str | None = None) -> Classifier:
    """Takes a model's last linear layer out of it, so that backbone and head are two parts.

    The model becomes the backbone: an identity stands where its last layer was.

    model: a timm model, or any module whose ``head_name`` is an ``nn.Linear`` and is applied last.
    head_name: its name in the model; default what timm says.

    Raises ValueError where there is no such layer, or one more beside it.
    """
    timms: Any = model
    if getattr(model, "aux_head", None) is not None:  # VOLO's, which reset_classifier() drops
        raise ValueError(
            f"model: got a {type(model).__name__}, which has two heads, accepted: one whose logits are its "
            "last linear layer's (use_aux_head=False)"
        )
    if head_name is not None:
        name, head = head_name, dict(model.named_modules()).get(head_name)
    elif hasattr(model, "reset_classifier"):
        head = timms.get_classifier()
        name = next((name for name, module in model.named_modules() if module is head), "")
    else:
        raise ValueError(
            f"head_name: got None for a {type(model).__name__}, which is not timm's, "
            "accepted: the name of its last linear layer"
        )
    if not isinstance(head, nn.Linear) or not name:
        raise ValueError(
            f"model: got a {type(model).__name__}, whose {name or 'classifier'!r} is a "
            f"{type(head).__name__}, accepted: one whose last layer is an nn.Linear"
        )
    if head_name is None:
        timms.reset_classifier(0)
    else:
        model.set_submodule(name, nn.Identity())
    return Classifier(model, head, name)


def find_classifier(model: nn.Module) -> Classifier:
    """The classifier inside a :class:`Normalized` model, or the model itself.

    Raises TypeError where there is none.
    """
    inner = model.model if isinstance(model, Normalized) else model
    if not isinstance(inner, Classifier):
        raise TypeError(
            f"model: got a {type(inner).__name__}, accepted: what create_model or separate returns, "
            "bare or in Normalized"
        )
    return inner


def split(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """The model as two: ``head(features(images))`` is ``model(images)``. The weights are the model's own.

    model: a :class:`Classifier`, or :class:`Normalized` around one; on the device where it is to stay.
    """
    classifier = find_classifier(model)
    if isinstance(model, Normalized):
        features = Normalized(classifier.backbone, model.mean.tolist(), model.std.tolist())
        features.mean, features.std = model.mean, model.std  # at the model's own precision, where it is
        return features, classifier.head
    return classifier.backbone, classifier.head
