"""Weights from files: other people's robust backbones, and models of our own.

Nothing in a file is ever executed: it is safetensors, or a torch file of tensors and plain data.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..files import write
from .classifier import find_classifier
from .create import create_model
from .finetuning import finetune
from .normalized import Normalized
from .resized import Resized

# Under which names training scripts keep their weights; averaged ones first, as timm does.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_FORMAT, _VERSION = "roli_fast.model", "1"
_SHOWN = 5  # names per kind of an error; a wrong file has hundreds


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What :func:`load_backbone` took from a file.

    prefix: what stood before the backbone's names in the file, such as "module.".
    head: whether the file's head fitted and was taken too; otherwise the model keeps its own.
    left_out: what else is in the file and not in the model, such as a head of another size or a
        normalisation, with shapes or a few values.
    sha256: of the file.
    """

    prefix: str
    head: bool
    left_out: dict[str, str]
    sha256: str


def load_backbone(model: nn.Module, path: str | Path, *, sha256: str | None = None) -> Loaded:
    """Gives a model's backbone the weights of a file, and its head those of the file's if there are as many
    classes.

    The names may stand behind any prefix ("module.", "model.", "1.", ...), the weights under "state_dict",
    "model" and the like. timm's own conversion for the architecture is applied, so that files of older
    versions of timm, and images of another size, fit where timm makes them fit.

    model: of :func:`create_model` or :func:`separate`, before :func:`finetune` has inserted anything.
    path: safetensors by its suffix, otherwise a torch file.
    sha256: what the file's must be, in hexadecimal; default any.

    Raises ValueError, with the model as it was, for a file with another checksum, one that holds more than
    tensors and plain data, and one that does not fit: the error names what is missing, unexpected or of
    another shape.
    """
    classifier = find_classifier(model)
    if classifier.inserted:
        raise ValueError(
            f"model: got one that has {classifier.method}'s parts, accepted: one as before finetune, "
            "whose names are those of the file"
        )
    path = Path(path)
    digest = _sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"sha256: got {digest} for {path}, accepted: {sha256.lower()}")
    state = _tensors_in(path)
    backbone: nn.Module = classifier.backbone
    if isinstance(backbone, Resized):
        backbone = backbone.model
    prefix = _prefix(state, backbone.state_dict().keys())
    inside = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    outside = {name: t for name, t in state.items() if not name.startswith(prefix)}
    inside = _as_timm_has_it(inside, backbone, path)
    head_names = {name: f"{classifier.head_name}.{name}" for name in classifier.head.state_dict()}
    head = {name: inside.pop(full) for name, full in head_names.items() if full in inside}
    if not head:  # a Classifier keeps it beside the backbone
        beside = prefix.rpartition("backbone.")[0] + "head."
        head = {name: outside.pop(beside + name) for name in head_names if beside + name in outside}
    _refuse_what_does_not_fit(inside, backbone, path)
    fits = not _differences(head, classifier.head)
    if not fits:
        outside |= {head_names[name]: t for name, t in head.items()}
    backbone.load_state_dict(inside, strict=False)
    if fits:
        classifier.head.load_state_dict(head)
    return Loaded(prefix, fits, {name: _description(t) for name, t in outside.items()}, digest)


def save_model(model: Normalized, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a model of :func:`create_model` to a safetensors file from which :func:`load_model` builds it
    anew. The file is complete or not there.

    metadata: more strings to keep, by names of the caller's.

    Raises ValueError for a model that was not built by name, or with options that are no JSON.
    """
    classifier = find_classifier(model)
    own = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": architecture_json(model),
        "method": json.dumps({"name": classifier.method, "options": classifier.options}),
    }
    if taken := own.keys() & (metadata or {}).keys():
        raise ValueError(
            f"metadata: got {', '.join(sorted(taken))}, accepted: other names than {', '.join(own)}"
        )
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    write(Path(path), safetensors.torch.save(tensors, {**(metadata or {}), **own}))


def architecture_json(model: nn.Module) -> str:
    """From which a model is built anew. Raises as :func:`save_model`, and TypeError where there is no
    classifier."""
    architecture = find_classifier(model).architecture
    if architecture is None or not isinstance(model, Normalized):
        raise ValueError("model: got one that was not built by name, accepted: one of create_model")
    try:
        return json.dumps(dataclasses.asdict(architecture))
    except TypeError as error:
        raise ValueError(
            f"model: got one with options that are no JSON ({error}), accepted: text and numbers"
        ) from error


def load_model(path: str | Path) -> Normalized:
    """The model that :func:`save_model` wrote: architecture, normalisation, method and weights; in eval mode,
    on the CPU.

    Raises ValueError for any other file.
    """
    metadata = read_metadata(path)
    if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(
            f"path: got {path}, whose metadata do not say how to build its model, accepted: a file of "
            "save_model; load_backbone takes others"
        )
    arguments = json.loads(metadata["architecture"])
    options, img_size = arguments.pop("options"), arguments.pop("img_size")
    model = create_model(**arguments, img_size=img_size and tuple(img_size), **options)
    method = json.loads(metadata["method"])
    finetune(model, method["name"], **method["options"])
    state = safetensors.torch.load_file(path)
    _refuse_what_does_not_fit(state, model, Path(path))
    model.load_state_dict(state)
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings in a safetensors file's header; the weights are not read.

    Raises ValueError for a file of another format.
    """
    _check_file(Path(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"path: got {path}, accepted: a safetensors file ({error})") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"path: got {path}, accepted: a file that is there")


def _sha256(path: Path) -> str:
    _check_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _tensors_in(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            # timm's training script keeps its arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what safetensors, zipfile and pickle say of what is not theirs
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"path: got {path}, accepted: safetensors, or a torch file of tensors and plain data, "
            f"since no code in a file is run ({reason})"
        ) from error
    while isinstance(found, Mapping):
        inner = next((found[w] for w in _WRAPPERS if isinstance(found.get(w), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = {n: t for n, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(
            f"path: got {path} without a state dict, accepted: one, bare or under {', '.join(_WRAPPERS)}"
        )
    return tensors


def _prefix(names: Iterable[str], wanted: Set[str]) -> str:
    """What stands before most of the wanted names."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        starts = [0, *(i + 1 for i, character in enumerate(name) if character == ".")]
        counts.update(name[:i] for i in starts if name[i:] in wanted)
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    # Names such as "bias" stand behind much; a prefix stands before nearly all.
    return best if 2 * counts[best] > len(wanted) else ""


def _as_timm_has_it(state: dict[str, Tensor], backbone: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict after the conversion that timm has for the architecture, if it has one."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, backbone)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:  # as with names of another network
        raise ValueError(
            f"path: got {path}, accepted: weights of this {type(backbone).__name__} ({error})"
        ) from error


def _differences(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, list[str]]:
    """What keeps a state dict from fitting, by kind."""
    own = module.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    # A count of batches, which files of old versions of torch do not have, has no part in eval mode.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    found = {"missing": missing, "unexpected": [n for n in state if n not in own], "of another shape": shapes}
    return {kind: names for kind, names in found.items() if names}


def _refuse_what_does_not_fit(state: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    differences = _differences(state, module)
    if differences:
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for kind, names in differences.items()
        )
        raise ValueError(f"path: got {path}, accepted: weights of this {type(module).__name__} ({listed})")


def _description(tensor: Tensor) -> str:
    """Values of what is small, such as a mean; the shape of what is not."""
    if tensor.numel() <= 4 and tensor.is_floating_point():
        return ", ".join(f"{value:.4g}" for value in tensor.flatten().tolist())
    return f"shape {tuple(tensor.shape)}"
