"""What a training shows while it runs, on stderr: stdout is for results."""

from typing import Any

import rich.progress
from rich.console import Console


class Progress:
    """A bar over all steps of a stage: images a second, loss and accuracy on what is trained on, clean and
    robust accuracy of the last validation, time left. Above it, a line for each epoch."""

    def __init__(self, title: str, steps: int, shown: bool):
        self._console = Console(stderr=True, quiet=not shown)
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),  # the title is the caller's
            rich.progress.BarColumn(bar_width=10),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=self._console, disable=not shown)
        self._title = title
        self._validated = ""
        self._task = self._bar.add_task(title, total=steps)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}", markup=False, highlight=False, soft_wrap=True)

    def advance(self, steps: int, about: str = "") -> None:
        """about: what is known of the epoch so far."""
        self._bar.update(self._task, advance=steps, description=f"{self._title}{about}{self._validated}")

    def epoch(self, row: dict[str, Any]) -> None:
        robust = row["val_robust"]
        self._validated = f", val {row['val_clean']:.0%}" + ("" if robust is None else f"/{robust:.0%}")
        self.note(
            f"epoch {row['epoch']}, loss {row['train_loss']:.3f}, training images right "
            f"{row['train_accuracy']:.1%}; validation: clean {row['val_clean']:.1%}"
            + ("" if robust is None else f", robust {robust:.1%}")
            + f"; {row['images_per_second']:.0f} images/s"
        )
