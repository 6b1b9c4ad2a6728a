"""``roli-fast demo``: a small network trained on real digits, with and without attacks.

The digits come with scikit-learn: nothing is downloaded.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..attacks import PGD, predict
from ..data import Splits, digits
from ..evaluation import Accuracy, Difference, difference, evaluate
from ..models import Normalized, small_resnet
from ..training import Epoch, fit, train_epoch
from .errors import UserError

# In [0, 1] pixels. An eps at which an undefended network is lost and a trained one is not.
_EPS = 0.15
_BATCH_SIZE = 64
_LEARNING_RATE = 3e-3
_TIMED_EPOCHS = 5
_PICTURED = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=30, help="per training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and attacks (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for picture and results")


@dataclasses.dataclass(frozen=True)
class _Trained:
    name: str
    model: nn.Module
    seconds: float
    clean: Accuracy
    robust: Accuracy


def run(arguments: argparse.Namespace) -> None:
    if arguments.epochs < 1:
        raise UserError(f"--epochs: got {arguments.epochs}, accepted: 1 or more")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        splits = digits()
    except ImportError as error:
        raise UserError(f"{error}; install what the demo needs: pip install 'roli-fast[demo]'") from error
    except OSError as error:
        raise UserError(f"--out: {error}") from error
    console = Console()
    console.print(
        f"Handwritten digits, 8x8 pixels: {len(splits.train)} train, {len(splits.val)} validation, "
        f"{len(splits.test)} test images. Linf, eps {_EPS}."
    )
    train_attack = PGD(eps=_EPS, step_size=_EPS / 4, steps=7)
    trainings = {"normal": None, "adversarial": train_attack}
    trained = [_train(console, name, attack, splits, arguments) for name, attack in trainings.items()]
    plain, fused = _time_epochs(console, train_attack, splits, arguments.seed)

    _print_results(console, trained, plain, fused)
    picture = arguments.out / "demo.png"
    _draw(trained, splits.test, picture)
    _save(arguments, trained, plain, fused)
    console.print(f"Picture: {picture}\nNumbers: {arguments.out / 'demo.json'}", soft_wrap=True)


@contextmanager
def _bar(console: Console, title: str, total: int) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, status="")
        yield lambda status: progress.update(task, advance=1, status=status)


def _model() -> nn.Module:
    return Normalized(small_resnet(10, in_chans=1), mean=(0.305,), std=(0.376,))


def _train_batches(dataset: Dataset, seed: int) -> DataLoader:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=_BATCH_SIZE, shuffle=True, generator=order)


def _batches(dataset: Dataset) -> DataLoader:
    return DataLoader(dataset, batch_size=256)


def _evaluation_attack(seed: int) -> PGD:
    generator = torch.Generator().manual_seed(seed)
    return PGD(eps=_EPS, step_size=_EPS / 8, steps=20, iterate="best", early_stop=True, generator=generator)


def _train(
    console: Console, name: str, attack: PGD | None, splits: Splits, arguments: argparse.Namespace
) -> _Trained:
    torch.manual_seed(arguments.seed)
    model = _model()
    begin = time.perf_counter()
    with _bar(console, f"training, {name}", arguments.epochs) as advance:

        def show(epoch: Epoch, validation: Accuracy) -> None:
            advance(f"loss {epoch.loss:.3f}  validation {100 * validation.value:.1f} %")

        fit(
            model,
            _train_batches(splits.train, arguments.seed),
            _batches(splits.val),
            epochs=arguments.epochs,
            lr=_LEARNING_RATE,
            attack=attack,
            val_attack=_evaluation_attack(arguments.seed) if attack else None,
            on_epoch=show,
        )
    seconds = time.perf_counter() - begin
    test = _batches(splits.test)
    return _Trained(
        name, model, seconds, evaluate(model, test), evaluate(model, test, _evaluation_attack(arguments.seed))
    )


def _plain_epoch(
    model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer, attack: PGD
) -> Epoch:
    """:func:`train_epoch` as one writes it in plain torch."""
    begin = time.perf_counter()
    loss_sum, hits, count = torch.zeros(()), torch.zeros(()), 0
    for images, labels in batches:
        model.eval()
        adv = (images + torch.empty_like(images).uniform_(-_EPS, _EPS)).clamp(0, 1)
        for _ in range(attack.steps):
            adv.requires_grad_()
            gradient = torch.autograd.grad(F.cross_entropy(model(adv), labels), adv)[0]
            adv = adv.detach() + attack.step_size * gradient.sign()
            adv = (images + (adv - images).clamp(-_EPS, _EPS)).clamp(0, 1)
        model.train()
        logits = model(adv)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(images)
        hits += (logits.detach().argmax(dim=1) == labels).sum()
        count += len(images)
    return Epoch((loss_sum / count).item(), (hits / count).item(), time.perf_counter() - begin)


def _time_epochs(console: Console, attack: PGD, splits: Splits, seed: int) -> tuple[list[Epoch], list[Epoch]]:
    """Adversarial epochs of the plain loop and of ours, in turns, each training its own copy of a model."""
    torch.manual_seed(seed)
    model = _model()
    arms: list[tuple[Callable[..., Epoch], nn.Module, list[Epoch]]] = [
        (loop, copy.deepcopy(model), []) for loop in (_plain_epoch, train_epoch)
    ]
    optimizers = [torch.optim.AdamW(arm.parameters(), lr=_LEARNING_RATE) for _, arm, _ in arms]
    with _bar(console, "timing an adversarial epoch", 2 * (_TIMED_EPOCHS + 1)) as advance:
        for epoch in range(_TIMED_EPOCHS + 1):
            for (loop, arm, epochs), optimizer in zip(arms, optimizers, strict=True):
                done = loop(arm, _train_batches(splits.train, seed + epoch), optimizer, attack)
                advance(f"{done.seconds:.2f} s")
                if epoch > 0:  # the first one warms up
                    epochs.append(done)
    return arms[0][2], arms[1][2]


def _percent(accuracy: Accuracy) -> str:
    low, high = accuracy.interval()
    return f"{100 * accuracy.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(gap: Difference) -> str:
    return f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _yes(noise: bool) -> str:
    return "yes" if noise else "no"


def _print_results(console: Console, trained: list[_Trained], plain: list[Epoch], fused: list[Epoch]) -> None:
    normal, adversarial = trained
    table = Table(caption=f"PGD-20 at eps {_EPS}. In brackets: 95 % intervals; for the speed-up, its range.")
    table.add_column("training")
    for column in ("clean, %", "PGD-20, %", "seconds"):
        table.add_column(column, justify="right")
    for t in trained:
        table.add_row(t.name, _percent(t.clean), _percent(t.robust), f"{t.seconds:.0f}")
    clean = difference(adversarial.clean, normal.clean)
    robust = difference(adversarial.robust, normal.robust)
    table.add_row("difference", _points(clean), _points(robust), "")
    table.add_row("within noise", _yes(clean.within_noise), _yes(robust.within_noise), "", end_section=True)
    for name, epochs in (("epoch, plain torch", plain), ("epoch, roli_fast", fused)):
        table.add_row(name, "", "", f"{statistics.median(e.seconds for e in epochs):.2f}")
    ratios = sorted(p.seconds / f.seconds for p, f in zip(plain, fused, strict=True))
    table.add_row("speed-up", "", f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]", f"{statistics.median(ratios):.2f}")
    table.add_row("within noise", "", "", _yes(ratios[0] <= 1 <= ratios[-1]))
    console.print(table)


def _draw(trained: list[_Trained], test: Dataset, path: Path) -> None:
    """Clean images, what each model is attacked with, and what it then sees."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images, labels = (t[:_PICTURED] for t in next(iter(_batches(test))))
    rows: list[tuple[str, Tensor, Tensor | None]] = []
    for t in trained:
        adversarial = _evaluation_attack(0).run(t.model, images, labels).adversarial
        rows.append((f"{t.name} training:\nclean", images, predict(t.model, images).argmax(dim=1)))
        rows.append((f"perturbation,\n-{_EPS} to {_EPS}", (adversarial - images) / (2 * _EPS) + 0.5, None))
        rows.append(
            (f"{t.name} training:\nattacked", adversarial, predict(t.model, adversarial).argmax(dim=1))
        )
    figure, axes = pyplot.subplots(len(rows), len(images), figsize=(1.5 * len(images), 1.65 * len(rows)))
    for (name, shown, classes), line in zip(rows, axes, strict=True):
        for i, axis in enumerate(line):
            axis.imshow(shown[i, 0].numpy(), cmap="gray" if classes is not None else "PuOr", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if classes is not None:
                right = bool(classes[i] == labels[i])
                verdict = f"{classes[i]}" if right else f"{classes[i]} (is {labels[i]})"
                axis.set_title(verdict, fontsize=10, color="black" if right else "#b2182b")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    figure.suptitle(f"Predicted classes of digits under PGD-20, eps {_EPS}", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _save(
    arguments: argparse.Namespace, trained: list[_Trained], plain: list[Epoch], fused: list[Epoch]
) -> None:
    def accuracy(a: Accuracy) -> dict[str, object]:
        return {"value": a.value, "interval": a.interval(), "images": len(a.right)}

    results = {
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "eps": _EPS,
        "trainings": {
            t.name: {"clean": accuracy(t.clean), "pgd20": accuracy(t.robust), "seconds": t.seconds}
            for t in trained
        },
        "adversarial_epoch_seconds": {
            "plain torch loop": [e.seconds for e in plain],
            "roli_fast": [e.seconds for e in fused],
        },
    }
    (arguments.out / "demo.json").write_text(json.dumps(results, indent=2) + "\n")
