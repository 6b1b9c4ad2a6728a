"""foolbox's wrapper around a model."""

import copy
import importlib
import inspect
import weakref
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ...attacks.inputs import check_bounds
from ...checks import refuse
from ..core import check_methods, no_such, normalized
from .criteria import raw


class Bounds(NamedTuple):
    lower: float
    upper: float


class PyTorchModel:
    """A model with the preprocessing and the bounds of its inputs.

    model: a module that maps preprocessed images to logits (N, classes). It is moved to the device.
    bounds: the lowest and the highest value that a pixel may have, before preprocessing.
    device: by default, the first GPU, or the CPU if there is none.
    preprocessing: ``{"mean": ..., "std": ..., "axis": -3, "flip_axis": ...}``, each of which may be missing.

    Raises ValueError for arguments that are not accepted.
    """

    data_format = "channels_first"

    def __init__(
        self,
        model: Any,
        bounds: tuple[float, float],
        device: Any = None,
        preprocessing: dict[str, Any] | None = None,
    ):
        if not isinstance(model, nn.Module):
            refuse("model", f"a {type(model).__name__}", "a torch.nn.Module")
        check_bounds(bounds)
        unknown = set(preprocessing or {}) - {"mean", "std", "axis", "flip_axis"}
        if unknown:
            refuse("preprocessing", ", ".join(sorted(unknown)), "mean, std, axis, flip_axis")
        self.device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        self._model = model.to(self.device)
        self.bounds = Bounds(*bounds)
        given = preprocessing or {}
        mean, std = (_shaped(given.get(name), given.get("axis"), self.device) for name in ("mean", "std"))
        self._preprocess(mean, std, given.get("flip_axis"))

    def _preprocess(self, mean: Tensor | None, std: Tensor | None, flip_axis: int | None) -> None:
        self._preprocessing = mean, std, flip_axis
        self.pixel_model = _preprocessed(self._model, mean, std, flip_axis, self.device)

    @property
    def dummy(self) -> Any:
        """An eagerpy tensor of the kind that foolbox.samples is to make; None if eagerpy is not installed."""
        try:
            eagerpy = importlib.import_module("eagerpy")
        except ImportError:
            return None
        return eagerpy.astensor(torch.zeros(0, device=self.device))

    def __call__(self, inputs: Any) -> Any:
        """The logits (N, classes), in the model's present mode."""
        images = raw(inputs)
        with torch.set_grad_enabled(images.requires_grad):
            logits = self.pixel_model(images if images.is_floating_point() else images.float())
        return logits if isinstance(inputs, Tensor) else type(inputs)(logits)

    def transform_bounds(
        self, bounds: tuple[float, float], inplace: bool = False, wrapper: bool = False
    ) -> "PyTorchModel":
        """The same model for images with other bounds.

        inplace: whether to change this object itself.
        wrapper: makes no difference here; the wrapper that foolbox returns for it is the same function.

        Raises ValueError for both, and for bounds that are not accepted.
        """
        if inplace and wrapper:
            raise ValueError("inplace and wrapper cannot both be True")
        check_bounds(bounds)
        mean, std, flip_axis = self._preprocessing
        scale = (bounds[1] - bounds[0]) / (self.bounds[1] - self.bounds[0])
        mean = torch.zeros(1, device=self.device) if mean is None else mean
        std = torch.ones(1, device=self.device) if std is None else std
        moved = self if inplace else copy.copy(self)
        moved._preprocess(scale * (mean - self.bounds[0]) + bounds[0], scale * std, flip_axis)
        moved.bounds = Bounds(*bounds)
        return moved


class _Preprocessed(nn.Module):
    """``model((x - mean) / std)``, where x may be flipped and the mean need not be one number per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor, flip_axis: int | None):
        super().__init__()
        self.model, self.flip_axis = model, flip_axis
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        if self.flip_axis is not None:
            x = x.flip(self.flip_axis)
        return self.model((x - self.mean) / self.std)


def _shaped(values: Any, axis: int | None, device: torch.device) -> Tensor | None:
    """A mean or std in a shape that broadcasts over images."""
    if values is None:
        return None
    tensor = torch.as_tensor(raw(values), device=device)
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if axis is None:
        return tensor
    if tensor.dim() != 1 or axis >= 0:
        refuse("axis", f"{axis} for shape {tuple(tensor.shape)}", "a negative axis, and one dimension")
    return tensor.reshape(-1, *[1] * (-axis - 1))


def _preprocessed(
    model: nn.Module, mean: Tensor | None, std: Tensor | None, flip_axis: int | None, device: torch.device
) -> nn.Module:
    if mean is None and std is None and flip_axis is None:
        return model
    mean, std = torch.broadcast_tensors(
        torch.zeros(()) if mean is None else mean, torch.ones(()) if std is None else std
    )
    if flip_axis is None and mean.dim() == 3 and mean.shape[1:] == (1, 1):
        return normalized(model, mean.flatten().tolist(), std.flatten().tolist(), device)
    return _Preprocessed(model, mean.clone(), std.clone(), flip_axis).to(device)


class _Taken(NamedTuple):
    preprocessing: Any
    pixel_model: nn.Module


_TAKEN: "weakref.WeakKeyDictionary[Any, _Taken]" = weakref.WeakKeyDictionary()


def pixel_model(fmodel: Any) -> nn.Module:
    """The module inside foolbox's model, or inside ours, with the preprocessing in front: the same object at
    every call.

    Raises ValueError for other models.
    """
    if isinstance(fmodel, PyTorchModel):
        return fmodel.pixel_model
    kind = f"{type(fmodel).__module__}.{type(fmodel).__name__}"
    if kind == "foolbox.models.base.TransformBoundsWrapper":
        refuse("model", f"a {kind}", "one of transform_bounds(bounds), without wrapper=True")
    if kind != "foolbox.models.pytorch.PyTorchModel":
        refuse("model", f"a {kind}", "foolbox.PyTorchModel, and no subclass of it")
    check_methods(fmodel, "model")
    taken = _TAKEN.get(fmodel)
    if taken is None or taken.preprocessing is not fmodel._preprocess_args:
        module = inspect.getclosurevars(fmodel._model).nonlocals["model"]
        mean, std, flip_axis = fmodel._preprocess_args
        taken = _Taken(
            fmodel._preprocess_args, _preprocessed(module, raw(mean), raw(std), flip_axis, fmodel.device)
        )
        _TAKEN[fmodel] = taken
    return taken.pixel_model


__all__ = ["PyTorchModel"]


def __getattr__(name: str) -> NoReturn:
    no_such("foolbox.models", name, __all__)
