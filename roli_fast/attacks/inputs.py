"""An attack's arguments and results: checks before anything runs, and conversions that stay in the ball."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..checks import check_number, refuse, warn
from ..engine.graphs import no_other_capture
from ..ops.checks import state_dtype
from ..ops.reference.shared import pixels

IMAGE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)
ITERATES = ("last", "best")


def check_size(argument: str, value: object) -> None:
    """A step size or eps."""
    accepted = "a number >= 0, or a float tensor (N,)"
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.dim() > 1:
            refuse(argument, f"a {value.dtype} tensor of shape {tuple(value.shape)}", accepted)
    elif not isinstance(value, numbers.Real):
        refuse(argument, f"a {type(value).__name__}", accepted, TypeError)
    elif not float(value) >= 0:
        refuse(argument, value, accepted)


def check_share(argument: str, value: object) -> None:
    """A share of elements."""
    if not isinstance(value, Tensor):
        check_number(argument, value, most=1, above=0)
    elif not value.is_floating_point() or value.dim() > 1:
        got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
        refuse(argument, got, "a number above 0 and up to 1, or a float tensor of such")


def check_lengths(precision: object) -> None:
    """Refuses fp16 for an attack that needs the length of the gradient, not only its direction."""
    if precision == "fp16":
        accepted = "fp32, tf32, bf16: loss scaling changes a gradient's length, which FAB needs"
        refuse("precision", repr(precision), accepted)


def warn_of_whole_range(
    bounds: tuple[float, float], eps: float | Tensor, step_size: float | Tensor = 0.0
) -> None:
    """Warns of Linf sizes that take a pixel from one bound far beyond the other: 8 where 8 / 255 is meant.
    N-FGSM's eps may be thrice the span, steps may be up to 10 eps, which the ball cuts off, and infinity is
    intended."""
    span = bounds[1] - bounds[0]
    eps, step_size = (_readable(size) for size in (eps, step_size))
    for name, size, most in (("eps", eps, 3 * span), ("step_size", step_size, max(span, 10 * eps))):
        if most < size < math.inf:
            warn(
                f"{name} takes any pixel within {bounds} to any other; for pixels in [0, 1] it is in units "
                "of these, such as 8 / 255"
            )


def _readable(size: float | Tensor) -> float:
    """The largest size of those that can be read without waiting for a device."""
    if not isinstance(size, Tensor):
        return size
    return size.max().item() if size.device.type == "cpu" and size.numel() > 0 else 0.0


def check_bounds(bounds: tuple[float, float]) -> None:
    accepted = "two numbers (lo, hi) with lo < hi"
    if not isinstance(bounds, (tuple, list)) or not all(isinstance(b, numbers.Real) for b in bounds):
        refuse("bounds", repr(bounds), accepted, TypeError)
    if len(bounds) != 2 or not all(math.isfinite(b) for b in bounds) or not bounds[0] < bounds[1]:
        refuse("bounds", bounds, accepted)


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        refuse("generator", f"a {type(generator).__name__}", "a torch.Generator, or None", TypeError)
    if generator.device.type != device.type:
        refuse("generator", f"one on {generator.device}", f"one on the images' device, {device}")


def check_key(key: Tensor | None, device: torch.device) -> None:
    if key is None:
        return
    accepted = f"torch.int64 of shape (1,) on the images' device, {device}"
    if not isinstance(key, Tensor):
        refuse("key", f"a {type(key).__name__}", accepted, TypeError)
    if key.dtype != torch.int64 or key.shape != (1,) or key.device != device:
        refuse("key", f"{key.dtype} of shape {tuple(key.shape)} on {key.device}", accepted)


def check_rows(rows: Tensor | None, images: Tensor) -> None:
    """Checks type, shape and device of the numbers of samples; :class:`Values` checks the numbers."""
    if rows is None:
        return
    accepted = f"torch.int64 of shape (n,), n up to {len(images)}, on the images' device, {images.device}"
    if not isinstance(rows, Tensor):
        refuse("rows", f"a {type(rows).__name__}", accepted, TypeError)
    fits = rows.dtype == torch.int64 and rows.dim() == 1 and len(rows) <= len(images)
    if not fits or rows.device != images.device:
        refuse("rows", f"{rows.dtype} of shape {tuple(rows.shape)} on {rows.device}", accepted)


def check_inputs(
    images: Tensor, labels: Tensor | None, index: Tensor | None, **sizes: float | Tensor
) -> None:
    """Checks shapes, dtypes and devices of a call's arguments. sizes: eps, step_size and sparsity."""
    if not isinstance(images, Tensor):
        refuse("images", f"a {type(images).__name__}", "a tensor", TypeError)
    if images.dtype not in IMAGE_DTYPES:
        refuse("images", f"dtype {images.dtype}", "a float dtype in pixel units, or torch.uint8 for v / 255")
    if images.dim() == 0:
        refuse("images", "shape ()", "(N, ...)")
    for name, value in (("labels", labels), ("index", index)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            refuse(name, f"a {type(value).__name__}", "a tensor", TypeError)
        if value.dtype != torch.int64 or value.shape != images.shape[:1]:
            refuse(
                name, f"{value.dtype} of shape {tuple(value.shape)}", f"torch.int64 of shape ({len(images)},)"
            )
        if value.device != images.device:
            refuse(name, f"device {value.device}", f"images' device {images.device}")
    for name, size in sizes.items():
        if isinstance(size, Tensor) and size.dim() == 1 and len(size) != len(images):
            refuse(name, f"shape {tuple(size.shape)}", f"a number, (), or ({len(images)},)")


def check_labels(labels: Tensor, classes: int) -> None:
    """Checks that labels are classes. Waits for the device once."""
    if len(labels) > 0:
        smallest, largest = torch.stack(labels.aminmax()).tolist()
        _check_label_range(smallest, largest, classes)


def _check_label_range(smallest: float, largest: float, classes: int | None) -> None:
    """``classes`` None: not known yet."""
    if classes == 1:
        refuse_one_class()
    if smallest < 0 or (classes is not None and largest >= classes):
        accepted = "0 or more" if classes is None else f"0 .. {classes - 1}"
        refuse("labels", f"values in [{smallest:.0f}, {largest:.0f}]", accepted)


def refuse_one_class() -> NoReturn:
    two = "output=lambda z: torch.cat([0 * z, z], dim=1) makes two of a logit of class 1"
    refuse("model", "1 class", f"2 or more; {two}")


class Values:
    """The smallest and largest values of a call's images, labels, sizes and rows, to be checked later. On a
    GPU, their transfer to the host begins here, so that :meth:`check` waits for them alone, and not for work
    that was queued after them."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        sizes: Mapping[str, float | Tensor],
        rows: Tensor | None,
    ):
        self._dtype, self._state, self._count = images.dtype, state_dtype(images), len(images)
        self._arrived: torch.cuda.Event | None = None
        if images.numel() == 0:
            self._extremes = torch.empty(0)
            return
        self._labelled, self._chosen = labels is not None, rows is not None and len(rows) > 0
        tensors = {name: size for name, size in sizes.items() if isinstance(size, Tensor)}
        beside = {name: size for name, size in tensors.items() if size.device == images.device}
        self._sizes = list(beside)
        # Sizes on the host are read here: sending them to the device would wait for it.
        self._known = {n: [v.item() for v in s.aminmax()] for n, s in tensors.items() if n not in beside}
        of = [images, *(() if labels is None else (labels,)), *beside.values()]
        if self._chosen:
            assert rows is not None
            of += [rows, rows.diff(prepend=rows[:1] - 1)]
        extremes = [extreme for tensor in of for extreme in tensor.aminmax()]
        self._extremes = torch.stack([v.double() for v in extremes])
        if images.is_cuda:
            there = torch.empty(len(extremes), dtype=torch.float64, pin_memory=True)
            self._extremes = there.copy_(self._extremes, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(images.device))

    def check(self, bounds: tuple[float, float], classes: int | None) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
        if len(self._extremes) == 0:
            return
        (lo, hi), *others = self._extremes.reshape(-1, 2).tolist()
        extreme_labels = others.pop(0) if self._labelled else None
        if self._chosen:
            steps, chosen = others.pop(), others.pop()
            _check_row_numbers(chosen, steps[0], self._count)
        found = dict(zip(self._sizes, others, strict=True)) | self._known
        for name, (smallest, largest) in found.items():
            if not smallest >= 0:  # NaN is not, either
                refuse(name, f"values in [{smallest:.4g}, {largest:.4g}]", "numbers >= 0")
        if self._dtype == torch.uint8:
            lo, hi = lo / 255, hi / 255
        if lo != lo:
            refuse("images", "NaN", "numbers")
        check_range((lo, hi), bounds, self._state)
        if extreme_labels:
            _check_label_range(extreme_labels[0], extreme_labels[1], classes)


def _check_row_numbers(extremes: Sequence[float], least_step: float, count: int) -> None:
    smallest, largest = extremes
    if least_step < 1 or smallest < 0 or largest >= count:
        within = f"values in [{smallest:.0f}, {largest:.0f}]"
        got = "numbers that do not ascend" if least_step < 1 else within
        refuse("rows", got, f"0 .. {count - 1}, in ascending order, each once")


class OutsideError(ValueError):
    """Images have values outside of the bounds.

    found: the smallest and the largest. way_out: what can be done where they are normalised, or bytes.
    """

    def __init__(self, found: tuple[float, float], bounds: tuple[float, float], way_out: str):
        super().__init__(found, bounds, way_out)  # from which unpickling makes it again
        self.found, self.bounds, self.way_out = found, bounds, way_out

    def __str__(self) -> str:
        accepted = f"values within bounds={tuple(self.bounds)}. {self.way_out}"
        return f"images: got values in [{self.found[0]:.8g}, {self.found[1]:.8g}], accepted: {accepted}"


def check_range(found: tuple[float, float], bounds: tuple[float, float], state: torch.dtype) -> None:
    """Raises OutsideError. state: in whose precision bounds are held: 0.3 is another number in float32."""
    lowest, highest = torch.tensor(bounds, dtype=state).tolist()
    if not (lowest <= found[0] and found[1] <= highest):
        box = f"[{bounds[0]:g}, {bounds[1]:g}]"
        if are_of_bytes(found, bounds):
            way_out = "If they are pixels from 0 to 255: images / 255"
        else:
            pixels = f"images in {box} and model = roli_fast.models.Normalized(model, mean, std)"
            way_out = f"If they are normalised, attack pixels instead: {pixels}"
        raise OutsideError(found, bounds, way_out)


def are_of_bytes(found: tuple[float, float], bounds: tuple[float, float]) -> bool:
    """Whether images with these smallest and largest values are pixels from 0 to 255: normalised ones lie on
    both sides of 0, at most a few units away."""
    return tuple(bounds) == (0, 1) and found[0] >= 0 and 2 < found[1] <= 255


def draw_key(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A random int64 (1,) on device, from the generator or from torch's own."""
    with no_other_capture:
        return torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=device)


def to_state(images: Tensor) -> Tensor:
    """The images as an attack's state: float32, or float64 where they are; uint8 is v / 255."""
    if images.dtype == torch.uint8:
        return pixels(images, torch.float32)
    return images.to(state_dtype(images), copy=True)


def as_floats(images: Tensor) -> Tensor:
    """A copy of the images as a model is asked about them: bytes as v / 255."""
    return to_images(to_state(images), images)


def to_images(state: Tensor, images: Tensor) -> Tensor:
    """The state in the images' dtype and layout; half precision is rounded towards the clean image, so
    that it stays in the ball. The state of uint8 images stays float32: their own steps are too coarse."""
    dtype = state.dtype if images.dtype == torch.uint8 else images.dtype
    result = torch.empty_like(images, dtype=dtype).copy_(state)
    if dtype not in (torch.float16, torch.bfloat16):
        return result
    past = (result.to(state.dtype) - state) * (state - images.to(state.dtype)).sign() > 0
    return torch.where(past, torch.nextafter(result, images), result)
