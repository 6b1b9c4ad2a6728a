"""Builds models that take pixels, by name."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..checks import refuse
from .architecture import Architecture
from .classifier import separate
from .hybrid import hybrid_vit
from .normalized import Normalized
from .resized import Resized
from .resnets import resnet10_tin, small_resnet


@dataclasses.dataclass(frozen=True)
class _Config:
    """What a backbone expects of its images. Fields have the names of timm's configurations, in whose place
    this stands for our own models and where timm has none."""

    input_size: tuple[int, int, int] = (3, 32, 32)
    fixed_input_size: bool = False
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    num_classes: int = 0


_OWN: dict[str, tuple[Callable[..., nn.Module], _Config]] = {
    "small_resnet": (small_resnet, _Config()),
    "resnet10_tin": (resnet10_tin, _Config()),
    "hybrid_vit": (hybrid_vit, _Config((3, 64, 64), fixed_input_size=True)),
}


def create_model(
    name: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    resize: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> Normalized:
    """Builds a model that maps pixels (N, in_chans, H, W) in [0, 1] to logits (N, num_classes).

    It is a :class:`Normalized` around a :class:`Classifier`. Without ``pretrained`` its weights are random.
    The head is initialised as in RoLI (:meth:`Classifier.reset_head`), unless the pretrained weights have one
    for as many classes.

    name: a name of ``timm.list_models()``, or "small_resnet", "resnet10_tin" or "hybrid_vit".
    in_chans: number of the images' channels.
    img_size: size of the images that the backbone is built for, in pixels: a number or (H, W); by default the
        backbone's own. Without ``resize`` it has no effect on a network that takes any size, as convolutional
        ones do.
    resize: whether smaller images are enlarged to that size inside the model (:class:`Resized`), so that an
        attack acts on the pixels of the data.
    mean, std: of the normalisation, one number per channel; by default those of timm's configuration for the
        name, or 0.5 for another number of channels. They have to be those that the weights were trained
        with: see ``docs/robust_checkpoints.md``.
    pretrained: whether to load timm's weights, which it downloads.
    options: further arguments of the network, passed on to timm, such as ``drop_path_rate=0.5`` for full
        finetuning.

    Raises ValueError for an unknown name, for a model that does not end with one linear layer, for
    ``pretrained`` with a model that is not timm's, and for options that say where weights come from.
    """
    if name not in _OWN and not timm.is_model(name):
        refuse("model", repr(name), f"a name of timm.list_models(), or {', '.join(_OWN)}")
    if pretrained and name in _OWN:
        refuse("pretrained", f"True for {name!r}", "False, since timm has no such weights")
    if elsewhere := options.keys() & {"checkpoint_path", "pretrained_cfg", "cache_dir"}:
        accepted = "the network's own; load_backbone takes weights from a file"
        refuse("options", ", ".join(sorted(elsewhere)), accepted)
    config = _config(name)
    mean = _per_channel(config.mean, in_chans) if mean is None else tuple(mean)
    std = _per_channel(config.std, in_chans) if std is None else tuple(std)
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    arguments = {"num_classes": num_classes, "in_chans": in_chans, **options}
    if size is not None and config.fixed_input_size:
        arguments["img_size"] = size
    backbone = (
        _OWN[name][0](**arguments) if name in _OWN else timm.create_model(name, pretrained, **arguments)
    )
    classifier = separate(backbone)
    if not (pretrained and num_classes == config.num_classes):
        classifier.reset_head(num_classes)
    if resize:
        classifier.backbone = Resized(backbone, size or config.input_size[1:])
    classifier.architecture = Architecture(name, num_classes, in_chans, size, resize, mean, std, options)
    return Normalized(classifier, mean, std)


def is_built_for_one_size(name: str) -> bool:
    """Whether ``img_size`` changes the network itself, as in a ViT. If not, ``resize`` enlarges images to it,
    and without ``resize`` it has no effect. False for an unknown name. Raises ValueError for an unknown tag
    of pretrained weights."""
    return _config(name).fixed_input_size


def _config(name: str) -> Any:
    if name in _OWN:
        return _OWN[name][1]
    try:
        return timm.models.get_pretrained_cfg(name) or _Config()
    except RuntimeError as error:
        accepted = "a name of timm.list_models(pretrained=True)"
        raise ValueError(f"model: got {name!r} ({error}), accepted: {accepted}") from error


def _per_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == in_chans else (0.5,) * in_chans
