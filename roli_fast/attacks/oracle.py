"""What an attack asks a model: its output, a loss, and gradients."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine import AttackView, GraphRunner, InputGradient, widened
from ..engine.closed import is_closed
from ..engine.graphs import Function
from ..engine.precision import products_now
from ..engine.weakly import weakly

if TYPE_CHECKING:
    from .attack import Attack

# At which call with inputs of the same shape a CUDA graph is recorded: PASS for a single pass, WHOLE for what
# runs once per batch. Recording costs two more passes and a wait for the device, which does not pay for a
# batch size that comes once or twice.
PASS, WHOLE = 4, 2
# How many sizes have a graph, at most: the 8 that :meth:`Oracle.room` gives, and the one of a last batch.
_SIZES = 9


class Oracle:
    """Computes output, objective and gradient with respect to the input, on a view of the model. On a GPU,
    calls that repeat are captured as CUDA graphs."""

    def __init__(self, attack: "Attack", view: AttackView):
        self.view = view
        objective = weakly(attack.objective)
        self.eager = InputGradient(view, objective, precision=attack.precision, eot=attack.eot)
        self._ask = weakly(self._output)
        obstacle = _obstacle(loss=vars(attack).get("loss"), output=attack.output)
        self._obstacle = lambda: obstacle
        self._runners: dict[Function, GraphRunner] = {}
        self._follows_torch = attack.precision == "torch"
        self._recorded_for = self._now()

    def _now(self) -> tuple[object, ...]:
        """What graphs are forgotten for when it is another: a replay would compute as before."""
        return self.view.generation, *(products_now() if self._follows_torch else ())

    @property
    def notes(self) -> tuple[str, ...]:
        found = (self.view.report.note, *(runner.note for runner in self._runners.values()))
        return tuple(note for note in found if note)

    def captured(self, function: Function, at: int = PASS) -> Function:
        """The function, run as a CUDA graph from its ``at``-th call with the same shapes on. Unchanged where
        the view is no copy: a callable of the user's may do anything between its kernels."""
        if self._recorded_for != (now := self._now()):
            self.forget_graphs()
            self._recorded_for = now
        if not self.view.is_copy:
            return function
        if function not in self._runners:
            self._runners[function] = GraphRunner(
                function, depends=self.view.holding, obstacle=self._obstacle, at=at, limit=_SIZES
            )
        return self._runners[function]

    def room(self, rows: int, images: Tensor) -> int:
        """How many rows of a batch (N, ...) to compute with where so many are asked for. On a GPU, passes of
        a size that repeats become graphs, and so there are only a few sizes: 2 ** n and 3 * 2 ** n, from an
        eighth of the batch on."""
        self.captured(self.eager)  # so that there is a runner to ask before the first gradient, too
        runners = self._runners.values()
        if rows == 0 or not (self.view.is_copy and all(runner.may_record(images) for runner in runners)):
            return rows
        rows = max(rows, len(images) // 8)
        step = max(1, 1 << rows.bit_length() >> 2)
        return min(-(-rows // step) * step, len(images))

    def forget_graphs(self) -> None:
        """Frees the graphs' memory: that of a whole pass, and what graphs of all sizes return."""
        for runner in self._runners.values():
            runner.clear()

    def gradient(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (N, ...), loss (N,) and output for prepared inputs."""
        gradient, loss, output = self.captured(self.eager)(x, target)
        return gradient, loss, output

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (N,) and output for prepared inputs."""
        loss, output = self.captured(self.eager.loss)(x, target)
        return loss, output

    def output(self, x: Tensor, at: int = PASS) -> Tensor:
        """The view's output for prepared inputs. at: as in :meth:`captured`; the first call decides."""
        (output,) = self.captured(self._ask, at)(x)
        return output

    def _output(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.eager.output(x),)

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the memory layout that the view prefers."""
        layout = self.view.memory_format(images)
        return images if layout == torch.preserve_format else images.contiguous(memory_format=layout)

    def in_pixels(self, gradient: Tensor) -> Tensor:
        """A gradient (N, C, ...) with respect to prepared inputs as one with respect to pixels, in float32 or
        float64; NaN and infinity count as 0."""
        gradient = widened(gradient)
        _, std = self.view.normalization(gradient)
        if std is not None:
            gradient = gradient / std.reshape(-1, *[1] * (gradient.dim() - 2))
        return gradient.nan_to_num(0, 0, 0)


def _obstacle(**own: object) -> str | None:
    """Why a graph may not contain these callables of the caller's; None if it may."""
    names = [name for name, value in own.items() if callable(value) and not is_closed(value)]
    return f"{' and '.join(names)} may read other values in another call" if names else None
