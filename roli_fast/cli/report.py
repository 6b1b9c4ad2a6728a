"""``roli-fast report``: one page about one or several finished runs."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from ..report import IMAGES, Run, read_run, write_report
from ..report.pictures import check_matplotlib
from .errors import UserError
from .options import DATA_OPTIONS, Options, chosen_device, load_data, users_mistakes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folders = "folders of roli-fast train; several, of the same data, norm and eps, are compared"
    parser.add_argument("runs", metavar="RUN", help=folders, nargs="+", type=Path)
    option = Options(parser, "evaluation")
    option.count("--images", "N", "number of test images that are attacked, at most", default=IMAGES)
    option.text("--data-dir", "FOLDER", "where the data set is now (default: where it was in training)")
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    out = "folder for page, numbers and pictures (default: RUN/report; for several runs, runs/report)"
    option.text("--output", "FOLDER", out, type=Path)


def run(arguments: argparse.Namespace) -> None:
    check_matplotlib()
    device = chosen_device(arguments.device)
    with users_mistakes():
        runs = [read_run(f, n) for f, n in zip(arguments.runs, _names(arguments.runs), strict=True)]
    data = _data(runs, arguments.data_dir)
    splits = load_data(argparse.Namespace(**data, dataset_download=False))
    out = arguments.output or (arguments.runs[0] / "report" if len(runs) == 1 else Path("runs/report"))
    described = (
        f"{data['dataset'] or 'digits'}: {len(splits.classes)} classes, {len(splits.test)} test images"
    )
    try:
        with users_mistakes():
            page = write_report(
                runs, splits, out, images=arguments.images, data=described, device=device, progress=True
            )
    except OSError as error:  # a folder below a file, a disk that is full
        raise UserError(f"--output: {error}") from error
    Console().print(f"Report: {page}", soft_wrap=True, markup=False, emoji=False, highlight=False)


def _names(folders: list[Path]) -> list[str]:
    """The folders' names; if two are the same, their paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _data(runs: list[Run], moved: str | None) -> dict[str, Any]:
    """The data set of all runs, by its options. moved: where it lies, if that is known better."""
    every = [(run, _data_of(run)) for run in runs]
    if moved is not None:
        every = [(run, data | {"data_dir": moved}) for run, data in every]
    (first, data), *others = every
    for other, theirs in others:
        different = [
            f"--{n.replace('_', '-')} {data[n]} and {theirs[n]}" for n in data if data[n] != theirs[n]
        ]
        if different:
            raise UserError(
                f"RUN: got {first.folder} and {other.folder} with {', '.join(different)}, accepted: runs of "
                "the same data: others cannot be compared"
            )
    return data


def _data_of(run: Run) -> dict[str, Any]:
    arguments = run.about.get("arguments")
    if arguments is None:
        raise UserError(
            f"RUN: got {run.folder}, which has no args.json, accepted: a run of roli-fast train; "
            "roli_fast.report.write_report takes the data of others"
        )
    chosen = {name: arguments.get(name) for name in DATA_OPTIONS}
    return chosen | {"dataset": arguments.get("dataset") or "digits"}
