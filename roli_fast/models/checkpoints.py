"""Checkpoints: loads other people's robust backbones, and saves and loads models of this package.

Code in a file is never executed: files are safetensors, or torch files of tensors and plain data.
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

from ..checks import refuse
from ..files import write
from .classifier import find_classifier
from .create import create_model
from .finetuning import finetune
from .normalized import Normalized
from .resized import Resized

# Keys under which training scripts save weights; averaged weights come first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_FORMAT, _VERSION = "roli_fast.model", "1"
_SHOWN = 5  # how many names an error lists of each kind; a wrong file has hundreds


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What :func:`load_backbone` took from a file.

    prefix: what precedes the backbone's names in the file, such as "module.".
    head: whether the file's head fitted and was loaded too; if not, the model keeps its own.
    left_out: the names of the file's other tensors, which were not loaded, such as a head of another size or
        a normalisation; each with its shape or, if it is small, its values.
    sha256: the file's checksum, in hexadecimal.
    """

    prefix: str
    head: bool
    left_out: dict[str, str]
    sha256: str


def load_backbone(model: nn.Module, path: str | Path, *, sha256: str | None = None) -> Loaded:
    """Loads a backbone's weights from a file, and the head's too if the file has one for as many classes.

    Names in the file may have any prefix ("module.", "model.", "1.", ...), and the weights may be saved under
    "state_dict", "model" or a similar key. timm's own conversion for the architecture is applied, so that
    files of older versions of timm, and weights for another image size, fit if timm can make them fit.

    model: from :func:`create_model` or :func:`separate`, before :func:`finetune` has inserted anything.
    path: a safetensors file, if it has the suffix ".safetensors"; otherwise a torch file.
    sha256: the checksum that the file must have, in hexadecimal; None for any.

    Raises ValueError, and leaves the model unchanged, for a file with another checksum, one that holds more
    than tensors and plain data, and one that does not fit: the error then lists what is missing, unexpected
    or of another shape. Raises FileNotFoundError if there is no such file.
    """
    classifier = find_classifier(model)
    if classifier.inserted:
        accepted = "one as before finetune, whose names are those of the file"
        refuse("model", f"one that has {classifier.method}'s parts", accepted)
    path = Path(path)
    digest = _sha256(path)
    if sha256 is not None and digest != sha256.lower():
        refuse("sha256", f"{digest} for {path}", sha256.lower())
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
    if not head:  # a saved Classifier has it beside the backbone
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
    """Saves a model of :func:`create_model` to a safetensors file, from which :func:`load_model` rebuilds it.
    The file is written completely or not at all.

    metadata: further strings for the file's header, under names that the caller chooses.

    Raises ValueError for a model that :func:`create_model` did not build, for options that JSON cannot hold,
    and for a name in metadata that this function uses itself.
    """
    classifier = find_classifier(model)
    own = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": architecture_json(model),
        "method": json.dumps({"name": classifier.method, "options": classifier.options}),
    }
    if taken := own.keys() & (metadata or {}).keys():
        refuse("metadata", ", ".join(sorted(taken)), f"other names than {', '.join(own)}")
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    write(Path(path), _in_order(safetensors.torch.save(tensors, {**(metadata or {}), **own})))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: safetensors writes them in any, so that
    files of the same model would differ."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(file)[end:]))


def architecture_json(model: nn.Module) -> str:
    """The JSON text from which a model is rebuilt. Raises as :func:`save_model`, and TypeError for a model
    without a :class:`Classifier`."""
    architecture = find_classifier(model).architecture
    if architecture is None or not isinstance(model, Normalized):
        refuse("model", "one that was not built by name", "one of create_model")
    try:
        return json.dumps(dataclasses.asdict(architecture))
    except TypeError as error:
        raise ValueError(
            f"model: got one with options that are no JSON ({error}), accepted: text and numbers"
        ) from error


def built_as(model: nn.Module) -> dict[str, Any]:
    """What :func:`load_model` would build a model from, as plain data: the architecture's arguments, the
    finetuning method and its options. Raises as :func:`architecture_json`."""
    classifier = find_classifier(model)
    method = {"method": classifier.method, "method_options": classifier.options}
    return json.loads(architecture_json(model)) | method


def load_model(path: str | Path) -> Normalized:
    """Loads a model that :func:`save_model` saved: architecture, normalisation, finetuning method, weights.
    It is in eval mode, on the CPU.

    Raises ValueError for any other file, and FileNotFoundError if there is none.
    """
    metadata = read_metadata(path)
    if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
        got = f"{path}, whose metadata do not say how to build its model"
        refuse("path", got, "a file of save_model; load_backbone takes others")
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
    """The strings in a safetensors file's header. The weights are not read.

    Raises ValueError for a file of another format, and FileNotFoundError if there is none.
    """
    _check_file(Path(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"path: got {path}, accepted: a safetensors file ({error})") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "which is not there"
        refuse("path", f"{path}, {got}", "a file", FileNotFoundError)


def _sha256(path: Path) -> str:
    _check_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _tensors_in(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises ValueError if there is none."""
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            # timm's training script saves its arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle raise many kinds
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
        refuse("path", f"{path} without a state dict", f"one, bare or under {', '.join(_WRAPPERS)}")
    return tensors


def _prefix(names: Iterable[str], wanted: Set[str]) -> str:
    """The prefix that most of the wanted names have here; "" if none precedes more than half of them."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        starts = [0, *(i + 1 for i, character in enumerate(name) if character == ".")]
        counts.update(name[:i] for i in starts if name[i:] in wanted)
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    # Names such as "bias" are found behind many prefixes, but only the right one precedes nearly all names.
    return best if 2 * counts[best] > len(wanted) else ""


def _as_timm_has_it(state: dict[str, Tensor], backbone: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict after timm's conversion for the architecture, if there is one."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, backbone)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:  # from another network's names
        raise ValueError(
            f"path: got {path}, accepted: weights of this {type(backbone).__name__} ({error})"
        ) from error


def _differences(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, list[str]]:
    """What keeps a state dict from fitting a module: for each kind of difference, the names."""
    own = module.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    # The count of batches is missing in files of old versions of torch, and has no effect in eval mode.
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
        refuse("path", path, f"weights of this {type(module).__name__} ({listed})")


def _description(tensor: Tensor) -> str:
    """The values of a small tensor, such as a mean; the shape of a larger one."""
    if tensor.numel() <= 4 and tensor.is_floating_point():
        return ", ".join(f"{value:.4g}" for value in tensor.flatten().tolist())
    return f"shape {tuple(tensor.shape)}"
