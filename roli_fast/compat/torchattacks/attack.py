"""The base class of torchattacks' attacks."""

import functools
import numbers
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ... import attacks as ours
from ...checks import refuse
from ...engine.modes import Model, eval_mode
from ...models.normalized import Normalized
from ..core import Closed, Maker, as_classes, as_pixels, attacked, inside, normalized
from .saved import Saved, Tally

TargetMap = Callable[[Tensor, Tensor | None], Tensor]


def _of_all_parts(setter: Callable[..., None]) -> Callable[..., None]:
    """Makes a setter set the same in all attacks of which this one is made."""

    @functools.wraps(setter)
    def set_all(self: "Attack", *args: Any, **kwargs: Any) -> None:
        setter(self, *args, **kwargs)
        for part in self._parts():
            getattr(part, setter.__name__)(*args, **kwargs)

    return set_all


class Attack(Closed):
    """The base class of torchattacks' attacks. Settings are attributes, and may be changed between calls.

    name: what ``repr`` calls the attack.
    model: maps images (N, C, H, W) in [0, 1] to logits (N, classes); or normalised images, after
        :meth:`set_normalization_used` or by a RobModel's own mean and std. It is attacked in eval mode, and
        left unchanged.
    """

    _modes: Sequence[str] = ("default",)

    def __init__(self, name: str, model: Model):
        self.attack = name
        self.attack_mode = "default"
        self.supported_mode = list(self._modes)
        self.targeted = False
        self.normalization_used: dict[str, Tensor] | None = None
        self._in_pixels = False
        self._target_map_function: TargetMap | None = None
        self._kth_min = 1
        self._normalized: Normalized | None = None
        self._make = Maker()
        self.set_model(model)
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device = None if parameter is None else parameter.device
        self._read_normalization(model)

    def _parts(self) -> list["Attack"]:
        """The attacks of which this one is made: all that its attributes hold, also in lists and dicts."""
        return [part for value in vars(self).values() for part in _attacks_in(value)]

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Returns adversarial images (N, C, H, W), in the range and normalisation of the inputs.

        labels: (N,); in mode "targeted(label)", the targets.
        """
        with eval_mode(self.model):  # a user's forward or target function may call it
            if self.normalization_used is None or self._in_pixels:
                return self.forward(inside(inputs, (0, 1)), labels, *args, **kwargs)
            pixels = inside(self.inverse_normalize(inputs), (0, 1))
            self._set_in_pixels(True)
            try:
                found = self.forward(pixels, labels, *args, **kwargs)
            finally:
                self._set_in_pixels(False)
            return self.normalize(found)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What a call does after it has converted normalised inputs to pixels."""
        raise NotImplementedError

    # --- the model -----------------------------------------------------------------------------------------

    @_of_all_parts
    def set_model(self, model: Model) -> None:
        self.model = model
        self.model_name = type(model).__name__

    @_of_all_parts
    def set_device(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    @_of_all_parts
    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        if model_training:
            refuse("model_training", True, "False: models are attacked in eval mode")

    @_of_all_parts
    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        shape = (1, len(mean), 1, 1)
        self.normalization_used = {
            "mean": torch.tensor(mean).reshape(shape),
            "std": torch.tensor(std).reshape(shape),
        }

    def _read_normalization(self, model: Any) -> None:
        """Uses mean and std of a RobModel (of MAIR), which normalises its inputs itself if it has them."""
        if type(model).__name__ != "RobModel":
            return
        mean, std = (getattr(model, name, None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            mean, std = torch.as_tensor(mean).flatten(), torch.as_tensor(std).flatten()
            if (mean != 0).all() or (std != 1).all():
                self.set_normalization_used(mean.tolist(), std.tolist())

    def normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalization(inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalization(inputs)
        return inputs * std + mean

    def _normalization(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        used = self.normalization_used
        if used is None:
            refuse("normalization_used", None, "a call of set_normalization_used(mean, std) before")
        return used["mean"].to(inputs.device), used["std"].to(inputs.device)

    @_of_all_parts
    def _set_in_pixels(self, in_pixels: bool) -> None:
        """Sets whether images are pixels although normalisation is used, as they are inside of a call."""
        self._in_pixels = in_pixels

    @property
    def _way_out(self) -> str:
        """What an error advises for images that are not pixels."""
        if self.normalization_used is None:
            return (
                "If they are normalised: attack.set_normalization_used(mean, std), and they stay as they are"
            )
        return "These are the inputs as pixels: set_normalization_used takes what they were normalised by"

    @property
    def _attacked(self) -> Model:
        """The model for images as they are now, inside or outside of a call: the same object each time."""
        if self.normalization_used is None or not self._in_pixels:
            return self.model
        if not isinstance(self.model, nn.Module):
            refuse(
                "model", f"a {type(self.model).__name__}", "a torch.nn.Module, where normalisation is used"
            )
        mean, std = (self.normalization_used[name].flatten().tolist() for name in ("mean", "std"))
        self._normalized = normalized(self.model, mean, std, self.device)  # held as long as this attack lives
        return self._normalized

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The logits (N, classes). inputs: as the model takes them; inside of a call, such as in a target
        function, pixels."""
        return self._attacked(inputs)

    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """The logits (N, classes), in eval mode. inputs: as in :meth:`get_logits`."""
        with eval_mode(self.model):
            return ours.predict(self.get_logits, inputs)

    # --- the mode ------------------------------------------------------------------------------------------

    def get_mode(self) -> str:
        return self.attack_mode

    @_of_all_parts
    def set_mode_default(self) -> None:
        self.attack_mode, self.targeted = "default", False
        print("Attack mode is changed to 'default.'")

    @_of_all_parts
    def set_mode_targeted_by_function(self, target_map_function: TargetMap, quiet: bool = False) -> None:
        """target_map_function: maps images (N, C, H, W) and labels (N,) to targets (N,)."""
        self._set_mode_targeted("targeted(custom)", quiet)
        self._target_map_function = target_map_function

    @_of_all_parts
    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Targets are random classes other than the labels, from torch's own generator."""
        self._set_mode_targeted("targeted(random)", quiet)

    @_of_all_parts
    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Targets are the kth_min-th least likely classes other than the labels, from 1 for the least likely.
        Raises ValueError for a kth_min below 1."""
        if not isinstance(kth_min, numbers.Integral) or kth_min < 1:
            refuse("kth_min", repr(kth_min), "an integer >= 1")
        self._set_mode_targeted("targeted(least-likely)", quiet)
        self._kth_min = kth_min

    @_of_all_parts
    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Targets are the labels that a call is given."""
        self._set_mode_targeted("targeted(label)", quiet)

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError("Targeted mode is not supported.")
        self.targeted, self.attack_mode = True, mode
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The targets (N,) in the present mode. inputs: as in :meth:`get_logits`."""
        if self.attack_mode == "targeted(label)":
            if labels is None:
                refuse("labels", None, "targets (N,): the mode is targeted(label)", TypeError)
            return labels
        targets = {
            "targeted(random)": self.get_random_target_label,
            "targeted(least-likely)": self.get_least_likely_label,
            "targeted(custom)": self._target_map_function,
        }.get(self.attack_mode)
        if targets is None:
            raise ValueError("target_map_function is not initialized by set_mode_targeted.")
        return targets(inputs, labels)

    def get_least_likely_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The kth_min-th least likely classes (N,) other than the labels; without labels, than the predicted
        classes. inputs: as in :meth:`get_logits`."""
        logits = self.get_output_with_eval_nograd(inputs)
        if self._kth_min >= logits.shape[1]:
            refuse("kth_min", self._kth_min, f"at most {logits.shape[1] - 1}, the number of other classes")
        labels = logits.argmax(dim=1) if labels is None else labels
        others = logits.scatter(1, labels[:, None], torch.inf)
        return others.kthvalue(self._kth_min, dim=1).indices

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Random classes (N,) other than the labels; without labels, than the predicted classes. inputs: as
        in :meth:`get_logits`."""
        logits = self.get_output_with_eval_nograd(inputs)
        labels = logits.argmax(dim=1) if labels is None else labels
        other = torch.randint(logits.shape[1] - 1, labels.shape, device=labels.device)
        return other + (other >= labels)

    # --- files ---------------------------------------------------------------------------------------------

    def save(
        self,
        data_loader: Iterable[tuple[Tensor, Tensor]],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attacks all batches, and saves what :meth:`load` reads, in the library's own format. If this is
        interrupted, the batches so far are saved.

        data_loader: batches of inputs (N, C, H, W) and labels (N,).
        save_path: the file; None to save nothing.
        verbose: whether to print progress.
        save_type: "float", or "int" for uint8 pixels.

        With ``return_verbose``, returns robust accuracy in %, the mean L2 distance of the images that fooled
        the model, and the seconds that the last batch took.
        """
        if save_path is not None and not Path(save_path).parent.is_dir():
            refuse("save_path", save_path, "a file in a folder that is there", FileNotFoundError)
        kept = ["adv_inputs", "labels", *["preds"] * save_predictions, *["clean_inputs"] * save_clean_inputs]
        as_saved = functools.partial(self._as_saved, save_type=save_type)
        saved = None if save_path is None else Saved(Path(save_path), kept, save_type, as_saved)
        tally, seconds, line = Tally(), 0.0, ""
        batches = operator.length_hint(data_loader)
        try:
            for batch, (inputs, labels) in enumerate(data_loader, 1):
                begin = time.perf_counter()
                adversarial = self(inputs, labels)
                clean, labels = as_pixels(inputs).to(adversarial.device), labels.to(adversarial.device)
                predicted = self.get_output_with_eval_nograd(adversarial).argmax(dim=1)
                tally.add(adversarial - clean, predicted == labels)
                seconds = time.perf_counter() - begin
                if saved is not None:
                    saved.add(adv_inputs=adversarial, labels=labels, preds=predicted, clean_inputs=clean)
                line = self._progress(batch, batches, tally, seconds)
                if verbose:
                    print(line, end="\r")
        finally:  # an interruption keeps what was done
            if saved is not None:
                saved.write()
        if tally.images == 0:
            refuse("data_loader", "no batch", "at least one")
        if verbose:
            print(line)
        return (tally.accuracy, tally.distance, seconds) if return_verbose else None

    def _progress(self, batch: int, batches: int, tally: Tally, seconds: float) -> str:
        """The line that shows progress. batches: how many there will be; 0 if that is not known."""
        done = f"{100 * batch / batches:.2f} %" if batches else f"{batch} batches"
        reached = f"Robust accuracy: {tally.accuracy:.2f} %{self._successes()} / L2: {tally.distance:.5f}"
        return f"- Save progress: {done} / {reached} ({seconds:.3f} s/it)"

    def _successes(self) -> str:
        """What a subclass adds to the line that shows progress."""
        return ""

    def _as_saved(self, images: Tensor, save_type: str) -> Tensor:
        pixels = images if self.normalization_used is None else self.inverse_normalize(images)
        return self.to_type(pixels, save_type)

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """Converts float32 pixels to uint8 (type "int"), or back ("float"). Others are returned unchanged."""
        if type not in ("int", "float"):
            refuse("type", repr(type), "int, float")
        if type == "int" and inputs.dtype == torch.float32:
            return (inputs * 255).to(torch.uint8)
        if type == "float" and inputs.dtype == torch.uint8:
            return inputs.float() / 255
        return inputs

    @staticmethod
    def load(
        load_path: str,
        batch_size: int = 128,
        shuffle: bool = False,
        normalize: dict[str, Sequence[float]] | None = None,
        load_predictions: bool = False,
        load_clean_inputs: bool = False,
    ) -> DataLoader:
        """Batches of what :meth:`save` saved: adversarial images, labels, and what else is asked for.

        normalize: "mean" and "std", by which images are normalised; None to leave them in [0, 1].
        """
        saved = torch.load(load_path, weights_only=True)
        names = ["adv_inputs", "labels", *["preds"] * load_predictions, *["clean_inputs"] * load_clean_inputs]
        for name, option in (("preds", "save_predictions"), ("clean_inputs", "save_clean_inputs")):
            if name in names and name not in saved:
                refuse("load_path", f"{load_path}, without {name}", f"a file of save(..., {option}=True)")
        for name in ("adv_inputs", *["clean_inputs"] * load_clean_inputs):
            saved[name] = Attack.to_type(saved[name], "float")
            if normalize is not None:
                mean, std = (torch.tensor(normalize[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
                saved[name] = (saved[name] - mean) / std
        print(f"Data is loaded in the following order: [{', '.join(names)}]")
        return DataLoader(TensorDataset(*(saved[n] for n in names)), batch_size=batch_size, shuffle=shuffle)

    def __repr__(self) -> str:
        hidden = ("model", "attack", "supported_mode", "normalization_used")
        shown = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in hidden}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def _attacks_in(value: Any) -> list[Attack]:
    if isinstance(value, Attack):
        return [value]
    inside_of = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    )
    return [part for held in inside_of for part in _attacks_in(held)]


class Single(Attack):
    """An attack that is computed by a single attack of this package."""

    _never_called: Sequence[str] = ("get_logits",)
    _caller = "forward"

    def _made(self) -> ours.Attack:
        """This package's attack, with the present settings."""
        raise NotImplementedError

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        images, labels = self._placed(images, labels)
        return attacked(self._made(), self._attacked, images, labels, self._way_out)

    def _placed(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Images and labels (in a targeted mode, targets) on the attack's device."""
        self._check_methods()
        images = as_pixels(inputs.detach().to(self.device))
        labels = None if labels is None else as_classes(labels.to(images.device))
        return images, as_classes(self.get_target_label(images, labels)) if self.targeted else labels
