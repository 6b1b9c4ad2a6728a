"""The models that ``roli-fast transfer`` looks at, as the user names them."""

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attacks.inputs import as_floats
from ..checks import first_line
from ..engine.modes import own_output
from ..models import Classifier, create_model, find_classifier, load_backbone, load_model, split
from .errors import UserError
from .options import refuse_without_effect, size_effect


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to look at.

    method: the finetuning method that its file names; None if it names none.
    head: whether it has a trained head for as many classes as the data have.
    """

    name: str
    model: nn.Module
    method: str | None
    head: bool


def check_subjects(arguments: argparse.Namespace) -> None:
    """Raises UserError unless there are model files, or else a backbone with its options."""
    of_backbone = ("model", "checkpoint", "img_size", "resize", "mean", "std")
    refuse_without_effect(arguments, [(of_backbone, not arguments.files, "no model files")])
    if len(set(arguments.files)) < len(arguments.files):
        raise UserError(f"MODEL: got {' '.join(map(str, arguments.files))}, accepted: each once")
    if arguments.files:
        return
    if arguments.model is None or arguments.checkpoint is None:
        got = arguments.model or arguments.checkpoint or "none"
        raise UserError(f"MODEL: got {got}, accepted: files of save_model, or --model NAME --checkpoint FILE")
    refuse_without_effect(arguments, [size_effect(arguments)])


def load_subjects(
    arguments: argparse.Namespace, image: Tensor, classes: int, device: torch.device
) -> list[Subject]:
    """Loads the models, and runs each on an image (1, C, H, W), so that one that does not fit is found before
    the attacks begin.

    Raises ValueError, and whatever loading raises.
    """
    if arguments.files:
        names = _names(arguments.files)
        found = [_from_file(n, f, classes) for n, f in zip(names, arguments.files, strict=True)]
    else:
        found = [_from_checkpoint(arguments, image.shape[1], classes)]
    for subject in found:
        subject.model.to(device)
        _check_images(subject, image)
    return found


def _names(files: list[Path]) -> list[str]:
    """The files' names; if two are the same, their paths."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file.with_suffix("")) for file in files]


def _from_file(name: str, file: Path, classes: int) -> Subject:
    model = load_model(file)
    classifier = find_classifier(model)
    fits = classifier.head.out_features == classes and not _is_new(classifier.head)
    return Subject(name, model, classifier.method, fits)


def _from_checkpoint(arguments: argparse.Namespace, channels: int, classes: int) -> Subject:
    try:
        model = create_model(
            arguments.model,
            classes,
            in_chans=channels,
            img_size=arguments.img_size,
            resize=arguments.resize,
            mean=arguments.mean,
            std=arguments.std,
        )
    except (AssertionError, RuntimeError) as error:  # what timm says of a size that it cannot build
        size = f"--img-size {arguments.img_size}"
        raise ValueError(
            f"--model: got {arguments.model} with {size}, accepted: a size of its ({error})"
        ) from error
    loaded = load_backbone(model, arguments.checkpoint)
    return Subject(arguments.checkpoint.stem, model.eval(), None, loaded.head)


def _is_new(head: nn.Linear) -> bool:
    """Whether the head has the biases of a new one, which the first step of any training moves."""
    new = Classifier(nn.Identity(), nn.Linear(1, 1), "head")
    new.reset_head(1)
    return head.bias is not None and bool((head.bias.cpu() == new.head.bias).all())


def _check_images(subject: Subject, image: Tensor) -> None:
    architecture = find_classifier(subject.model).architecture
    # A normalisation by three means would make three channels of one.
    if architecture is not None and image.shape[1] != architecture.in_chans:
        accepted = f"{architecture.in_chans}, for which it is built (--input-img-mode)"
        raise ValueError(f"{subject.name}: got images of {image.shape[1]} channels, accepted: {accepted}")
    try:
        own_output(split(subject.model)[0], as_floats(image))
    except Exception as error:  # what timm and torch say of images that do not fit
        shape = "x".join(map(str, image.shape[1:]))
        accepted = f"its own size ({first_line(error)})"
        raise ValueError(f"{subject.name}: got images of {shape}, accepted: {accepted}") from error
