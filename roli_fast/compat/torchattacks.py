"""torchattacks' classes (3.5.1) on this package's attacks: ``import roli_fast.compat.torchattacks as
torchattacks``."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .. import attacks as ours
from ..attacks.inputs import check_size, refuse, to_state
from ..attacks.norms import normal_draws, uniform_draws
from ..engine.modes import Model
from ..models.normalized import Normalized
from .core import Closed, Maker, no_such, read

__version__ = "3.5.1"

TargetMap = Callable[[Tensor, Tensor | None], Tensor]

_NORMS = {"Linf": "linf", "L2": "l2"}

# How far from the box an image may be by having been normalised and brought back in float32.
_ROUNDING = 1e-5


def _of_all_parts(setter: Callable[..., None]) -> Callable[..., None]:
    """A setting of an attack that its parts get, too."""

    @functools.wraps(setter)
    def set_all(self: "Attack", *args: Any, **kwargs: Any) -> None:
        setter(self, *args, **kwargs)
        for part in self._parts():
            getattr(part, setter.__name__)(*args, **kwargs)

    return set_all


class Attack(Closed):
    """What the library's attacks have in common. Settings are attributes, and may be changed between calls.

    model: maps images (N, C, H, W) in [0, 1] to logits (N, classes); normalised ones after
        :meth:`set_normalization_used`, or by a RobModel's own mean and std. Attacked in eval mode, and left
        as it was.
    """

    _never_called = ("get_logits",)
    _modes: Sequence[str] = ("default", "targeted")

    def __init__(self, name: str, model: Model):
        self.attack = name
        self.attack_mode = "default"
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

    def _parts(self) -> Sequence["Attack"]:
        """The attacks that this one is made of."""
        return ()

    def _made(self) -> ours.Attack:
        """The attack by the settings as they are now."""
        raise NotImplementedError

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Adversarial images (N, C, H, W), in the range and normalisation of the inputs."""
        if self.normalization_used is None or self._in_pixels:
            return self.forward(inputs, labels, *args, **kwargs)
        pixels = self.inverse_normalize(inputs)
        inside = pixels.clamp(0, 1)
        pixels = torch.where((pixels - inside).abs() <= _ROUNDING, inside, pixels)
        self._set_in_pixels(True)
        try:
            found = self.forward(pixels, labels, *args, **kwargs)
        finally:
            self._set_in_pixels(False)
        return self.normalize(found)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """As a call, which has brought normalised inputs to pixels before."""
        images, labels = self._placed(inputs, labels)
        return self._made()(self._attacked, images, labels)

    def _placed(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Images and labels, in a targeted mode targets, on the attack's device."""
        images = inputs.detach().to(self.device)
        labels = None if labels is None else labels.to(images.device)
        return images, self.get_target_label(images, labels) if self.targeted else labels

    # --- the model -----------------------------------------------------------------------------------------

    @_of_all_parts
    def set_model(self, model: Model) -> None:
        self.model = model
        self.model_name = type(model).__name__

    @_of_all_parts
    def set_device(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._normalized = None

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
        self._normalized = None

    def _read_normalization(self, model: Any) -> None:
        """That of a RobModel (of MAIR), which normalises its inputs itself where this is said."""
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
        """Whether images are pixels though normalisation is used, as they are inside of a call."""
        self._in_pixels = in_pixels

    @property
    def _attacked(self) -> Model:
        """The model of images as they are now, inside of a call or outside: the same object at every call."""
        if self.normalization_used is None or not self._in_pixels:
            return self.model
        if not isinstance(self.model, nn.Module):
            refuse(
                "model", f"a {type(self.model).__name__}", "a torch.nn.Module, where normalisation is used"
            )
        if self._normalized is None or self._normalized.model is not self.model:
            mean, std = (self.normalization_used[name].flatten().tolist() for name in ("mean", "std"))
            self._normalized = Normalized(self.model, mean, std)
            if self.device is not None:
                self._normalized.to(self.device)
        return self._normalized

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """inputs: as the model takes them; pixels inside of a call, in a target function for one."""
        return self._attacked(inputs)

    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """inputs: as in :meth:`get_logits`."""
        return ours.predict(self._attacked, inputs)

    # --- the mode ------------------------------------------------------------------------------------------

    @property
    def supported_mode(self) -> list[str]:
        return list(self._modes)

    def get_mode(self) -> str:
        return self.attack_mode

    @_of_all_parts
    def set_mode_default(self) -> None:
        self.attack_mode, self.targeted = "default", False
        print("Attack mode is changed to 'default.'")

    @_of_all_parts
    def set_mode_targeted_by_function(self, target_map_function: TargetMap, quiet: bool = False) -> None:
        """target_map_function: images (N, C, H, W) and labels (N,) to targets (N,)."""
        self._set_mode_targeted("targeted(custom)", quiet)
        self._target_map_function = target_map_function

    @_of_all_parts
    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Any other class than the label, by torch's own generator."""
        self._set_mode_targeted("targeted(random)", quiet)

    @_of_all_parts
    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """kth_min: 1 for the least likely class but the label, 2 for the second, ..."""
        if not isinstance(kth_min, int) or kth_min < 1:
            refuse("kth_min", repr(kth_min), "an integer >= 1")
        self._set_mode_targeted("targeted(least-likely)", quiet)
        self._kth_min = kth_min

    @_of_all_parts
    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """The labels of a call are its targets."""
        self._set_mode_targeted("targeted(label)", quiet)

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self._modes:
            raise ValueError("Targeted mode is not supported.")
        self.targeted, self.attack_mode = True, mode
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """inputs: as in :meth:`get_logits`."""
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
        """inputs: as in :meth:`get_logits`."""
        logits = self.get_output_with_eval_nograd(inputs)
        if self._kth_min >= logits.shape[1]:
            refuse("kth_min", self._kth_min, f"at most {logits.shape[1] - 1}, the number of other classes")
        labels = logits.argmax(dim=1) if labels is None else labels
        others = logits.scatter(1, labels[:, None], torch.inf)
        return others.kthvalue(self._kth_min, dim=1).indices

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """inputs: as in :meth:`get_logits`."""
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
        """Attacks all batches, and writes what :meth:`load` reads, in the library's own format.

        save_type: "float", or "int" for uint8 pixels.

        With ``return_verbose``, returns robust accuracy in %, the mean L2 distance of what fooled the model,
        and the seconds of the last batch.
        """
        saved: dict[str, list[Tensor]] = {"adv_inputs": [], "labels": [], "preds": [], "clean_inputs": []}
        distances = []
        seconds = 0.0
        for inputs, labels in data_loader:
            begin = time.perf_counter()
            adversarial = self(inputs, labels).cpu()
            prediction = self.get_output_with_eval_nograd(adversarial.to(self.device)).argmax(dim=1).cpu()
            distances.append((adversarial - inputs.cpu()).flatten(1).norm(dim=1)[prediction != labels.cpu()])
            for name, tensor in zip(saved, (adversarial, labels, prediction, inputs), strict=True):
                saved[name].append(tensor.detach().cpu())
            seconds = time.perf_counter() - begin
        if not distances:
            refuse("data_loader", "no batch", "at least one")
        found = {name: torch.cat(tensors) for name, tensors in saved.items()}
        accuracy = 100 * (found["preds"] == found["labels"]).double().mean().item()
        distance = torch.cat(distances).mean().item()
        if verbose:
            print(f"- Save: robust accuracy {accuracy:.2f} %, L2 {distance:.5f}")
        if save_path is not None:
            kept = [
                "adv_inputs",
                "labels",
                *["preds"] * save_predictions,
                *["clean_inputs"] * save_clean_inputs,
            ]
            file: dict[str, Any] = {name: self._to_file(name, found[name], save_type) for name in kept}
            torch.save({**file, "save_type": save_type}, save_path)
        return (accuracy, distance, seconds) if return_verbose else None

    def _to_file(self, name: str, tensor: Tensor, save_type: str) -> Tensor:
        if name not in ("adv_inputs", "clean_inputs"):
            return tensor
        return self.to_type(
            tensor if self.normalization_used is None else self.inverse_normalize(tensor), save_type
        )

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """float32 pixels to uint8 ("int"), or back ("float"); what is there already stays."""
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
        """Batches of what :meth:`save` wrote: adversarial images, labels, and what else is asked for."""
        saved = torch.load(load_path, weights_only=True)
        names = ["adv_inputs", "labels", *["preds"] * load_predictions, *["clean_inputs"] * load_clean_inputs]
        for name in ("adv_inputs", *["clean_inputs"] * load_clean_inputs):
            saved[name] = Attack.to_type(saved[name], "float")
            if normalize is not None:
                mean, std = (torch.tensor(normalize[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
                saved[name] = (saved[name] - mean) / std
        print(f"Data is loaded in the following order: [{', '.join(names)}]")
        return DataLoader(TensorDataset(*(saved[n] for n in names)), batch_size=batch_size, shuffle=shuffle)

    def __repr__(self) -> str:
        hidden = ("model", "attack", "normalization_used")
        shown = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in hidden}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in shown.items())})"


class VANILA(Attack):
    _modes = ("default",)

    def __init__(self, model: Model):
        super().__init__("VANILA", model)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        return inputs.detach().clone().to(self.device)


class FGSM(Attack):
    def __init__(self, model: Model, eps: float = 8 / 255):
        super().__init__("FGSM", model)
        self.eps = eps

    def _made(self) -> ours.Attack:
        sizes = {"eps": self.eps, "step_size": self.eps}
        return self._make(ours.PGD, **sizes, steps=1, random_start=False, targeted=self.targeted)


class _Steps(Attack):
    """Several steps in the Linf ball."""

    eps: float
    alpha: float
    steps: int
    random_start: bool = False

    def _made(self) -> ours.Attack:
        return self._make(ours.PGD, **self._settings())

    def _settings(self) -> dict[str, Any]:
        check_size("alpha", self.alpha)
        return {
            "eps": self.eps,
            "step_size": self.alpha,
            "steps": self.steps,
            "random_start": self.random_start,
            "targeted": self.targeted,
        }


class BIM(_Steps):
    """steps: 0 for as many as its paper takes."""

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("BIM", model)
        self.eps, self.alpha = eps, alpha
        self.steps = steps if steps != 0 else int(min(eps * 255 + 4, 1.25 * eps * 255))


class PGD(_Steps):
    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ):
        super().__init__("PGD", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start


class EOTPGD(_Steps):
    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
    ):
        super().__init__("EOTPGD", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start
        self.eot_iter = eot_iter

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "eot": self.eot_iter}


class FFGSM(_Steps):
    random_start = True
    steps = 1

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 10 / 255):
        super().__init__("FFGSM", model)
        self.eps, self.alpha = eps, alpha


class _FromACorner(ours.PGD):
    """Starts from steps of random sign, which may lead out of the ball: the next one is projected.

    reach: their size.
    """

    def __init__(self, *arguments: Any, reach: float, **options: Any):
        self.reach = reach
        super().__init__(*arguments, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        return (to_state(clean) + self.reach * uniform_draws(clean, seed, index).sign()).clamp(*self.bounds)


class RFGSM(_Steps):
    random_start = True

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("RFGSM", model)
        self.eps, self.alpha, self.steps = eps, alpha, steps

    def _made(self) -> ours.Attack:
        return self._make(_FromACorner, **self._settings(), reach=self.alpha)


class MIFGSM(_Steps):
    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ):
        super().__init__("MIFGSM", model)
        self.eps, self.alpha, self.steps, self.decay = eps, alpha, steps, decay

    def _made(self) -> ours.Attack:
        return self._make(ours.MIFGSM, **self._settings(), decay=self.decay)


class TPGD(_Steps):
    _modes = ("default",)
    random_start = True

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("TPGD", model)
        self.eps, self.alpha, self.steps = eps, alpha, steps

    def _made(self) -> ours.Attack:
        return self._make(ours.TPGD, **self._settings())


class _NearTheImage(ours.PGD):
    """Starts in the L2 ball at a radius that is uniform from 0 to eps: nearer to the image than most of the
    ball is."""

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        normal = normal_draws(clean, seed, index)
        per_sample = (-1, *[1] * (clean.dim() - 1))
        direction = normal / normal.flatten(1).norm(dim=1).reshape(per_sample)
        other_stream = seed + (torch.arange(2, device=seed.device) << 32)
        radius = uniform_draws(torch.zeros_like(index, dtype=normal.dtype), other_stream, index).abs() * eps
        return (to_state(clean) + radius.reshape(per_sample) * direction).clamp(*self.bounds)


class PGDL2(_Steps):
    """eps_for_division: of no effect, since a gradient of any length gives a full step, and a zero one
    none."""

    def __init__(
        self,
        model: Model,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ):
        super().__init__("PGDL2", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start
        self.eps_for_division = eps_for_division

    def _made(self) -> ours.Attack:
        return self._make(_NearTheImage, norm="l2", **self._settings())


class MultiAttack(Attack):
    """One attack after another, on the images that still withstand.

    attacks: at least two, on the same model.
    """

    _modes = ("default",)

    attacks: Sequence[Attack] = ()

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False):
        if len(attacks) < 2:
            refuse("attacks", len(attacks), "two or more", ValueError)
        for attack in attacks:
            if not isinstance(attack, Attack):
                refuse("attacks", f"a {type(attack).__module__}.{type(attack).__name__}", "attacks of here")
        if len({id(attack.model) for attack in attacks}) > 1:
            refuse("attacks", "different models", "the same model for all")
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks, self.verbose = attacks, verbose
        self._left: Tensor | None = None  # how many withstood each attack, where this is counted
        for attack in attacks:
            attack._make.share(self._make)

    def _parts(self) -> Sequence[Attack]:
        return self.attacks

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            refuse("labels", None, "int64 (N,)", TypeError)
        images, labels = inputs.detach().to(self.device), labels.to(self.device)
        found = to_state(images).to(images.dtype)
        withstood = torch.arange(len(images), device=images.device)
        left = torch.zeros(len(self.attacks) + 1, dtype=torch.int64)
        left[0] = len(images)
        for stage, attack in enumerate(self.attacks, 1):
            adversarial = attack(images[withstood], labels[withstood])
            predicted = self.get_output_with_eval_nograd(adversarial).argmax(dim=1)
            fooled = predicted != labels[withstood]
            found[withstood[fooled]] = adversarial[fooled].to(found.dtype)
            withstood = withstood[~fooled]
            left[stage] = len(withstood)
            if len(withstood) == 0:
                break
        if self._left is not None:
            self._left += left
        if self.verbose:
            self._print_success(left)
        return found

    def save(  # type: ignore[override]  # the library's own has another last name, and one value more
        self,
        data_loader: Iterable[tuple[Tensor, Tensor]],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_images: bool = False,
    ) -> tuple[float, list[float], float, float] | None:
        """As of a single attack; after the accuracy, the share in % that each attack and those before it
        fooled, in a list."""
        printed, self.verbose = self.verbose, False
        self._left = left = torch.zeros(len(self.attacks) + 1, dtype=torch.int64)
        try:
            result = super().save(
                data_loader, save_path, verbose, return_verbose, save_predictions, save_clean_images
            )
        finally:
            self.verbose, self._left = printed, None
        if verbose:
            self._print_success(left)
        if result is None:
            return None
        accuracy, distance, seconds = result
        return accuracy, _success(left), distance, seconds

    def _print_success(self, left: Tensor) -> None:
        print("Attack success rate: " + " | ".join(f"{rate:.2f} %" for rate in _success(left)))


def _success(left: Tensor) -> list[float]:
    """What was fooled after each attack, in %; left: how many withstood, the first before all attacks."""
    return [100 * (1 - count / left[0].item()) for count in left[1:].tolist()]


class _Search(Attack):
    """Returns an adversarial image where one is found, and the image itself where not.

    norm: "Linf" or "L2". seed: of the draws, the same at every call; None for torch's own generator.
    """

    _modes: Sequence[str] = ("default",)
    norm: str
    eps: float
    seed: float | None
    n_restarts: int

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        images, labels = self._placed(inputs, labels)
        key = None if self.seed is None else torch.tensor([int(self.seed)], device=images.device)
        result = self._made().run(self._attacked, images, labels, key=key)
        assert result.success is not None
        found = result.success.reshape(-1, *[1] * (images.dim() - 1))
        return torch.where(found, result.adversarial, images)

    def _ball(self) -> dict[str, Any]:
        if self.norm not in _NORMS:
            refuse("norm", repr(self.norm), ", ".join(_NORMS))
        return {"norm": _NORMS[self.norm], "eps": self.eps, "restarts": self.n_restarts}


class APGD(_Search):
    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: float | None = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ):
        super().__init__("APGD", model)
        self.norm, self.eps, self.steps, self.n_restarts = norm, eps, steps, n_restarts
        self.seed, self.loss, self.eot_iter, self.thr_decr, self.verbose = seed, loss, eot_iter, rho, verbose

    def _made(self) -> ours.Attack:
        settings = {"steps": self.steps, "loss": self.loss, "eot": self.eot_iter, "rho": self.thr_decr}
        return self._make(ours.APGD, **self._ball(), **settings, early_stop=True)


class APGDT(_Search):
    """n_classes: one more than there are targets."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: float | None = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
    ):
        super().__init__("APGDT", model)
        self.norm, self.eps, self.steps, self.n_restarts, self.seed = norm, eps, steps, n_restarts, seed
        self.eot_iter, self.thr_decr, self.verbose = eot_iter, rho, verbose
        self.n_target_classes = n_classes - 1

    def _made(self) -> ours.Attack:
        settings = {"steps": self.steps, "eot": self.eot_iter, "rho": self.thr_decr}
        targets = self.n_target_classes
        return self._make(ours.APGDT, **self._ball(), **settings, targets=targets, early_stop=True)


class FAB(_Search):
    """eps: None for 0.3 in Linf and 1 in L2. multi_targeted: towards n_classes - 1 targets in turn. Towards
    one target, the library compares the targets of some images with those of others: not covered."""

    _modes = ("default",)

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float | None = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        verbose: bool = False,
        seed: float | None = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
    ):
        super().__init__("FAB", model)
        self.norm, self.steps, self.n_restarts, self.seed = norm, steps, n_restarts, seed
        self.eps = eps if eps is not None else {"Linf": 0.3, "L2": 1.0}.get(norm, 5.0)
        self.alpha_max, self.eta, self.beta, self.verbose = alpha_max, eta, beta, verbose
        self.multi_targeted, self.n_target_classes = multi_targeted, n_classes - 1

    def _made(self) -> ours.Attack:
        kind, targets = (
            (ours.FABT, {"targets": self.n_target_classes}) if self.multi_targeted else (ours.FAB, {})
        )
        settings = {"steps": self.steps, "alpha_max": self.alpha_max, "eta": self.eta, "beta": self.beta}
        return self._make(kind, **self._ball(), **settings, **targets, early_stop=True)


class Square(_Search):
    """resc_schedule: whether the squares shrink as often in few queries as in 10,000."""

    _modes = ("default", "targeted")

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: float | None = 0,
        verbose: bool = False,
    ):
        super().__init__("Square", model)
        self.norm, self.eps, self.n_queries, self.n_restarts = norm, eps, n_queries, n_restarts
        self.p_init, self.loss, self.rescale_schedule = p_init, loss, resc_schedule
        self.seed, self.verbose = seed, verbose

    def _made(self) -> ours.Attack:
        schedule = {"p_init": self.p_init, "rescale_schedule": self.rescale_schedule}
        search = {"queries": self.n_queries, "loss": self.loss, "targeted": self.targeted}
        return self._make(ours.Square, **self._ball(), **schedule, **search)


class AutoAttack(Attack):
    """The library's ensemble, which takes 10 steps where AutoAttack takes 100: that one is
    :class:`roli_fast.attacks.AutoAttack`. Its attacks are made at construction."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        version: str = "standard",
        n_classes: int = 10,
        seed: float | None = None,
        verbose: bool = False,
    ):
        super().__init__("AutoAttack", model)
        self.norm, self.eps, self.version, self.n_classes = norm, eps, version, n_classes
        self.seed, self.verbose = seed, verbose
        shared: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "verbose": verbose}
        attacks: list[Attack]
        if version == "standard":
            attacks = [
                APGD(model, **shared),
                APGDT(model, n_classes=n_classes, **shared),
                FAB(model, multi_targeted=True, n_classes=n_classes, **shared),
                Square(model, **shared),
            ]
        elif version == "plus":
            attacks = [
                APGD(model, n_restarts=5, **shared),
                APGD(model, n_restarts=5, loss="dlr", **shared),
                FAB(model, n_restarts=5, n_classes=n_classes, **shared),
                Square(model, **shared),
                APGDT(model, n_classes=n_classes, **shared),
                FAB(model, multi_targeted=True, n_classes=n_classes, **shared),
            ]
        elif version == "rand":
            attacks = [APGD(model, loss=loss, eot_iter=20, **shared) for loss in ("ce", "dlr")]
        else:
            refuse("version", repr(version), "standard, plus, rand")
        self._autoattack: Attack = MultiAttack(attacks)

    def _parts(self) -> Sequence[Attack]:
        return [self._autoattack] if "_autoattack" in vars(self) else []

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._autoattack(inputs, labels)


__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "EOTPGD",
    "FAB",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "VANILA",
    "AutoAttack",
    "MultiAttack",
    "Square",
]


def __getattr__(name: str) -> NoReturn:
    no_such("torchattacks", name, __all__)


def accelerated(original: Any) -> Attack:
    """The library's own attack as one of these, in its mode and with its normalisation."""
    name = type(original).__name__
    if name == "MultiAttack":
        parts = [accelerated(attack) for attack in original.attacks]
        face: Attack = read(original, __name__, __all__, parts)
        vars(face)["attacks"] = parts  # which were the original's own
    elif name == "AutoAttack":
        face = read(original, __name__, __all__, original.model)
        vars(face)["_autoattack"] = accelerated(original._autoattack)
    else:
        face = read(original, __name__, __all__, original.model)
    if original._model_training:
        face.set_model_training_mode(True)
    if face.targeted and "targeted" not in face.supported_mode:
        refuse("attack", f"{name} in the mode {face.attack_mode}", f"{name} in the default mode")
    face._kth_min = getattr(original, "_kth_min", 1)
    face._target_map_function = original._target_map_function
    return face
