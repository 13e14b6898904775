"""The main path of an image experiment: experiment file -> trained cells -> results, figures and report.

    python -m training images configs/images/fashion_mnist_routing.yaml [--seeds N] [--device cuda] [--report]

Cells are trained once: a killed experiment goes on after the last epoch that it finished, and one with more seeds
trains the new ones alone. A cell that fails takes no other with it.

Shapes: N images, C channels, H by W pixels.
"""

from pathlib import Path
from typing import Any

import torch
from rich.progress import TextColumn, TimeElapsedColumn

from model.strict_yaml import read_yaml
from training.files import is_json_with, refuse_foreign, refuse_within
from training.images.cell import RESULT, check_settings, is_finished, train_cell
from training.images.config import Cell, ImageExperiment
from training.images.network import ImageNetwork
from training.images.pixels import Pixels
from training.images.report import RESULTS, write_report
from training.images.results import summarise
from training.images.tasks import ImageTasks
from training.progress_bar import progress_bar
from training.run.run import locked, read_json


def load(path: Path, changes: dict[str, Any]) -> ImageExperiment:
    """Read an experiment file with top-level keys replaced. Raises ValueError naming the file and the key."""
    content = read_yaml(path)
    return ImageExperiment.from_mapping(content | changes if isinstance(content, dict) else content, str(path))


def run(experiment: ImageExperiment, *, report_only: bool = False) -> Path:
    """Run what is left of an experiment and report it. Returns the report's path.

    `report_only` trains nothing and reports the finished cells. Raises ValueError for what the user can fix."""
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda: torch finds no CUDA device here; write device: cpu")
    torch.set_num_threads(experiment.threads)
    _refuse_no_experiment(experiment)
    with locked(experiment.output):
        tasks = experiment.data.read()
        _refuse_unfit(experiment, tasks)
        pixels = Pixels(tasks, torch.device(experiment.device))
        for cell in experiment.cells():
            check_settings(experiment, cell, pixels.fingerprint)
        failures = {} if report_only else _train(experiment, tasks, pixels)
        finished = {
            cell: read_json(experiment.folder(cell) / RESULT)
            for cell in experiment.cells()
            if is_finished(experiment.folder(cell))
        }
        if not finished:
            first = f" ({next(iter(failures.values()))})" if failures else ""
            raise ValueError(f"{experiment.output}: no cell is trained, so there is nothing to report{first}")
        results = summarise(experiment, tasks, finished, {str(cell): fault for cell, fault in failures.items()})
        return write_report(experiment.output, results)


def _refuse_no_experiment(experiment: ImageExperiment) -> None:
    """Raise ValueError for an output folder that is the data's, or is neither empty nor an experiment."""
    folder = experiment.output
    refuse_within(folder, experiment.data.path)

    def is_own() -> bool:
        return any(folder.glob("*/seed-*/.lock")) or is_json_with(folder / RESULTS, "settings")

    refuse_foreign(folder, "experiment's folder", is_own=is_own)


def _refuse_unfit(experiment: ImageExperiment, tasks: ImageTasks) -> None:
    """Raise ValueError, before the first cell is trained, where images and layers do not fit."""
    _, channels, height, width = tasks.train.images_NCHW.shape
    # Where the layers fit the images does not hang on the method.
    routing = experiment.methods[0].routing
    shape = (channels, height, width)
    ImageNetwork(experiment.network, routing, shape, len(tasks.names), tasks.num_classes, seed=0)


def _train(experiment: ImageExperiment, tasks: ImageTasks, pixels: Pixels) -> dict[Cell, str]:
    """Train the cells without a result. Returns the faults of those that failed."""
    left = [cell for cell in experiment.cells() if not is_finished(experiment.folder(cell))]
    failures: dict[Cell, str] = {}
    with progress_bar(TextColumn("epochs"), TimeElapsedColumn()) as bar:
        shown = bar.add_task("", total=len(left) * experiment.epochs)
        for number, cell in enumerate(left, start=1):
            place = f"cell {number}/{len(left)}  {cell}"
            bar.update(shown, description=place)
            try:
                train_cell(experiment, cell, tasks, pixels, lambda epochs: bar.advance(shown, epochs))
                bar.console.print(f"{place}  finished", markup=False)
            except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
                failures[cell] = str(error) or type(error).__name__
                bar.console.print(f"{place}  failed: {failures[cell]}", markup=False)
            bar.update(shown, completed=number * experiment.epochs)
    return failures
